"""Prints results for people: tables, and the next command to type."""

import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from mlpfusion.checkpoint.stage import GENERATED
from mlpfusion.measure.approximation import BlockError
from mlpfusion.measure.comparison import CheckpointErrors
from mlpfusion.measure.evaluation.text import Evaluation
from mlpfusion.measure.whole_model import ModelError
from mlpfusion.record import Record, Size
from mlpfusion.report.comparison import (
    AUTHORS_COLUMNS,
    COLUMNS,
    comparison_table,
    labelled_rows,
    labels_of,
    model_columns,
    over_seeds,
    paths_of,
)
from mlpfusion.report.numbers import deviation
from mlpfusion.report.terminal.console import PlainConsole, bold, wide_console
from mlpfusion.report.terminal.scores import example_texts
from mlpfusion.tune.record import DistillRecord, DistillRun, TuneRecord

# Short title -> column: five numbers fit beside the block in 100 columns of text.
_SHORT = {
    "MLP": COLUMNS["output_error"],
    "layer": COLUMNS["block_output_error"],
    "Adam": COLUMNS["adam_kernel_error"],
    "trace": COLUMNS["adam_trace_ratio"],
    "plain": COLUMNS["plain_kernel_error"],
}
_WITH_DEVIATION = ("MLP", "layer", "Adam")
_LEGEND = (
    "MLP, layer: relative output error. Adam, plain: relative Frobenius error of the kernel; trace: that of the Adam "
    "kernel, after / before."
)
# Relative output error of a layer above which a model should not be used untrained. A round number, not tuned: the
# layers of MiniLM at 25 % have 0.1 to 0.9.
_LARGE_ERROR = 0.5
_ADVICE = (
    "The cut changes what a layer gives out by more than half: fine-tune the model (`mlpfusion tune`) before it is "
    "used, keep more neurons, or leave layers out (`--layers last:N`)."
)


def print_record(record: Record, model: str, out: str) -> None:
    """Prints sizes layer by layer and in total, and the next commands."""
    console = PlainConsole()
    console.print(_site_table(record))
    if record.row is not None:
        console.print(f"MLPs found by their shapes, proven by a run: {row_in_words(record.row)}", highlight=False)
    if record.left_out:
        console.print(left_out_words(record.left_out), highlight=False)
    if record.budget is not None:
        _print_budget(console, record.budget)
    before, after = record.original, record.compressed
    console.print(f"{sizes_words(before, after)}, {record.seconds:.1f} s")
    if record.expected_peak_bytes is not None:
        console.print(streamed_words(record.expected_peak_bytes), highlight=False)
    if record.divergence is not None:
        console.print(f"predictions moved by {record.divergence:.2f} nats a token", highlight=False)
    console.print(after_fold_words(record.no_stock_form), highlight=False)
    loading = " is complete. `import mlpfusion`, then load it by any Auto class of transformers."
    console.print(Text.assemble(bold(out), loading))
    source, target = shlex.quote(model), shlex.quote(out)
    has_experts = any(site.kind == "narrow-experts" for site in record.sites)
    if record.divergence is None and not has_experts:
        looking = f"`mlpfusion measure {source} {target} --data TEXTS` shows what the cut changed"
        training = f"`mlpfusion tune {target} TUNED --task sst2` (or --train FILE) fine-tunes it"
    else:
        looking = f"`mlpfusion evaluate {target} --data TEXTS` gives the perplexity"
        training = f"`mlpfusion distill {source} {target} DISTILLED --data TEXTS --objective logits` trains it"
    console.print(f"Next: {looking}, {training}.", highlight=False)


def sizes_words(before: Size, after: Size) -> str:
    """Parameters and bytes before and after."""
    return (
        f"{before.parameters:,} -> {after.parameters:,} parameters, {before.bytes:,} -> {after.bytes:,} bytes "
        f"({100 * after.bytes / before.bytes:.1f} %)"
    )


def streamed_words(expected_bytes: int) -> str:
    """How much memory a streamed run takes."""
    return f"streamed, a block at a time: at most {expected_bytes / 2**30:.1f} GiB of memory expected"


def after_fold_words(no_stock_form: str | None) -> str:
    """What the folded model will be."""
    if no_stock_form is None:
        return "After folding: a stock model, which plain transformers and other engines load."
    return f"After folding: no stock model: {no_stock_form}. See `mlpfusion export --help`: padding, graphs."


