"""What the generators of the documents share."""

from collections.abc import Sequence

from mlpfusion.report.numbers import markdown_table


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of a header and rows."""
    return markdown_table([header, ["---"] * len(header), *rows])
