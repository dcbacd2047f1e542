"""Rows of tables, from a file or a data set of the Hub."""

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
    """All rows of a file or data set, with its name for messages.

    `unit` is the unit of `Row.line`: line or row.
    """

    rows: Sequence[Row]
    name: str
    unit: str = "line"

    def place(self, row: Row) -> str:
        """Place of a row for messages, as in `train.csv, line 7`."""
        return f"{self.name}, {self.unit} {row.line}"


def check_not_empty(table: Table, field: str) -> None:
    """Raises `InputError` for a table without rows."""
    if not table.rows:
        raise InputError(f"`{field}` must hold at least one row, got none in {table.name}")


def column_value(table: Table, row: Row, column: str, option: str) -> Any:
    """Value of a row in `column`.

    Raises `InputError` for a missing column; the message names `option`, by which the column was
    chosen.
    """
    if column not in row.values:
        known = ", ".join(row.values)
        raise InputError(f"`{option}` must be a column of {table.place(row)}, one of {known}, got {column!r}")
    return row.values[column]


def file_kind(file: Path | str) -> str:
    """Suffix of a file in small letters, without .gz.

    >>> file_kind("Train.CSV.gz")
    '.csv'
    """
    return Path(Path(file).name.lower().removesuffix(".gz")).suffix


def short_name(file: Path | str) -> str:
    """File name without the folder, for records; `hub:` names stay as given.

    >>> short_name("/home/me/texts.txt"), short_name("hub:imdb:test")
    ('texts.txt', 'hub:imdb:test')
    """
    return str(file) if str(file).startswith(PREFIX) else Path(file).name


def has_columns(file: Path | str) -> bool:
    """True for tables, False for plain text."""
    return is_data_set(str(file)) or file_kind(file) in (*_READERS, ".parquet")


def read_table(file: Path | str, field: str) -> Table:
    """Reads all rows of a file or data set.

    Raises `InputError` for an unknown kind of file, a broken row, and more than `MAX_ROWS` rows.

    >>> _ = (folder / "train.csv").write_text("text,label\\ngood,1\\n")
    >>> read_table(folder / "train.csv", "train").rows[0].values
    {'text': 'good', 'label': '1'}
    """
    if is_data_set(str(file)):
        return Table(list(iterate_rows(file, field)), str(file), "row")
    if file_kind(file) in _READERS:
        check_num_lines(Path(file), field)
    return Table(list(iterate_rows(file, field)), str(file))


def iterate_rows(file: Path | str, field: str) -> Iterator[Row]:
    """Yields the rows of a file (.gz too) or a `hub:` data set.

    Kinds of files: .jsonl, .ndjson, .json, .csv, .tsv, .parquet. CSV and TSV begin with a header;
    their values are text. Raises `InputError` for another kind, an unreadable file, a broken row,
    and more than `MAX_ROWS` rows; the message names `field` and the line.
    """
    if is_data_set(str(file)):
        return capped(_numbered(file_rows(str(file), field)), file, field)
    kind = file_kind(file)
    if kind not in _READERS:
        allowed = f"a {', '.join(_READERS)} or .parquet file, .gz is fine"
        raise InputError(f"`{field}` must be {allowed}, or hub:owner/name, got {file}")
    return _READERS[kind](Path(file), field)


def hub_table(dataset: str, config: str, split: str) -> Table:
    """Reads one split of a Hub data set, downloaded or cached by `datasets`.

    Raises `InputError` if `datasets` is not installed, or the Hub is out of reach.
    """
    name = f"{dataset} {config} {split}"
    rows = load_data_set(dataset, config, split, field="task", local="in MLPFUSION_DATA", name=name)
    return Table(list(capped(_numbered(rows), name, "task")), name, "row")


def _numbered(rows: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    return (Row(row, number) for number, row in enumerate(rows, start=1))
