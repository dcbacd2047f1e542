"""One row of a table."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One row: its values by column, and the line of the file that it begins on; of a data set, its number."""

    values: Mapping[str, Any]
    line: int
