"""Values of rows that hold texts to generate, checked one by one."""

from typing import Any

from mlpfusion.data.files.row import Row
from mlpfusion.data.files.rows import Table
from mlpfusion.errors import InputError, shown


def text_value(table: Table, row: Row, value: Any, name: str) -> str:
    """Returns `value`. Raises `InputError` for a blank text, and for anything but text."""
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"`{name}` must be text in {table.place(row)}, got {shown(value)}")
    return value


def reference_values(table: Table, row: Row, value: Any, name: str) -> tuple[str, ...]:
    """Reference texts in `value`: one text, or a list of them.

    A list is that of a JSON or Parquet file; a cell of CSV is always one text. Raises `InputError`
    without any reference, and for anything but text.
    """
    values = value if isinstance(value, list | tuple) else [value]
    if not values or values == [None] or values == [""]:
        raise InputError(f"`{name}` must hold at least one reference text in {table.place(row)}, got {shown(value)}")
    return tuple(text_value(table, row, text, name) for text in values)