def left_out_words(layers: Sequence[str]) -> str:
    """Which stacks are not cut, and how they would be."""
    choices = "text, vision, audio, experts, shared, dense, all, or a pattern"
    return f"Left out: {', '.join(layers)}. `--stacks` chooses: {choices}."


def row_in_words(row: dict[str, Any]) -> str:
    """The maps of every stack of a row in one line.

    >>> row_in_words({"stacks": [{"layer": "h.{}", "up": "fc1", "gate": None, "down": "fc2", "activation": "act"}]})
    'h.{}: fc1 -> act -> fc2'
    """
    ups = [
        stack["up"] if stack["gate"] in (None, stack["up"]) else f"{stack['gate']}, {stack['up']}"
        for stack in row["stacks"]
    ]
    return "; ".join(
        f"{stack['layer']}: {up} -> {stack['activation']} -> {stack['down']}"
        for up, stack in zip(ups, row["stacks"], strict=True)
    )


def print_comparison(record: dict[str, Any]) -> None:
    """Prints one table per layer: methods, sizes, errors over the seeds."""
    console, rows = wide_console(), labelled_rows(record)
    for path in paths_of(rows):
        sizes = {row.label: row.size for row in rows if row.error.path == path}
        columns = _SHORT | model_columns(rows[0].error)
        table = table_of((path, "block", *columns))
        for label in labels_of(rows):
            cells = [_cell(over_seeds(rows, label, path, column), title) for title, column in columns.items()]
            table.add_row(label, sizes[label], *cells)
        console.print(table)
        console.print()
    console.print(_legend(rows[0].error))
    if rows[0].error.authors is not None:
        for name, column in AUTHORS_COLUMNS.items():
            console.print(f"\n{column.title}\n{comparison_table(record, name)}", soft_wrap=True)


def print_checkpoint_errors(found: CheckpointErrors) -> None:
    """Prints the errors of compressed blocks, one per line, and those of the whole model."""
    errors, whole = found.blocks, found.whole_model
    columns = _SHORT | model_columns(errors[0])
    table = table_of(("block", *columns))
    for error in errors:
        table.add_row(error.path, *(f"{column.read(error):.3f}" for column in columns.values()))
    console = wide_console()
    console.print(table)
    console.print(_legend(errors[0]))
    told = f"All blocks together: last hidden state off by {whole.hidden_error:.3f} of its size"
    console.print(told + _loss_change(whole) + ".", highlight=False)
    if max(error.block_output_error for error in errors) > _LARGE_ERROR:
        console.print(_ADVICE)
    if any(error.authors is not None for error in errors):
        table = table_of(("authors' code", "output error", "kernel error (prob0)"))
        for error in errors:
            if error.authors is not None:
                table.add_row(error.path, f"{error.authors.output:.4g}", f"{error.authors.kernel:.4g}")
        console.print(table)


def _legend(error: BlockError) -> str:
    """What the short titles mean, those of the whole model where they are there."""
    hidden = " hidden: that of the model's last hidden state, this block alone replaced"
    more = {"hidden": hidden, "loss": "; loss: the increase, in nats a token"}
    told = "".join(more[title] for title in model_columns(error))
    return _LEGEND + (f"{told}." if told else "")


def _loss_change(whole: ModelError) -> str:
    return "" if whole.loss_before is None else f", loss {whole.loss_before:.3f} -> {whole.loss_after:.3f} nats a token"


def print_evaluation(evaluation: Evaluation) -> None:
    """Prints the perplexity with its interval, and on what it was measured."""
    console = PlainConsole()
    for words in perplexity_words(evaluation):
        console.print(words, highlight=False)


def perplexity_words(evaluation: Evaluation) -> tuple[str, str]:
    """The perplexity with its interval; on what it was measured."""
    found, text = evaluation.result, evaluation.text
    interval = "" if found.low is None else f" (95 % interval {found.low:.4g} to {found.high:.4g})"
    return (
        f"perplexity {found.perplexity:.4g}{interval}, loss {found.loss:.4f} nats a token",
        f"{found.tokens:,} tokens of {text.file}, windows of {text.window} tokens: {found.windows:,}; "
        f"{evaluation.parameters:,} parameters, {evaluation.dtype}, {evaluation.seconds:.1f} s",
    )


