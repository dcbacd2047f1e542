"""Reads lines of text files, unpacked and decoded, within limits against full memory."""

import gzip
import io
import stat
import warnings
import zlib
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from mlpfusion.errors import DataFileWarning, InputError, one_line

MAX_LINE = 2**24  # bytes of a line after unpacking: 16 MiB, more than a long book; not tuned
MAX_FILE = 2**30  # characters of a file: 1 Gi, a few GB of memory as Python texts
MAX_ROWS = 4_000_000  # lines, rows or texts of a file: the largest public sets of labelled texts; a minute to read

Item = TypeVar("Item")

# UTF-32 first: its mark begins with that of UTF-16.
_WIDE = {BOM_UTF32_LE: "utf-32", BOM_UTF32_BE: "utf-32", BOM_UTF16_LE: "utf-16", BOM_UTF16_BE: "utf-16"}


def read_lines(path: Path, field: str, *, guess: bool = True, max_line: int = MAX_LINE) -> Iterator[str]:
    """Yields the lines of a text file (.gz too) with their line breaks.

    Lines end in a line feed. A byte-order mark decides the encoding and is left out; without a mark
    the text is UTF-8 or, if `guess` and no line is UTF-8, Windows-1252 with a `DataFileWarning`.
    Raises `InputError` for anything but a readable regular file in one encoding and within the
    limits; the message names `field` and the line.

    >>> _ = (folder / "a.txt").write_text("one\\ntwo")
    >>> list(read_lines(folder / "a.txt", "data"))
    ['one\\n', 'two']
    """
    check_regular(path, field)
    size, number = 0, 0
    try:
        with _unpacked(path) as file:
            lines = _decoded(file, path, guess=guess, max_line=max_line)
            for number, line in enumerate(lines, start=1):
                size += len(line)
                if len(line) > max_line:
                    limit = f"lines of at most {max_line // 2**20} MiB"
                    raise InputError(f"`{field}` must have {limit}, line {number} of {path} is longer")
                if size > MAX_FILE or number > MAX_ROWS:
                    raise _too_large(path, field)
                yield line
    except (OSError, EOFError, zlib.error, UnicodeError) as error:
        where = f"{path}, line {number + 1}"
        raise InputError(f"`{field}` must be a readable text file, got {where}: {one_line(error)}") from error


def check_num_lines(path: Path, field: str) -> None:
    """Raises `InputError` for more than `MAX_ROWS` lines.

    Counts bytes of line feeds, which takes seconds, before any line is decoded. Unreadable files
    pass, `read_lines` refuses them; UTF-16 passes too (the byte of a line feed is part of letters).
    """
    check_regular(path, field)
    count, size = 0, 0
    try:
        with _unpacked(path) as file:
            if file.peek(4)[:4].startswith(tuple(_WIDE)):
                return
            while count <= MAX_ROWS and size <= 4 * MAX_FILE and (part := file.read(2**20)):
                count, size = count + part.count(b"\n"), size + len(part)
    except (OSError, EOFError, zlib.error):
        return
    if count > MAX_ROWS or size > 4 * MAX_FILE:  # a character has at most four bytes
        raise _too_large(path, field)


def text_lines(path: Path, field: str) -> Iterator[str]:
    """Yields the lines of `read_lines`. Raises `InputError` for a NUL character, a sign of a binary file."""
    for number, line in enumerate(read_lines(path, field), start=1):
        if "\0" in line:
            raise InputError(f"`{field}` must be a readable text file, got {path}: NUL character in line {number}")
        yield line


def split_at_returns(lines: Iterable[str]) -> Iterator[str]:
    """Splits lines at lone carriage returns too, the line ends of old spreadsheets.

    >>> list(split_at_returns(["a\\rb\\r\\n", "c\\n"]))
    ['a\\r', 'b\\r\\n', 'c\\n']
    """
    for line in lines:
        if "\r" in line[:-2]:
            yield from io.StringIO(line, newline="")
        else:
            yield line


def capped(items: Iterable[Item], file: Path | str, field: str) -> Iterator[Item]:
    """Yields the items. Raises `InputError` after `MAX_ROWS` of them."""
    for count, item in enumerate(items, start=1):
        if count > MAX_ROWS:
            raise InputError(
                f"`{field}` must have at most {MAX_ROWS:,} lines or rows, {file} has more: give a part of it"
            )
        yield item


def check_regular(path: Path, field: str) -> None:
    """Raises `InputError` unless `path` is a regular file.

    Devices and pipes may never end.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise InputError(f"`{field}` must be a readable file, got {path}: {one_line(error)}") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise InputError(f"`{field}` must be a regular file, got {path}, which is {kind}")


def _too_large(path: Path, field: str) -> InputError:
    limit = f"at most {MAX_FILE // 2**20} MiB after unpacking, and {MAX_ROWS:,} lines"
    return InputError(f"`{field}` must hold {limit}, {path} holds more: give a part of it")


def _unpacked(path: Path) -> io.BufferedReader:
    is_packed = path.suffix.lower() == ".gz"
    return io.BufferedReader(gzip.open(path, "rb")) if is_packed else path.open("rb")


def _decoded(file: io.BufferedReader, path: Path, *, guess: bool, max_line: int) -> Iterator[str]:
    """Decoded lines; a line above `max_line` is cut to `max_line + 1` characters."""
    start = file.peek(4)[:4]
    wide = next((encoding for mark, encoding in _WIDE.items() if start.startswith(mark)), None)
    if wide is not None:
        with io.TextIOWrapper(file, encoding=wide, newline="\n") as text:
            while line := text.readline(max_line + 1):
                yield line
        return
    marked = start.startswith(BOM_UTF8)
    if marked:
        file.read(len(BOM_UTF8))
    yield from _utf8_or_windows(file, path, guess=guess and not marked, max_line=max_line)


def _utf8_or_windows(file: io.BufferedReader, path: Path, *, guess: bool, max_line: int) -> Iterator[str]:
    """Decodes lines as UTF-8, or all of them as Windows-1252.

    The latter only if no line beyond ASCII is UTF-8. A file with both raises `UnicodeError`, in
    whatever order its lines come.
    """
    seen: str | None = None
    while raw := file.readline(max_line + 1):
        if raw.isascii() or len(raw) > max_line:
            yield raw.decode("latin-1")
            continue
        try:
            line, encoding = raw.decode(), "UTF-8"
        except UnicodeDecodeError:
            if not guess or seen == "UTF-8":
                raise
            line, encoding = raw.decode("cp1252"), "Windows-1252"
        if seen is None and encoding != "UTF-8":
            message = f"{path} is not UTF-8, and is read as Windows-1252: if letters come out wrong, save it as UTF-8"
            warnings.warn(message, DataFileWarning, stacklevel=2)
        elif seen not in (None, encoding):
            raise UnicodeError("this line is UTF-8, those before are not: save the file in one encoding, UTF-8")
        seen = encoding
        yield line
