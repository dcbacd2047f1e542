"""Reads rows of CSV, as of spreadsheets, and of TSV, as of GLUE."""

import csv
import re
import warnings
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from mlpfusion.data.files.lines import split_at_returns, text_lines
from mlpfusion.data.files.row import Row
from mlpfusion.errors import DataFileWarning, InputError, one_line, shown

_QUOTED = re.compile(r'"(?:[^"]|"")*"')


def csv_rows(path: Path, field: str) -> Iterator[Row]:
    """Yields the rows of a CSV file, delimited by commas, semicolons or tabs.

    The delimiter is a comma if the header has one, else a semicolon, else a tab. Raises
    `InputError` for a row with more or fewer cells than the header; the message names `field` and
    the line.
    """
    lines = split_at_returns(text_lines(path, field))
    first = next(lines, "")
    reader = csv.reader(chain([first], lines), delimiter=_delimiter(first), strict=True)
    names: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            if names is None:
                names = _column_names(cells, path, field)
            elif cells:
                _check_length(cells, names, f"line {line} of {path}", field)
                yield Row(dict(zip(names, cells, strict=True)), line)
            line = reader.line_num + 1
    except csv.Error as error:
        cure = 'a quotation mark inside a quoted cell is written twice, ""'
        where = f"{path} is not in line {reader.line_num}"
        raise InputError(f"`{field}` must be a table with a header, {where}: {one_line(error)}; {cure}") from error


def tsv_rows(path: Path, field: str) -> Iterator[Row]:
    """Yields the rows of a TSV file, one per line.

    Quotation marks belong to the text, as in GLUE's files. Only if every name in the header is
    quoted, the marks around cells are removed, with a `DataFileWarning`; the same warning says that
    marks were kept if all of them look like a spreadsheet's quoting. Raises `InputError` for a line
    with more or fewer cells than the header.

    >>> _ = (folder / "a.tsv").write_text('text\\tlabel\\n"good\\t1\\n')
    >>> next(tsv_rows(folder / "a.tsv", "train")).values
    {'text': '"good', 'label': '1'}
    """
    lines = list(text_lines(path, field))
    if not lines:
        return
    end = "\r\n" if lines[0].endswith("\r\n") else "\n"
    header = lines[0].removesuffix(end).split("\t")
    quoted = _has_quoting(header, lines, end, path)
    names = _column_names([_unquoted(name) for name in header] if quoted else header, path, field)
    for number, line in enumerate(lines[1:], start=2):
        plain = line.removesuffix(end)
        if not plain:
            continue
        cells = plain.split("\t")
        _check_length(cells, names, f"line {number} of {path}", field, _TSV_CURE)
        if quoted and '"' in plain:
            cells = [_unquoted(cell) for cell in cells]
        yield Row(dict(zip(names, cells, strict=True)), number)


_TSV_CURE = "; a .tsv has no tabs and line breaks within a cell, quoted or not: give CSV or JSONL for these"


def _has_quoting(header: Sequence[str], lines: Sequence[str], end: str, path: Path) -> bool:
    """True if both header and cells are quoted.

    Quoted cells alone prove nothing: GLUE's own QQP has cells that look quoted, doubled marks and
    all; everybody reads them with the marks.
    """
    marked = [cell for line in lines if '"' in line for cell in line.removesuffix(end).split("\t") if '"' in cell]
    if not marked or not all(_QUOTED.fullmatch(cell) for cell in marked):
        return False
    quoted = all(_QUOTED.fullmatch(name) for name in header)
    how = "left out, as the header has them too" if quoted else "kept: a .tsv has no quoting"
    cure = "give CSV" if not quoted else "give JSONL"
    message = f"{path}: the quotation marks around cells are {how}; if that is wrong, {cure}"
    warnings.warn(message, DataFileWarning, stacklevel=2)
    return quoted


def _unquoted(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if cell.startswith('"') else cell


def _delimiter(header: str) -> str:
    bare = re.sub(r'"[^"]*"', "", header)
    return next((mark for mark in ",;\t" if mark in bare), ",")


def _column_names(cells: Sequence[str], path: Path, field: str) -> list[str]:
    """Column names in a header, stripped. Raises `InputError` for an empty or repeated name."""
    names = [cell.strip() for cell in cells]
    if not all(names):
        cure = "pandas leaves it out by `index=False`" if not names[0] else "is there a delimiter too much?"
        raise InputError(f"`{field}` must have a name for every column, the header of {path} has an empty one: {cure}")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"`{field}` must not have two columns of one name, {path} has {shown(twice)} twice")
    return names


def _check_length(cells: Sequence[str], names: Sequence[str], where: str, field: str, cure: str = "") -> None:
    if len(cells) != len(names):
        counts = f"{where} has {len(cells)}, the header {len(names)}"
        raise InputError(f"`{field}` must have as many fields in every row, {counts}{cure}")
