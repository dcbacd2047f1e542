"""Checks of arguments: numbers, bools, text, devices, finite tensors.

Each takes the name of the argument first, for the message of the `InputError`. NumPy's and torch's
scalars become Python's own.
"""

import math
import operator
from dataclasses import fields
from numbers import Real
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, get_args

from mlpfusion.errors import InputError, one_line, shown

if TYPE_CHECKING:  # torch is imported where a tensor is looked at: options are checked before it is there
    import torch
    from jaxtyping import Float
    from torch import Tensor

# NumPy's seeds have 32 bits, torch's have 64; transformers' `set_seed` seeds both.
MAX_SEED = 2**32 - 1


def whole_number(name: str, value: Any, least: int | None = None, most: int = 2**63 - 1) -> int:
    """Returns `value` as an int between `least` and `most`.

    >>> import torch
    >>> whole_number("steps", torch.tensor(3), least=1)
    3
    """
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
    """Returns `value` as a seed, an int between 0 and 2^32 - 1.

    >>> seed_number("seed", 7)
    7
    """
    return whole_number(name, value, 0, MAX_SEED)


def real_number(name: str, value: Any) -> float:
    """Returns `value` as a finite float.

    >>> real_number("keep_ratio", 1)
    1.0
    """
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
    """Returns `value` as a path, `~` expanded. The path need not exist.

    >>> user_path("out", "folder/small").name
    'small'
    """
    try:
        path = Path(value).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:  # a name that is too long; RuntimeError: no such user
        raise InputError(f"`{name}` must be a path of this machine, got {shown(value)}: {one_line(error)}") from error
    return path


def yes_or_no(name: str, value: Any) -> bool:
    """Returns `value` as a bool. 0 and 1 are refused.

    >>> import torch
    >>> yes_or_no("refine", torch.tensor(True))
    True
    """
    if not _is_flag(value):
        raise InputError(f"`{name}` must be True or False, got {shown(value)}")
    return bool(value)


def some_text(name: str, value: Any) -> str:
    """Returns `value`, a str.

    >>> some_text("method", "fusion")
    'fusion'
    """
    if not isinstance(value, str):
        raise InputError(f"`{name}` must be text, got {shown(value)}")
    return value


def check_range(name: str, value: float, least: float, most: float | None = None) -> None:
    """Raises `InputError` unless `least` <= `value` <= `most`; None is no upper limit.

    >>> check_range("num_steps", 5, 1)
    """
    if value < least:
        raise InputError(f"`{name}` must be at least {least}, got {shown(value)}")
    if most is not None and value > most:
        raise InputError(f"`{name}` must be at most {most}, got {shown(value)}")


def check_given(given: bool, name: str) -> None:
    """Raises `InputError` unless a value was given.

    >>> check_given(bool([0, 1]), "seeds")
    """
    if not given:
        raise InputError(f"`{name}` must be given, got none")


def check_that(condition: bool, name: str, allowed: str, value: Any) -> None:
    """Raises `InputError` in the house's words unless `condition` holds.

    >>> check_that(0 < 0.1 < 1, "holdout", "above 0 and below 1", 0.1)
    """
    if not condition:
        raise InputError(f"`{name}` must be {allowed}, got {shown(value)}")


def check_above_zero(name: str, value: float) -> None:
    """Raises `InputError` unless `value` > 0. NaN is refused.

    >>> check_above_zero("ridge", 0.01)
    """
    if not value > 0:
        raise InputError(f"`{name}` must be above 0, got {shown(value)}")


def check_fields(config: Any) -> None:
    """Checks and converts the fields of a frozen dataclass, by their annotated types.

    Call in `__post_init__`, before the ranges are checked. Numbers, bool and str are converted;
    fields of other types are left alone. A field with a name that ends in `seed` must be a seed.

    >>> from mlpfusion.methods.data_free.fusion import Fusion
    >>> import torch
    >>> Fusion(num_init=torch.tensor(2))  # `Fusion.__post_init__` calls `check_fields(self)`
    Fusion(num_init=2, max_iter=300, refine=True)
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


def usable_device(device: "torch.device | str") -> "torch.device":
    """Returns the device called `device`. Raises `InputError` unless this machine has it.

    >>> usable_device("cpu")
    device(type='cpu')
    """
    import torch

    try:
        named = torch.device(device)
        torch.empty(0, device=named)
    except (RuntimeError, TypeError, AssertionError) as error:  # AssertionError: torch without CUDA
        here = "cpu or cuda" if torch.cuda.is_available() else "cpu"
        raise InputError(f"`device` must be {here} on this machine, got {shown(device)}") from error
    if named.type == "meta":
        raise InputError("`device` must be one that computes, got 'meta'")
    return named


def num_not_finite(tensor: "Float[Tensor, '*shape']") -> int:
    """Counts the NaN and infinite entries.

    >>> import torch
    >>> num_not_finite(torch.tensor([1.0, torch.nan, -torch.inf]))
    2
    """
    import torch

    # The usual answer is 0, and one pass over the memory proves it: the smallest and the largest
    # entry are finite (both are NaN where any entry is). `torch.isfinite` of every entry takes
    # thirty times as long, and more memory.
    with torch.no_grad():
        if tensor.numel() == 0 or bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all()):
            return 0
        return int((~torch.isfinite(tensor)).sum())


def check_finite(tensor: "Float[Tensor, '*shape']", name: str, where: str = "") -> None:
    """Raises `InputError` for NaN or Inf in `tensor`, called `name` in the message.

    `where` ends the message: " in encoder.layer.0.output.dense.weight".

    >>> import torch
    >>> check_finite(torch.zeros(3), "the weights")
    """
    bad = num_not_finite(tensor)
    if bad:
        raise InputError(f"{name} must be finite, got {bad} NaN or Inf{where}")


def _is_flag(value: Any) -> bool:
    """Whether `value` is a bool of Python, NumPy or torch."""
    if isinstance(value, bool):
        return True
    return str(getattr(value, "dtype", "")) in ("bool", "torch.bool") and getattr(value, "shape", None) == ()


_CHECKS = {int: whole_number, float: real_number, bool: yes_or_no, str: some_text}
