"""The errors that a user can cause and mend, how values look in them, and the warnings."""

import unicodedata
from reprlib import Repr
from typing import Any

# The longest message of an `InputError`; a list of all model types fits.
_MAX_LENGTH = 1200
# Control and format characters, lone surrogates, line and paragraph separators.
_NOT_PRINTED = {"Cc", "Cf", "Cs", "Zl", "Zp"}


class InputError(ValueError):
    """Bad input. The message is one line: the field, the allowed values, the value given, the cure.

    Whatever the message quotes, it has no control characters, and it is cut in the middle where it is very long.
    """

    def __init__(self, message: str):
        super().__init__(cut(printable(" ".join(message.split())), _MAX_LENGTH))


class DivergenceError(InputError):
    """The loss or the weights became NaN or Inf."""


class DamageWarning(UserWarning):
    """A file is not what this program wrote; what an unfinished run lost by that is made again."""


class DegenerateClusteringWarning(UserWarning):
    """One cluster swallowed a large part of the neurons while most others hold a single one."""


class DataFileWarning(UserWarning):
    """How a data file was read where that had to be guessed."""


def one_line(error: BaseException, max_length: int | None = 300) -> str:
    """The message of an error of another library as one line, cut if it is long."""
    return printable(" ".join(str(error).split()))[:max_length]


def printable(text: str, keep: str = "") -> str:
    """`text` with backslashes for what could move a terminal's cursor or cannot be encoded; `keep` stays."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        one if one in keep or unicodedata.category(one) not in _NOT_PRINTED else _escaped(one) for one in text
    )


def cut(text: str, max_length: int) -> str:
    """`text`, without its middle if it is longer than `max_length`."""
    if len(text) <= max_length:
        return text
    return f"{text[: 2 * max_length // 3]} ... {text[-max_length // 3 :]}"


class _ShortRepr(Repr):
    """The standard library's cut repr, which has none for whole numbers of thousands of digits."""

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= 256 else f"a whole number of {x.bit_length()} bits"


def shown(value: Any) -> str:
    """The repr of any value for a message: one short line, whatever the value holds."""
    short = _ShortRepr()
    short.maxlevel, short.maxstring, short.maxother, short.maxdict, short.maxlist = 3, 160, 160, 6, 8
    return printable(" ".join(short.repr(value).split()))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
