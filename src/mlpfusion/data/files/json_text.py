"""Reads JSON values: an object per line, or one array."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from mlpfusion.data.files.lines import capped, read_lines
from mlpfusion.data.files.row import Row
from mlpfusion.errors import InputError, one_line, shown

MAX_ARRAY = 2**26  # 64 Mi characters of a JSON array: unlike lines, an array is read whole, at 1 to 4 bytes a character
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SPACE = re.compile(r"[ \t\r\n]*")


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Builds a JSON object. Raises `ValueError` for a repeated name (`json` would keep the last value)."""
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
    raise ValueError(f"an object must not have one name twice, got {shown(twice)}")


_DECODER = json.JSONDecoder(object_pairs_hook=_object_of)


class Item(NamedTuple):
    """A value in a JSON file, and the number of its first line."""

    value: Any
    line: int


def json_lines(path: Path, field: str) -> Iterator[Row]:
    """Yields one object per line of the file.

    Raises `InputError` for a line of anything else; the message names `field` and the line.
    """
    for number, line in enumerate(read_lines(path, field, guess=False), start=1):
        if text := line.strip():
            yield _row(text, number, path, field)


def json_items(path: Path, field: str) -> Iterator[Item]:
    """Yields the items of an array, or one object per line.

    Items of an array are objects or texts. Raises `InputError` for anything else, and for an array
    above `MAX_ARRAY` characters.

    >>> _ = (folder / "a.json").write_text('["one", "two"]')
    >>> [item.value for item in json_items(folder / "a.json", "data")]
    ['one', 'two']
    """
    lines = read_lines(path, field, guess=False, max_line=MAX_ARRAY)
    start = list(_up_to_text(lines))
    if start and start[-1].lstrip().startswith("["):
        yield from capped(_array_items(_whole(chain(start, lines), path, field), path, field), path, field)
        return
    for number, line in enumerate(chain(start, lines), start=1):
        if text := line.strip():
            yield Item(_row(text, number, path, field).values, number)


def json_rows(path: Path, field: str) -> Iterator[Row]:
    """Yields the objects of a .json file as rows. Raises `InputError` for items of any other kind."""
    for item in json_items(path, field):
        yield Row(_object(item.value, f"{path}, line {item.line}", field), item.line)


def _row(text: str, number: int, path: Path, field: str) -> Row:
    try:
        value, end = _DECODER.raw_decode(text)
        if end < len(text):
            raise ValueError(f"more after the end of the value: {shown(text[end:])}")
        _check_unicode(value, text)
    except (ValueError, RecursionError) as error:
        raise _no_json(error, f"{path}, line {number}", field) from error
    return Row(value if type(value) is dict else _object(value, f"{path}, line {number}", field), number)


def _up_to_text(lines: Iterator[str]) -> Iterator[str]:
    """Leading empty lines, and the first line with text."""
    for line in lines:
        yield line
        if line.strip():
            return


def _whole(lines: Iterator[str], path: Path, field: str) -> str:
    parts, size = [], 0
    for line in lines:
        size += len(line)
        if size > MAX_ARRAY:
            limit = f"at most {MAX_ARRAY // 2**20} Mi characters in one JSON array"
            raise InputError(f"`{field}` must have {limit}, {path} has more: write one object a line (.jsonl)")
        parts.append(line)
    return "".join(parts)


def _array_items(text: str, path: Path, field: str) -> Iterator[Item]:
    """Items of the array in `text`, decoded one by one."""
    end, seen, line = _skip_space(text, text.index("[") + 1), 0, 1
    closed = text.startswith("]", end)
    while not closed:
        line, seen = line + text.count("\n", seen, end), end
        try:
            value, end = _DECODER.raw_decode(text, end)
            _check_unicode(value, text[seen:end])
            end = _skip_space(text, end)
            closed = text.startswith("]", end)
            if not closed and not text.startswith(",", end):
                raise ValueError("a comma or the end of the array must follow an item")
        except (ValueError, RecursionError) as error:
            raise _no_json(error, f"{path}, line {line}", field) from error
        if not isinstance(value, str):
            _object(value, f"{path}, line {line}", field)
        yield Item(value, line)
        end = end if closed else _skip_space(text, end + 1)
    if text[end + 1 :].strip():
        raise InputError(f"`{field}` must be one JSON array, {path} goes on after its end")


def _skip_space(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    assert match is not None
    return match.end()


def _check_unicode(value: Any, source: str) -> None:
    """Raises `UnicodeError` for half a surrogate pair, refused by every tokenizer.

    `source` is the JSON text of `value`.
    """
    if "\\u" in source and _SURROGATE.search(source):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise UnicodeError("half a surrogate pair (\\ud800 to \\udfff) is no character") from error


def _object(value: Any, where: str, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"`{field}` must be a JSON object in {where}, got {type(value).__name__}")
    return value


def _no_json(error: BaseException, where: str, field: str) -> InputError:
    reason = "nested too deeply" if isinstance(error, RecursionError) else one_line(error)
    return InputError(f"`{field}` must be JSON in {where}: {reason}")
