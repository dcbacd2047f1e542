"""One row of a table."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Row(NamedTuple):
    """Values by column, and the row's first line (in a data set its number)."""

    values: Mapping[str, Any]
    line: int
