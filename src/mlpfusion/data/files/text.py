"""Unlabelled texts from plain text files and tables."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mlpfusion.data.files.hub import column_texts, is_data_set
from mlpfusion.data.files.json_text import json_items
from mlpfusion.data.files.lines import capped, check_num_lines, split_at_returns, text_lines
from mlpfusion.data.files.row import Row
from mlpfusion.data.files.rows import file_kind, has_columns, iterate_rows
from mlpfusion.errors import InputError


def read_texts(
    file: Path | str, *, column: str | None = None, max_samples: int | None = None, field: str = "data"
) -> list[str]:
    """Reads texts: one per line, or the column `column` of a table.

    Texts are stripped, empty ones left out, and at most `max_samples` kept. Tables are the files
    and data sets of `iterate_rows`; a .json array of texts needs no column. Raises `InputError` for
    an unreadable file, a column that is missing, unknown or not text, a column named for plain
    text, and a file without any text.

    >>> _ = (folder / "texts.txt").write_text("one\\n\\n two\\n")
    >>> read_texts(folder / "texts.txt")
    ['one', 'two']
    """
    if max_samples is not None and max_samples < 1:
        raise InputError(f"`max_samples` must be at least 1, got {max_samples}")
    texts: list[str] = []
    if max_samples is None and not is_data_set(str(file)) and file_kind(file) != ".parquet":
        check_num_lines(Path(file), field)
    for text in capped(_raw_texts(file, column, field), file, field):
        texts += [stripped] if (stripped := text.strip()) else []
        if max_samples is not None and len(texts) == max_samples:
            break
    if not texts:
        raise InputError(f"`{field}` must hold at least one text, got none in {file}")
    return texts


def texts_sha256(texts: Sequence[str]) -> str:
    """SHA-256 of texts, one a line."""
    return hashlib.sha256("\n".join(texts).encode(errors="surrogatepass")).hexdigest()


def _raw_texts(file: Path | str, column: str | None, field: str) -> Iterable[str]:
    if is_data_set(str(file)):
        return column_texts(str(file), column, field)
    if file_kind(file) == ".json":
        return _json_texts(Path(file), column, field)
    if has_columns(file):
        return (_text(row, column, file) for row in iterate_rows(file, field))
    if column is not None:
        raise InputError(f"`column` must be left out for {file}, which is read as plain text, one a line")
    return split_at_returns(text_lines(Path(file), field))


def _json_texts(path: Path, column: str | None, field: str) -> Iterator[str]:
    for item in json_items(path, field):
        if not isinstance(item.value, str):
            yield _text(Row(item.value, item.line), column, path)
        elif column is None:
            yield item.value
        else:
            raise InputError(f"`column` must be left out for {path}, whose line {item.line} holds a text without one")


def _text(row: Row, column: str | None, file: Path | str) -> str:
    where = f"{file}, line {row.line}"
    if column is None:
        known = ", ".join(row.values)
        raise InputError(f"`column` must name the column of {file} that holds the text, one of {known}, got none")
    if not isinstance(row.values.get(column), str):
        raise InputError(f"`column` must be a text column of {where}, one of {', '.join(row.values)}, got {column!r}")
    return row.values[column]
