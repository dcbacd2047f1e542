"""Plain data from YAML, with the numbers of YAML 1.2: `1e-4` is one. (PyYAML follows YAML 1.1, where it is a text.)"""

import re
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from yaml import SafeLoader, YAMLError, load

from mlpfusion.errors import InputError, one_line


class _Loader(SafeLoader):
    """PyYAML's safe loader: plain data, no objects."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+\Z"), list("-+.0123456789")
)


def read_yaml(path: Path, field: str) -> Any:
    """The plain data in a YAML file. Raises `InputError`, which names `field`, if the file cannot be read."""
    try:
        return _load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise InputError(f"`{field}` must be a readable YAML file, got {path}: {one_line(error)}") from error


def parse_option(text: str) -> tuple[str, Any]:
    """`NAME=VALUE` as its name and its value, which is YAML. Raises `InputError` if it is neither."""
    name, separator, value = text.partition("=")
    if not separator:
        raise InputError(f"an option must be NAME=VALUE, got {text!r}")
    try:
        return name, _load(value)
    except YAMLError as error:
        raise InputError(f"the value of option {name} must be YAML, got {value!r}: {one_line(error)}") from error


def check_type(field: str, value: Any, kinds: Sequence[type]) -> Any:
    """`value`, which is of one of `kinds`; a whole number is taken for a fraction.

    Raises `InputError`, which begins with `field`, for another type.
    """
    if float in kinds and type(value) is int:
        return float(value)
    if type(value) not in kinds:
        names = " or ".join("nothing" if kind is NoneType else kind.__name__ for kind in kinds)
        raise InputError(f"{field} must be of type {names}, got {value!r}")
    return value


def _load(text: str) -> Any:
    return load(text, _Loader)  # noqa: S506, a safe loader
