"""One row of a table."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Row(NamedTuple):
    """Values by column, and the number of the row's first line (of a data set: of the row)."""

    values: Mapping[str, Any]
    line: int
