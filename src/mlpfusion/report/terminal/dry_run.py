"""Prints what a run would write."""

from rich.text import Text

from mlpfusion.compression.preview.dry_run import DryRun, PlannedSite
from mlpfusion.report.terminal.console import PlainConsole, bold
from mlpfusion.report.terminal.results import after_fold_words, sizes_words, streamed_words, table_of


def print_dry_run(run: DryRun, out: str, *, is_streamed: bool) -> None:
    """Prints the sizes, the memory, and what only a run can tell."""
    console, table = PlainConsole(), table_of(("block", "width"))
    for site in run.sites:
        table.add_row(site.path, f"{site.original_width:,} -> {_becomes(site)}")
    console.print(table)
    if run.compressed is None:
        console.print(
            f"{run.original.parameters:,} parameters, {run.original.bytes:,} bytes before. Sizes after it are known "
            f"once the weights are read: {run.unknown}."
        )
    else:
        console.print(sizes_words(run.original, run.compressed))
    if is_streamed and run.streamed_bytes is not None:
        console.print(streamed_words(run.streamed_bytes), highlight=False)
    else:
        console.print(f"memory: no estimate for a model that is held whole{_if_streamed(run)}", highlight=False)
    console.print("time: no estimate", highlight=False)
    if run.compressed is not None or run.no_stock_form is not None:
        console.print(after_fold_words(run.no_stock_form), highlight=False)
    console.print(
        Text.assemble(
            "Dry run: nothing was written to ", bold(out), ". Not checked: whether the weights are finite, and what "
            "takes a run of the model."
        )
    )  # fmt: skip


def _becomes(site: PlannedSite) -> str:
    if site.width is None:
        return "?"
    if site.nonzero is not None:
        return f"{100 * site.nonzero:g} % of its entries"
    return f"{site.width:,}" if site.rank is None else f"rank {site.rank}"


def _if_streamed(run: DryRun) -> str:
    if run.streamed_bytes is None:
        return ""
    return f"; with --stream at most {run.streamed_bytes / 2**30:.1f} GiB are expected"
