"""Printed by `tune` and `distill` for people."""

from rich.table import Table
from rich.text import Text

from mlpfusion.report.console import PlainConsole, bold
from mlpfusion.tune.record import DistillRecord, DistillRun, TuneRecord


def print_tuning(record: TuneRecord, out: str) -> None:
    """Prints all runs, the scores, and the choice of rate and epoch."""
    console = PlainConsole()
    metric = record.runs[0].selection_metric
    table = Table(box=None, pad_edge=False)
    splits = list(record.scores)
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
    for split, metrics in record.scores.items():
        values = ", ".join(
            f"{record.metric_name(name)} {mean:.4f} +- {deviation:.4f}" for name, (mean, deviation) in metrics.items()
        )
        console.print(f"{record.task} {split}: {values}")
    console.print(f"{record.note}")
    saved = f" is complete: seed {record.saved_seed}, learning rate {record.learning_rate:g}."
    console.print(Text.assemble(bold(out), saved))


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
