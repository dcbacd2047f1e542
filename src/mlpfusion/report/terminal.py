"""What the commands print for people: a progress bar on stderr, a table of the result on stdout."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mlpfusion.evaluate.approximation import BlockError
from mlpfusion.outcomes import Progress as ProgressCallback
from mlpfusion.record import Record


@contextmanager
def progress_bar(title: str) -> Iterator[ProgressCallback]:
    """A callback `(done, total, what)` that moves a bar on stderr; no output at all when stderr is not a terminal."""
    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("")
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)


def print_record(record: Record, out: str) -> None:
    """Prints what a compression did, layer by layer, and what it left."""
    console = Console(soft_wrap=True)
    console.print(_site_table(record))
    before, after = record.original, record.compressed
    console.print(
        f"{before.parameters:,} -> {after.parameters:,} parameters, {before.bytes:,} -> {after.bytes:,} bytes "
        f"({100 * after.bytes / before.bytes:.1f} %), {record.seconds:.1f} s"
    )
    console.print(
        f"[bold]{out}[/bold] is complete. `import mlpfusion`, then load it by any Auto class of transformers."
    )


def print_block_errors(errors: Sequence[BlockError]) -> None:
    """Prints the errors of compressed blocks, one a line."""
    table = Table(box=None, pad_edge=False)
    for column in ("block", "output error", "Adam kernel error", "trace ratio", "plain kernel error"):
        table.add_column(column, justify="left" if column == "block" else "right", no_wrap=True)
    for error in errors:
        values = error.output_error, error.adam_kernel_error, error.adam_trace_ratio, error.plain_kernel_error
        table.add_row(error.path, *(f"{value:.3f}" for value in values))
    Console().print(table)


def _site_table(record: Record) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("block", "width", "inertia left", "largest", "single"):
        table.add_column(column, justify="left" if column == "block" else "right", no_wrap=True)
    for site in record.sites:
        metrics = site.metrics
        inertia = f"{100 * metrics['inertia_ratio']:.1f} %" if "inertia_ratio" in metrics else "-"
        counts = [f"{metrics[name]:,}" if name in metrics else "-" for name in ("largest_cluster", "singletons")]
        table.add_row(site.path, f"{site.original_width:,} -> {site.size()}", inertia, *counts)
    return table
