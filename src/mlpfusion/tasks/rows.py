"""Rows of a labelled data set, as dictionaries: from a JSONL, CSV or TSV file, or from the Hub."""

import csv
import json
from pathlib import Path
from typing import Any

from mlpfusion.errors import InputError
from mlpfusion.tasks.text import read_lines

Rows = list[dict[str, Any]]
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_rows(path: Path, split: str) -> Rows:
    """The rows of a .jsonl, .csv or .tsv file (the latter with a header), .gz or not; `split` names it in errors.

    Values of CSV and TSV are text. Raises `InputError` for another kind of file, an unreadable one, or a broken row.
    """
    kind = Path(path.name.removesuffix(".gz")).suffix
    if kind == ".jsonl":
        return [
            _json_row(line, f"{path}, line {number}") for number, line in enumerate(read_lines(path), 1) if line.strip()
        ]
    if kind not in _DELIMITERS:
        raise InputError(f"`{split}` must be a .jsonl, .csv or .tsv file, .gz is fine, got {path}")
    try:
        rows = list(csv.DictReader(read_lines(path), delimiter=_DELIMITERS[kind], strict=True))
    except csv.Error as error:
        raise InputError(f"`{split}` must be a table with a header, {path} is not: {error}") from error
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise InputError(f"`{split}` must have as many fields in every row, row {number} of {path} has not")
    return rows


def hub_rows(dataset: str, config: str, split: str) -> Rows:
    """The rows of one split of a Hub data set, downloaded or cached by `datasets`.

    Raises `InputError` if that package is not installed, or if there is no such data set or no way to reach it.
    """
    try:
        from datasets import load_dataset  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError("`task` must be in MLPFUSION_DATA or `datasets` be installed: pip install datasets") from error
    try:
        return [dict(row) for row in load_dataset(dataset, config, split=split)]
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"`task` must be in MLPFUSION_DATA or on the Hub, {dataset} {config} {split}: {reason}"
        ) from error


def _json_row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"`data` must be JSON in {where}: {error}") from error
    if not isinstance(row, dict):
        raise InputError(f"`data` must be a JSON object in {where}, got {type(row).__name__}")
    return row
