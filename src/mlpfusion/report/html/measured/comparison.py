"""The part of the page on a comparison of methods, as `compare` makes it."""

import statistics
from xml.etree.ElementTree import Element

from mlpfusion.report.comparison import COLUMNS, ErrorColumn, comparison_tables, labels_of
from mlpfusion.report.html.blocks import code, figure, figures, paragraph, section, table, versions_table
from mlpfusion.report.html.charts import Bar, bar_chart
from mlpfusion.report.html.measured.records import Comparison

_DRAWN = ("output_error", "block_output_error", "adam_kernel_error")


def comparison_title(record: Comparison) -> str:
    """Title of the part."""
    return f"Methods on {record.model}, one layer cut at a time"


def comparison_sections(record: Comparison) -> list[Element]:
    """Content of the part: settings, a bar a method, and every table."""
    seeds = ", ".join(map(str, record.seeds))
    settings = (
        f"Layers {record.layers} at {100 * record.keep_ratio:g} %, one at a time with the others as they were; errors "
        f"on {record.samples:,} texts of {record.data}, seeds {seeds}."
    )
    sizes, *tables = comparison_tables(record.rows)
    return [
        section("What was compared", paragraph(settings), table(sizes)),
        section("Errors", figures(*(_means(record, COLUMNS[name]) for name in _DRAWN)), *map(table, tables)),
        section("How it was made", code("mlpfusion compare MODEL --data FILE"), versions_table(record.versions)),
    ]


def _means(record: Comparison, column: ErrorColumn) -> Element:
    """One bar a method: the mean over layers and seeds."""
    bars = []
    for label in labels_of(record.rows):
        mean = statistics.mean(column.read(row.error) for row in record.rows if row.label == label)
        bars.append(Bar(label, mean, f"{mean:.3f}"))
    title = f"{column.title[0].upper()}{column.title[1:]}"
    return figure(title, bar_chart(title, bars), "mean over layers and seeds")
