"""Comparisons of methods as JSON data and Markdown tables (paper, Table 1)."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mlpfusion.measure.approximation import BlockError, block_error_from_dict
from mlpfusion.measure.comparison import ComparisonRow
from mlpfusion.measure.whole_model import ModelError
from mlpfusion.methods.names import method_from_name, method_label
from mlpfusion.report.cells import Table
from mlpfusion.report.numbers import mean_with_deviation


@dataclass(frozen=True)
class ErrorColumn:
    """One number of a `BlockError` and its title."""

    title: str
    read: Callable[[BlockError], float]


COLUMNS = {
    "output_error": ErrorColumn("output error of the MLP, relative", lambda error: error.output_error),
    "output_absolute": ErrorColumn("output error of the MLP, absolute", lambda error: error.output_absolute),
    "block_output_error": ErrorColumn("output error of the layer, relative", lambda error: error.block_output_error),
    "block_output_absolute": ErrorColumn(
        "output error of the layer, absolute", lambda error: error.block_output_absolute
    ),
    "adam_kernel_error": ErrorColumn("Adam kernel error, relative", lambda error: error.adam_kernel_error),
    "adam_kernel_error_without_b2": ErrorColumn(
        "Adam kernel error without b2, relative", lambda error: error.adam.without_down_bias.relative
    ),
    "adam_kernel_absolute": ErrorColumn("Adam kernel error, absolute", lambda error: error.adam.total.absolute),
    "adam_kernel_cosine": ErrorColumn("Adam kernel, cosine", lambda error: error.adam.total.cosine),
    "adam_trace_ratio": ErrorColumn("Adam kernel, trace after / before", lambda error: error.adam_trace_ratio),
    "plain_kernel_error": ErrorColumn("plain kernel error, relative", lambda error: error.plain_kernel_error),
}


def _authors_output(error: BlockError) -> float:
    assert error.authors is not None
    return error.authors.output


def _authors_kernel(error: BlockError) -> float:
    assert error.authors is not None
    return error.authors.kernel


def _whole_model(error: BlockError) -> ModelError:
    assert error.whole_model is not None
    return error.whole_model


# Of the whole model with this block alone replaced; not in older records.
HIDDEN = ErrorColumn("error of the model's last hidden state, relative", lambda error: _whole_model(error).hidden_error)
LOSS = ErrorColumn("loss of the model, increase in nats a token", lambda error: _whole_model(error).loss_increase)
# Only in comparisons with `--authors`.
AUTHORS_COLUMNS = {
    "authors_output": ErrorColumn("authors' output error: last batch, padding included, absolute", _authors_output),
    "authors_kernel": ErrorColumn("authors' kernel error: prob0, absolute", _authors_kernel),
}


def model_columns(error: BlockError) -> dict[str, ErrorColumn]:
    """Columns of the whole model by short title: those that an error has."""
    if error.whole_model is None:
        return {}
    return {"hidden": HIDDEN} | ({} if error.whole_model.loss_before is None else {"loss": LOSS})


@dataclass(frozen=True)
class LabelledRow:
    """One row of a comparison: the fields shown in tables and charts."""

    label: str
    kind: str
    size: str
    original_parameters: int
    parameters: int
    nonzero_parameters: int
    error: BlockError


def comparison_record(rows: Sequence[ComparisonRow], run: dict[str, Any]) -> dict[str, Any]:
    """Joins `run` (model, data, options, versions) and the rows to JSON data."""
    return {
        **run,
        "rows": [asdict(row) | {"label": method_label(method_from_name(row.method, row.options))} for row in rows],
    }


def labelled_rows(record: dict[str, Any]) -> list[LabelledRow]:
    """Reads the rows of a record."""
    return [
        LabelledRow(
            label=row["label"],
            kind=row["kind"],
            size=row["size"],
            original_parameters=row["original_parameters"],
            parameters=row["parameters"],
            nonzero_parameters=row["nonzero_parameters"],
            error=block_error_from_dict(row["error"]),
        )
        for row in record["rows"]
    ]


def comparison_table(record: dict[str, Any], column: str) -> str:
    """Markdown: methods x layers, mean and standard deviation over the seeds.

    `column` is a key of `COLUMNS` or `AUTHORS_COLUMNS`. The deviation is 0 for one seed, and for
    methods without randomness.
    """
    return _table(labelled_rows(record), (COLUMNS | AUTHORS_COLUMNS)[column]).markdown()


def size_table(record: dict[str, Any]) -> str:
    """Markdown: size of the compressed block by method, stored and trained parameters."""
    return _size_table(labelled_rows(record)).markdown()


def comparison_markdown(record: dict[str, Any]) -> str:
    """All tables, each under a heading; with the authors' numbers if measured."""
    tables = comparison_tables(labelled_rows(record))
    return "\n\n".join(f"## {table.caption}\n\n{table.markdown()}" for table in tables) + "\n"


def comparison_tables(rows: Sequence[LabelledRow]) -> list[Table]:
    """Sizes, and a table of every number that was measured."""
    columns = [*COLUMNS.values(), *model_columns(rows[0].error).values()]
    columns = [*columns, *(AUTHORS_COLUMNS.values() if rows[0].error.authors is not None else ())]
    return [_size_table(rows), *(_table(rows, column) for column in columns)]


def labels_of(rows: Sequence[LabelledRow]) -> list[str]:
    """Labels of the methods, each once, in the order of the rows."""
    return list(dict.fromkeys(row.label for row in rows))


def paths_of(rows: Sequence[LabelledRow]) -> list[str]:
    """Paths of the blocks, each once, by layer."""
    blocks = sorted({(row.error.layer, row.error.path) for row in rows})
    return [path for _, path in blocks]


def over_seeds(rows: Sequence[LabelledRow], label: str, path: str, column: ErrorColumn) -> list[float]:
    """One number per seed: `column` of the method `label` at the block `path`."""
    return [column.read(row.error) for row in rows if (row.label, row.error.path) == (label, path)]


def _table(rows: Sequence[LabelledRow], column: ErrorColumn) -> Table:
    paths = paths_of(rows)
    lines = [
        (label, *(mean_with_deviation(over_seeds(rows, label, path, column)) for path in paths))
        for label in labels_of(rows)
    ]
    return Table(_heading(column.title), ("method", *paths), tuple(lines))


def _size_table(rows: Sequence[LabelledRow]) -> Table:
    lines = []
    for row in {(row.label, row.original_parameters): row for row in rows}.values():
        counts = [f"{count:,}" for count in (row.parameters, row.nonzero_parameters, row.original_parameters)]
        lines.append((row.label, row.kind, row.size, *counts))
    return Table(_heading("sizes"), ("method", "kind", "block", "parameters", "trained", "before"), tuple(lines))


def _heading(title: str) -> str:
    return f"{title[0].upper()}{title[1:]}"
