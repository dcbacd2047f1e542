"""Rows of a table, labelled or not: from a file or a data set of the Hub."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlpfusion.data.files.hub import PREFIX, file_rows, is_data_set, load_data_set
from mlpfusion.data.files.json_text import json_lines, json_rows
from mlpfusion.data.files.lines import capped, check_num_lines
from mlpfusion.data.files.row import Row
from mlpfusion.data.files.tables import csv_rows, tsv_rows
from mlpfusion.errors import InputError

_READERS = {".jsonl": json_lines, ".ndjson": json_lines, ".json": json_rows, ".csv": csv_rows, ".tsv": tsv_rows}


@dataclass(frozen=True)
class Table:
    """All rows of a file or data set; `name` is what errors call it, `unit` what `Row.line` counts."""

    rows: Sequence[Row]
    name: str
    unit: str = "line"

    def place(self, row: Row) -> str:
        """Where a row stands, for errors."""
        return f"{self.name}, {self.unit} {row.line}"


def file_kind(file: Path | str) -> str:
    """The suffix of a file in small letters, without .gz."""
    return Path(Path(file).name.lower().removesuffix(".gz")).suffix


def short_name(file: Path | str) -> str:
    """What a record calls a file: its name without the folder; a data set of the Hub as it was given."""
    return str(file) if str(file).startswith(PREFIX) else Path(file).name


def has_columns(file: Path | str) -> bool:
    """Whether `file` is a table, of which a column must be named, and not plain text."""
    return is_data_set(str(file)) or file_kind(file) in (*_READERS, ".parquet")


def read_table(file: Path | str, field: str) -> Table:
    """All rows of a file or data set. Raises `InputError` as `iterate_rows` does."""
    if is_data_set(str(file)):
        return Table(list(iterate_rows(file, field)), str(file), "row")
    if file_kind(file) in _READERS:
        check_num_lines(Path(file), field)
    return Table(list(iterate_rows(file, field)), str(file))


def iterate_rows(file: Path | str, field: str) -> Iterator[Row]:
    """The rows of a .jsonl, .ndjson, .json, .csv, .tsv or .parquet file, .gz or not, or of a `hub:` data set.

    Values of CSV and TSV, which begin with a header, are text. Raises `InputError`, which names `field` and the line,
    for another kind of file, one that cannot be read, a broken row, and more than `MAX_ROWS` of them.
    """
    if is_data_set(str(file)):
        return capped(_numbered(file_rows(str(file), field)), file, field)
    kind = file_kind(file)
    if kind not in _READERS:
        allowed = f"a {', '.join(_READERS)} or .parquet file, .gz is fine"
        raise InputError(f"`{field}` must be {allowed}, or hub:owner/name, got {file}")
    return _READERS[kind](Path(file), field)


def hub_table(dataset: str, config: str, split: str) -> Table:
    """The rows of one split of a Hub data set, downloaded or cached by `datasets`.

    Raises `InputError` as `load_data_set` does.
    """
    name = f"{dataset} {config} {split}"
    found = load_data_set(dataset, config, split, field="task", local="in MLPFUSION_DATA", name=name)
    return Table(list(capped(_numbered(found), name, "task")), name, "row")


def _numbered(rows: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    return (Row(row, number) for number, row in enumerate(rows, start=1))
