"""Rows of a labelled data set, as dictionaries: from a JSONL, CSV or TSV file, or from the Hub."""

import csv
from pathlib import Path
from typing import Any

from mlpfusion.errors import InputError
from mlpfusion.tasks.hub import load_data_set
from mlpfusion.tasks.text import json_row, read_lines

Rows = list[dict[str, Any]]
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_rows(path: Path, split: str) -> Rows:
    """The rows of a .jsonl, .csv or .tsv file (the latter with a header), .gz or not; `split` names it in errors.

    Values of CSV and TSV are text. Raises `InputError` for another kind of file, an unreadable one, or a broken row.
    """
    kind = Path(path.name.removesuffix(".gz")).suffix
    if kind == ".jsonl":
        lines = enumerate(read_lines(path, split), start=1)
        return [json_row(line, f"{path}, line {number}", split) for number, line in lines if line.strip()]
    if kind not in _DELIMITERS:
        raise InputError(f"`{split}` must be a .jsonl, .csv or .tsv file, .gz is fine, got {path}")
    try:
        rows = list(csv.DictReader(read_lines(path, split), delimiter=_DELIMITERS[kind], strict=True))
    except csv.Error as error:
        raise InputError(f"`{split}` must be a table with a header, {path} is not: {error}") from error
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise InputError(f"`{split}` must have as many fields in every row, row {number} of {path} has not")
    return rows


def hub_rows(dataset: str, config: str, split: str) -> Rows:
    """The rows of one split of a Hub data set, downloaded or cached by `datasets`.

    Raises `InputError` as `load_data_set` does.
    """
    options: dict[str, Any] = {"field": "task", "local": "in MLPFUSION_DATA", "name": f"{dataset} {config} {split}"}
    return [dict(row) for row in load_data_set(dataset, config, split, **options)]
