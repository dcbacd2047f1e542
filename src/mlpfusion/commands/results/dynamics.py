"""`mlpfusion dynamics`."""

from typing import Any

import click

from mlpfusion.commands.command import SAME_OUT, Command
from mlpfusion.errors import printable
from mlpfusion.extras import check_training_installed
from mlpfusion.options.dynamics import DynamicsOptions
from mlpfusion.progress import Progress


def run(options: DynamicsOptions, progress: Progress) -> dict[str, Any]:
    """Returns the record, also written to `out`."""
    check_training_installed()
    from mlpfusion.measure.run_dynamics import run_dynamics
    from mlpfusion.report.dynamics import write_dynamics

    return run_dynamics(options, write_dynamics, progress)


def show(record: dict[str, Any], options: DynamicsOptions) -> None:
    """Prints the tables."""
    from mlpfusion.report.comparison_chart import chart_note
    from mlpfusion.report.dynamics import dynamics_markdown

    click.echo(printable(dynamics_markdown(record), keep="\n"))
    click.echo(f"{printable(options.out)} is complete.")
    click.echo(chart_note("dynamics.png"), nl=False)


COMMAND = Command(
    "dynamics",
    "Compares how MODEL and its compressed forms learn.",
    DynamicsOptions,
    run,
    show,
    title="Training",
    usage="--task NAME --out DIR [OPTIONS]",
    takes_file=True,
    go_on=SAME_OUT,
)
