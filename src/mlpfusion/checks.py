"""Arguments checked at the door: numbers, yes or no, text, devices. NumPy's numbers become Python's own."""

import math
import operator
from dataclasses import fields
from numbers import Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from mlpfusion.errors import InputError, one_line, shown

# What NumPy's and torch's generators both take.
MAX_SEED = 2**32 - 1


def whole_number(name: str, value: Any, least: int | None = None, most: int = 2**63 - 1) -> int:
    """Returns `value` as an int between `least` and `most`. Raises `InputError`, which names `name`."""
    try:
        number = None if _is_flag(value) else operator.index(value)
    except (TypeError, RuntimeError):  # RuntimeError: a tensor on the meta device
        number = None
    if number is None:
        raise InputError(f"`{name}` must be a whole number, got {shown(value)}")
    if least is not None and number < least:
        raise InputError(f"`{name}` must be at least {least}, got {shown(number)}")
    if not -most <= number <= most:
        raise InputError(f"`{name}` must be at most {most}, got {shown(number)}")
    return number


def seed_number(name: str, value: Any) -> int:
    """Returns `value` as a seed. Raises `InputError`, which names `name`, outside 0 to 2^32 - 1."""
    return whole_number(name, value, 0, MAX_SEED)


def real_number(name: str, value: Any) -> float:
    """Returns `value` as a finite float. Raises `InputError`, which names `name`."""
    if not isinstance(value, Real) or _is_flag(value):
        raise InputError(f"`{name}` must be a number, got {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InputError(f"`{name}` must be a finite number, got {shown(value)}")
    return number


def user_path(name: str, value: str) -> Path:
    """Returns `value` as a path, `~` for the home folder. Raises `InputError`, which names `name`, where it is none."""
    try:
        path = Path(value).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:  # a name that is too long; RuntimeError: no such user
        raise InputError(f"`{name}` must be a path of this machine, got {shown(value)}: {one_line(error)}") from error
    return path


def yes_or_no(name: str, value: Any) -> bool:
    """Returns `value` as a bool. Raises `InputError`, which names `name`, for anything else."""
    if not _is_flag(value):
        raise InputError(f"`{name}` must be True or False, got {shown(value)}")
    return bool(value)


def some_text(name: str, value: Any) -> str:
    """Returns `value`, which is a str. Raises `InputError`, which names `name`, for anything else."""
    if not isinstance(value, str):
        raise InputError(f"`{name}` must be text, got {shown(value)}")
    return value


def check_range(name: str, value: float, least: float, most: float | None = None) -> None:
    """Raises `InputError`, which names `name`, unless `value` is at least `least`, and at most `most` if given."""
    if value < least:
        raise InputError(f"`{name}` must be at least {least}, got {shown(value)}")
    if most is not None and value > most:
        raise InputError(f"`{name}` must be at most {most}, got {shown(value)}")


def check_above_zero(name: str, value: float) -> None:
    """Raises `InputError`, which names `name`, unless `value` is above 0."""
    if not value > 0:
        raise InputError(f"`{name}` must be above 0, got {shown(value)}")


def check_fields(config: Any) -> None:
    """Checks the fields of a frozen dataclass by their types, and makes Python's own numbers of them.

    For `__post_init__`, before the ranges are looked at. Fields of other types than numbers, bool and str are left.
    Raises `InputError`, which names the field.
    """
    for item in fields(config):
        kinds = get_args(item.type) if isinstance(item.type, UnionType) else (item.type,)
        value = getattr(config, item.name)
        if value is None and NoneType in kinds:
            continue
        for kind in kinds:
            if kind in _CHECKS:
                check = seed_number if item.name.endswith("seed") else _CHECKS[kind]
                object.__setattr__(config, item.name, check(item.name, value))


def usable_device(device: torch.device | str) -> torch.device:
    """Returns the device of that name. Raises `InputError` unless this machine has it."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, TypeError, AssertionError) as error:  # AssertionError: torch without CUDA
        here = "cpu or cuda" if torch.cuda.is_available() else "cpu"
        raise InputError(f"`device` must be {here} on this machine, got {shown(device)}") from error
    if found.type == "meta":
        raise InputError("`device` must be one that computes, got 'meta'")
    return found


@torch.no_grad()
def num_not_finite(tensor: Float[Tensor, "*shape"]) -> int:
    """Counts the entries that are NaN or infinite."""
    # The usual answer is 0, and one pass over the memory proves it: the smallest and the largest entry are finite (both
    # are NaN where any entry is). `torch.isfinite` of every entry takes thirty times as long, and more memory.
    if tensor.numel() == 0 or bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all()):
        return 0
    return int((~torch.isfinite(tensor)).sum())


def check_finite(tensor: Float[Tensor, "*shape"], name: str, where: str = "") -> None:
    """Raises `InputError` for NaN or Inf in `tensor`, called `name` in the message.

    `where` ends the message: " in encoder.layer.0.output.dense.weight".
    """
    bad = num_not_finite(tensor)
    if bad:
        raise InputError(f"{name} must be finite, got {bad} NaN or Inf{where}")


def _is_flag(value: Any) -> bool:
    """Whether it is a bool, NumPy's or torch's included."""
    if isinstance(value, bool):
        return True
    return str(getattr(value, "dtype", "")) in ("bool", "torch.bool") and getattr(value, "shape", None) == ()


_CHECKS = {int: whole_number, float: real_number, bool: yes_or_no, str: some_text}
