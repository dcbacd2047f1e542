"""One row of a table."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Row(NamedTuple):
    """Values by column, and the first line of the row.

    In a data set `line` is the number of the row.
    """

    values: Mapping[str, Any]
    line: int