def _cell(numbers: Sequence[float], title: str) -> str:
    """Mean over the seeds, in the main columns with the deviation in brackets."""
    mean = f"{statistics.mean(numbers):.3f}"
    return f"{mean} ({deviation(numbers):.3f})" if len(numbers) > 1 and title in _WITH_DEVIATION else mean


def table_of(columns: Sequence[str]) -> Table:
    """Table without lines; the first column aligned left, numbers right."""
    table = Table(box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=index > 0)
    return table


def _site_table(record: Record) -> Table:
    table = table_of(("block", "width", "inertia left", "largest", "single"))
    for site in record.sites:
        metrics = site.metrics
        inertia = f"{100 * metrics['inertia_ratio']:.1f} %" if "inertia_ratio" in metrics else "-"
        counts = [f"{metrics[name]:,}" if name in metrics else "-" for name in ("largest_cluster", "singletons")]
        table.add_row(site.path, f"{site.original_width:,} -> {site.size()}", inertia, *counts)
    return table


def _print_budget(console: PlainConsole, budget: dict[str, Any]) -> None:
    """Prints the width of each layer, and the error read off its curve."""
    table = table_of(("budget", "width", "share", "error"))
    for site in budget["sites"]:
        table.add_row(site["path"], f"{site['width']:,}", f"{100 * site['share']:.1f} %", f"{site['error']:.3g}")
    console.print(table)
    kept = (
        f"{budget['kept']:,} of {budget['total']:,} {budget['unit']} ({100 * budget['kept'] / budget['total']:.2f} %)"
    )
    console.print(f"Error: {budget['measure']}. Kept {kept}, asked for {budget['budget']}.")


def print_tuning(record: TuneRecord, out: str) -> None:
    """Prints all runs, the scores, and the choice of rate and epoch."""
    console = PlainConsole()
    metric = record.runs[0].selection_metric
    table = Table(box=None, pad_edge=False)
    splits = [split for split, scores in record.scores.items() if metric in scores]
    for column in ("rate", "seed", "selection", *splits, "steps", "best", "s/step"):
        table.add_column(column, justify="right", no_wrap=True)
    for run in record.runs:
        selection = "-" if run.selection_score is None else f"{run.selection_score:.4f}"
        seconds = "-" if run.seconds_per_step is None else f"{run.seconds_per_step:.3f}"
        scores = [f"{run.scores[split][metric]:.4f}" for split in splits]
        row = (f"{run.learning_rate:g}", str(run.seed), selection, *scores, str(run.steps), str(run.best_step), seconds)
        table.add_row(*row)
    if record.layerwise is not None:
        console.print(_losses(record.layerwise))
    console.print(f"{metric} of every run:")
    console.print(table)
    for rate in record.diverged:
        console.print(f"learning rate {rate:g}: the loss became NaN or Inf")
    for split in record.scores:
        if record.before is not None and split in record.before:  # no groups of generated texts
            console.print(f"{record.task} {split}, adapter as loaded: {_values(record, record.before[split])}")
        console.print(f"{record.task} {split}: {_values(record, record.scores[split])}")
    console.print(f"{record.note}")
    texts = example_texts(Path(out) / GENERATED)
    if texts:
        console.print(texts, highlight=False, markup=False)
    saved = f" is complete: seed {record.saved_seed}, learning rate {record.learning_rate:g}."
    console.print(Text.assemble(bold(out), saved))


def _values(record: TuneRecord, metrics: dict[str, tuple[float, float]]) -> str:
    """Mean and deviation of every metric of a split."""
    return ", ".join(
        f"{record.metric_name(name)} {mean:.4f} +- {deviation:.4f}" for name, (mean, deviation) in metrics.items()
    )


def print_distillation(record: DistillRecord, out: str) -> None:
    """Prints the loss before and after, and the folder."""
    console = PlainConsole()
    console.print(_losses(record.run))
    console.print(Text.assemble(bold(out), " is complete."))


def _losses(run: DistillRun) -> str:
    return (
        f"{run.objective}: {run.steps} steps on {run.train_samples:,} texts, loss on {run.held_out_samples:,} held-out "
        f"ones {run.loss_before:.5g} -> {run.loss_after:.5g}, {run.seconds:.1f} s"
    )
