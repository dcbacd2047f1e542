"""The comparison of methods as JSON data and as Markdown tables (paper, Table 1)."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import reduce
from operator import getitem
from typing import Any

from mlpfusion.measure.comparison import ComparisonRow
from mlpfusion.methods import METHOD_TYPES, method_label
from mlpfusion.report.numbers import markdown_table, mean_and_deviation

# Number of `BlockError` -> title; a dot leads into what it holds.
COLUMNS = {
    "output_error": "output error of the MLP, relative",
    "output_absolute": "output error of the MLP, absolute",
    "block_output_error": "output error of the layer, relative",
    "block_output_absolute": "output error of the layer, absolute",
    "adam_kernel_error": "Adam kernel error, relative",
    "adam.without_down_bias.relative": "Adam kernel error without b2, relative",
    "adam.total.absolute": "Adam kernel error, absolute",
    "adam.total.cosine": "Adam kernel, cosine",
    "adam_trace_ratio": "Adam kernel, trace after / before",
    "plain_kernel_error": "plain kernel error, relative",
}
AUTHORS_COLUMNS = {
    "authors.output": "authors' output error: last batch, padding included, absolute",
    "authors.kernel": "authors' kernel error: prob0, absolute",
}


def comparison_record(rows: Sequence[ComparisonRow], run: dict[str, Any]) -> dict[str, Any]:
    """The rows with what they were measured on, as JSON data."""
    return {
        **run,
        "rows": [asdict(row) | {"label": method_label(METHOD_TYPES[row.method](**row.options))} for row in rows],
    }


def comparison_table(record: dict[str, Any], column: str) -> str:
    """Markdown: methods x layers, mean and standard deviation over the seeds (0 where a method is not random)."""
    layers = sorted({(row["error"]["layer"], row["error"]["path"]) for row in record["rows"]})
    lines = [["method", *(path for _, path in layers)], ["---"] * (len(layers) + 1)]
    for name in dict.fromkeys(row["label"] for row in record["rows"]):
        lines.append([name, *(mean_and_deviation(values(record, name, path, column)) for _, path in layers)])
    return markdown_table(lines)


def size_table(record: dict[str, Any]) -> str:
    """Markdown: what each method leaves of a block, and how many parameters of it are stored and trained."""
    lines = [["method", "kind", "block", "parameters", "trained", "before"], ["---"] * 6]
    for row in {(row["label"], row["original_parameters"]): row for row in record["rows"]}.values():
        numbers = [f"{row[name]:,}" for name in ("parameters", "nonzero_parameters", "original_parameters")]
        lines.append([row["label"], row["kind"], row["size"], *numbers])
    return markdown_table(lines)


def comparison_markdown(record: dict[str, Any]) -> str:
    """All tables, each under a heading; those of the authors' numbers only where they were asked for."""
    with_authors = record["rows"][0]["error"]["authors"] is not None
    columns = COLUMNS | (AUTHORS_COLUMNS if with_authors else {})
    tables = {"sizes": size_table(record)} | {t: comparison_table(record, name) for name, t in columns.items()}
    return "\n\n".join(f"## {title[0].upper()}{title[1:]}\n\n{table}" for title, table in tables.items()) + "\n"


def values(record: dict[str, Any], name: str, path: str, column: str) -> list[float]:
    """One number a seed: that of `column` for the method labelled `name` at the block `path`."""
    rows = [row["error"] for row in record["rows"] if row["label"] == name and row["error"]["path"] == path]
    return [reduce(getitem, column.split("."), row) for row in rows]
