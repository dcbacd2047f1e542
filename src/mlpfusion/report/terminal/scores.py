"""Prints the scores of a task, and some generated texts beside their references."""

import json
from pathlib import Path

import click
from rich.text import Text

from mlpfusion.errors import printable
from mlpfusion.measure.evaluation.harness import HarnessEvaluation
from mlpfusion.measure.evaluation.task import TaskEvaluation
from mlpfusion.report.terminal.console import PlainConsole, bold

SHOWN = 3
_LENGTH = 300  # characters of a text: a few lines of a terminal


def example_texts(folder: Path) -> str:
    """The first texts of the last split in `folder`, as `generate_and_score` leaves it; "" for none."""
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        return ""
    rows = [json.loads(line) for line in files[-1].read_text(encoding="utf-8").splitlines()[:SHOWN]]
    return (
        "\n"
        + "\n\n".join(
            f"source     {_short(row['source'])}\n"
            f"reference  {_short(row['references'][0])}\n"
            f"generated  {_short(row['text'])}"
            for row in rows
        )
        + "\n"
    )


def print_task_evaluation(evaluation: TaskEvaluation, out: str | None) -> None:
    """Prints the scores of every split, and some texts if they were kept."""
    console = PlainConsole()
    for split, scores in evaluation.scores.items():
        values = ", ".join(f"{name} {score:.4f}" for name, score in scores.items())
        console.print(f"{evaluation.task} {split}: {values}", highlight=False)
    cut = [f"{number} of {split}" for split, number in evaluation.cut.items() if number]
    if cut:
        console.print(f"texts that --max-new-tokens ended: {', '.join(cut)}", highlight=False)
    if out is not None:
        texts = example_texts(Path(out))
        if texts:
            console.print(texts, highlight=False, markup=False)
        console.print(Text.assemble(bold(out), " is complete."))


def print_harness_evaluation(evaluation: HarnessEvaluation, out: str | None) -> None:
    """Prints the tables of lm-eval."""
    console = PlainConsole()
    for table in evaluation.tables():
        click.echo(printable(table, keep="\n"))
    console.print(
        f"{evaluation.parameters:,} parameters, {evaluation.dtype}, {evaluation.seconds:.1f} s", highlight=False
    )
    if out is not None:
        console.print(Text.assemble(bold(out), " is complete."))


def _short(text: str) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= _LENGTH else line[:_LENGTH] + "..."
