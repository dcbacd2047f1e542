"""What the commands print for people on stdout: a table of the result, and what to do next."""

import shlex
import statistics
from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from mlpfusion.measure.approximation import BlockError
from mlpfusion.record import Record
from mlpfusion.report.comparison import AUTHORS_COLUMNS, comparison_table, values
from mlpfusion.report.console import PlainConsole, bold, wide_console

# Numbers of `BlockError` -> short title.
_SHORT = {
    "output_error": "MLP",
    "block_output_error": "layer",
    "adam_kernel_error": "Adam",
    "adam_trace_ratio": "trace",
    "plain_kernel_error": "plain",
}
_WITH_DEVIATION = ("output_error", "block_output_error", "adam_kernel_error")
_LEGEND = (
    "MLP, layer: relative output error. Adam, plain: relative Frobenius error of the kernel; trace: that of the Adam "
    "kernel, after / before."
)
# Relative output error of a layer from which on a model should not be used as it is.
_LARGE_ERROR = 0.5
_ADVICE = (
    "The cut changes what a layer gives out by more than half: fine-tune the model (`mlpfusion tune`) before it is "
    "used, keep more neurons, or leave layers out (`--layers last:N`)."
)


def print_record(record: Record, model: str, out: str) -> None:
    """Prints what the compression of `model` did, layer by layer, what it left in `out`, and what comes next."""
    console = PlainConsole()
    console.print(_site_table(record))
    if record.budget is not None:
        _print_budget(console, record.budget)
    before, after = record.original, record.compressed
    console.print(
        f"{before.parameters:,} -> {after.parameters:,} parameters, {before.bytes:,} -> {after.bytes:,} bytes "
        f"({100 * after.bytes / before.bytes:.1f} %), {record.seconds:.1f} s"
    )
    told = " is complete. `import mlpfusion`, then load it by any Auto class of transformers."
    console.print(Text.assemble(bold(out), told))
    source, target = shlex.quote(model), shlex.quote(out)
    console.print(
        f"Next: `mlpfusion measure {source} {target} --data TEXTS` shows what the cut changed, "
        f"`mlpfusion tune {target} TUNED --task sst2` (or --train FILE) fine-tunes it.",
        highlight=False,
    )


def print_comparison(record: dict[str, Any]) -> None:
    """Prints one table a layer: methods, what they leave of the block, and their errors over the seeds."""
    console = wide_console()
    names = list(dict.fromkeys(row["label"] for row in record["rows"]))
    for path in dict.fromkeys(row["error"]["path"] for row in record["rows"]):
        sizes = {row["label"]: row["size"] for row in record["rows"] if row["error"]["path"] == path}
        table = _table((path, "block", *_SHORT.values()))
        for name in names:
            found = [values(record, name, path, column) for column in _SHORT]
            numbers = [_over_seeds(one, column) for one, column in zip(found, _SHORT, strict=True)]
            table.add_row(name, sizes[name], *numbers)
        console.print(table)
        console.print()
    console.print(_LEGEND)
    if record["rows"][0]["error"]["authors"] is not None:
        for column, title in AUTHORS_COLUMNS.items():
            console.print(f"\n{title}\n{comparison_table(record, column)}", soft_wrap=True)


def print_block_errors(errors: Sequence[BlockError]) -> None:
    """Prints the errors of compressed blocks, one a line."""
    table = _table(("block", *_SHORT.values()))
    for error in errors:
        table.add_row(error.path, *(f"{getattr(error, column):.3f}" for column in _SHORT))
    console = wide_console()
    console.print(table)
    console.print(_LEGEND)
    if max(error.block_output_error for error in errors) > _LARGE_ERROR:
        console.print(_ADVICE)
    if any(error.authors is not None for error in errors):
        table = _table(("authors' code", "output error", "kernel error (prob0)"))
        for error in errors:
            if error.authors is not None:
                table.add_row(error.path, f"{error.authors.output:.4g}", f"{error.authors.kernel:.4g}")
        console.print(table)


def _over_seeds(numbers: Sequence[float], column: str) -> str:
    """The mean, in the columns that matter most with the deviation in brackets."""
    mean = f"{statistics.mean(numbers):.3f}"
    return f"{mean} ({statistics.stdev(numbers):.3f})" if len(numbers) > 1 and column in _WITH_DEVIATION else mean


def _table(columns: Sequence[str]) -> Table:
    """A table without lines; the first column to the left, numbers to the right."""
    table = Table(box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=index > 0)
    return table


def _site_table(record: Record) -> Table:
    table = _table(("block", "width", "inertia left", "largest", "single"))
    for site in record.sites:
        metrics = site.metrics
        inertia = f"{100 * metrics['inertia_ratio']:.1f} %" if "inertia_ratio" in metrics else "-"
        counts = [f"{metrics[name]:,}" if name in metrics else "-" for name in ("largest_cluster", "singletons")]
        table.add_row(site.path, f"{site.original_width:,} -> {site.size()}", inertia, *counts)
    return table


def _print_budget(console: PlainConsole, budget: dict[str, Any]) -> None:
    """What each layer got, and what its curve says that it costs."""
    table = _table(("budget", "width", "share", "error"))
    for site in budget["sites"]:
        table.add_row(site["path"], f"{site['width']:,}", f"{100 * site['share']:.1f} %", f"{site['error']:.3g}")
    console.print(table)
    kept = (
        f"{budget['kept']:,} of {budget['total']:,} {budget['unit']} ({100 * budget['kept'] / budget['total']:.2f} %)"
    )
    console.print(f"Error: {budget['measure']}. Kept {kept}, asked for {budget['budget']}.")
