"""Errors and warnings of the package, and the form of values in messages."""

import unicodedata
from reprlib import Repr
from typing import Any

# Characters of the longest message of an `InputError`: a list of all model types fits.
_MAX_LENGTH = 1200
# Unicode categories: control and format characters, lone surrogates, line and paragraph separators.
_NOT_PRINTED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# What the code of a model, and what runs or traces it, may raise for inputs that it does not take.
REFUSALS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class InputError(ValueError):
    """Bad input. The message is one line: the field, the allowed values, the value given, the cure.

    Control characters are escaped, and a very long message loses its middle.
    """

    def __init__(self, message: str):
        super().__init__(cut(printable(" ".join(message.split())), _MAX_LENGTH))


class DivergenceError(InputError):
    """Training failed: the loss or the weights became NaN or Inf."""


class DamageWarning(UserWarning):
    """A file on disk differs from the file written; the lost work is done again."""


class DegenerateClusteringWarning(UserWarning):
    """One cluster holds a large part of the neurons, and most others a single neuron."""


class DataFileWarning(UserWarning):
    """The format of a data file was ambiguous; says how the file was read."""


def one_line(error: BaseException, max_length: int | None = 300) -> str:
    r"""Formats the message of another library's error as one line.

    >>> one_line(OSError("no space left\non device"))
    'no space left on device'
    """
    return printable(" ".join(str(error).split()))[:max_length]


def printable(text: str, keep: str = "") -> str:
    r"""Escapes control characters and lone surrogates in `text`.

    Characters in `keep` stay.

    >>> printable("red \x1b[31m")
    'red \\x1b[31m'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character if character in keep or unicodedata.category(character) not in _NOT_PRINTED else _escaped(character)
        for character in text
    )


def cut(text: str, max_length: int) -> str:
    """Cuts the middle out of a text longer than `max_length`.

    >>> cut("abcdefghijklmnopqrstuvwxyz", 12)
    'abcdefgh ... wxyz'
    """
    if len(text) <= max_length:
        return text
    return f"{text[: 2 * max_length // 3]} ... {text[-max_length // 3 :]}"


class _ShortRepr(Repr):
    """The standard library's short repr, and one for whole numbers of thousands of digits."""

    def repr_int(self, x: int, level: int) -> str:
        # 256 bits are 78 digits; Python itself refuses to print more than 4,300 digits.
        return repr(x) if x.bit_length() <= 256 else f"a whole number of {x.bit_length()} bits"


def shown(value: Any) -> str:
    """Formats any value as a short line for a message.

    >>> shown(list(range(100)))
    '[0, 1, 2, 3, 4, 5, 6, 7, ...]'
    """
    short = _ShortRepr()
    # Levels of nesting, characters, entries: a message stays one line of a terminal or two.
    short.maxlevel, short.maxstring, short.maxother, short.maxdict, short.maxlist = 3, 160, 160, 6, 8
    return printable(" ".join(short.repr(value).split()))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
