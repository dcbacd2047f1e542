"""Several options in one flag: `r=8,alpha=16`."""

from typing import Any, TypeVar

from mlpfusion.errors import InputError, shown
from mlpfusion.options.fields import from_plain, leaves

Options = TypeVar("Options")


def parse_pairs(kind: type[Options], flag: str, text: str) -> Options:
    """Returns the options in `NAME=VALUE,NAME=VALUE`. Raises `InputError` for anything unknown or malformed.

    `flag` begins the messages.
    """
    known = {leaf.name: leaf for leaf in leaves(kind)}
    values: dict[str, Any] = {}
    for pair in text.split(","):
        name, separator, value = (part.strip() for part in pair.partition("="))
        if not separator or name not in known:
            raise InputError(
                f"`{flag}` must be NAME=VALUE among {', '.join(known)}, divided by commas, got {shown(pair)}"
            )
        values[name] = _value(f"{flag} {name}", known[name].kinds, value)
    return from_plain(kind, values)


def _value(name: str, kinds: tuple[Any, ...], value: str) -> Any:
    if str in kinds:
        return value
    try:
        return int(value) if int in kinds else float(value)
    except ValueError as error:
        raise InputError(f"`{name}` must be a number, got {shown(value)}") from error
