"""Unlabelled text to measure or to calibrate on."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlpfusion.errors import InputError, one_line
from mlpfusion.tasks.hub import is_data_set, read_data_set


def read_texts(
    file: Path | str, *, column: str | None = None, max_samples: int | None = None, field: str = "data"
) -> list[str]:
    """The texts in a file: one a line, or the field `column` of every line of a JSONL file; .gz is unpacked.

    `hub:owner/name`, `hub:owner/name:split` and `hub:owner/name:config:split` (split `train` if none is named) are read
    from the Hub, .parquet from disk, both by the package `datasets`. Empty texts are left out. Raises `InputError` (it
    names `field`) for a missing or unreadable file, a line that is no JSON object or has no such field, a missing
    `column`, a file without any text, and a data set without `datasets`.
    """
    if max_samples is not None and max_samples < 1:
        raise InputError(f"`max_samples` must be at least 1, got {max_samples}")
    if is_data_set(str(file)):
        texts = read_data_set(str(file), column, field)
    else:
        texts = _read_file(Path(file), column, max_samples, field)
    if not texts:
        raise InputError(f"`{field}` must hold at least one text, got none in {file}")
    return texts[:max_samples]


def _read_file(path: Path, column: str | None, max_samples: int | None, field: str) -> list[str]:
    is_json = path.name.removesuffix(".gz").endswith(".jsonl")
    if is_json and column is None:
        raise InputError(f"`column` must name the field of {path} that holds the text, got none")
    texts: list[str] = []
    for number, line in enumerate(read_lines(path, field), start=1):
        where = f"{path}, line {number}"
        text = _text(json_row(line, where, field), column or "", where) if is_json else line.strip()
        texts += [text] if text else []
        if max_samples is not None and len(texts) == max_samples:
            break
    return texts


def read_lines(path: Path, field: str) -> Iterator[str]:
    """The lines of a text file, unpacked if its name ends in .gz.

    Raises `InputError`, which names `field`, if it cannot be read.
    """
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf-8") as file:
                yield from file
        else:
            with path.open(encoding="utf-8") as file:
                yield from file
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"`{field}` must be a readable text file, got {path}: {one_line(error)}") from error


def json_row(line: str, where: str, field: str) -> dict[str, Any]:
    """The JSON object in a line. Raises `InputError`, which names `field`, if it is none."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"`{field}` must be JSON in {where}: {one_line(error)}") from error
    if not isinstance(row, dict):
        raise InputError(f"`{field}` must be a JSON object in {where}, got {type(row).__name__}")
    return row


def _text(row: dict[str, Any], column: str, where: str) -> str:
    if not isinstance(row.get(column), str):
        raise InputError(f"`column` must be a text field of {where}, one of {', '.join(row)}, got {column!r}")
    return row[column].strip()
