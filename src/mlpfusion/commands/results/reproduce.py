"""`mlpfusion reproduce`."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlpfusion.commands.command import SAME_OUT, Command
from mlpfusion.errors import printable
from mlpfusion.extras import check_training_installed
from mlpfusion.options.fields import argument, changed, option, part
from mlpfusion.options.mlps import MLPOptions
from mlpfusion.progress import Progress

if TYPE_CHECKING:
    from mlpfusion.reproduce.experiment import Experiment


@dataclass(frozen=True)
class ReproduceOptions:
    """Runs the grid of EXPERIMENT, a table or figure of the paper: compress, fine-tune, over methods, tasks and seeds.

    EXPERIMENT is a name (without one, all are listed) or a YAML file. Every run leaves a file in DIR/runs: killed, and
    started again, it repeats no finished run. Started several times with the same DIR, one for each GPU say, the
    processes share the runs. In the end DIR holds EXPERIMENT.json, .md, .html and .png.
    """

    experiment: str | None = argument("EXPERIMENT", required=False)
    model: str | None = option(None, "Model to run it on, instead of the experiment's.")
    mlps: MLPOptions = part(MLPOptions)
    out: str | None = option(None, "Folder of the experiment; what is finished there is not run again.", metavar="DIR")
    tasks: tuple[str, ...] = option((), "Tasks, instead of the experiment's.", metavar="A[,B..]")
    methods: tuple[str, ...] = option((), "Methods, instead of the experiment's.", metavar="A[,B..]")
    seeds: tuple[int, ...] = option((), "Seeds, instead of the experiment's.", metavar="N[,N..]")
    new_head: bool = option(False, "Draw the head anew, also where the model has a trained one.")
    no_report: bool = option(False, "Write no EXPERIMENT.html.")
    device: str | None = option(None, "auto, cpu or cuda, instead of the experiment's.")


def run(options: ReproduceOptions, progress: Progress) -> dict[str, Any] | None:
    """Returns the record; None where all experiments are listed, and in all processes of a launch but the first."""
    if options.experiment is None:
        from mlpfusion.reproduce.named import experiment_list

        click.echo(experiment_list())
        return None
    check_training_installed()
    from mlpfusion.reproduce.schedule import run_experiment
    from mlpfusion.storage.processes import is_first

    experiment = _experiment(options, options.experiment)
    record = run_experiment(experiment, progress)
    if not is_first():
        return None
    write_report(experiment, record, with_page=not options.no_report)
    return record


def _experiment(options: ReproduceOptions, name: str) -> "Experiment":
    from mlpfusion.reproduce.experiment import read_experiment

    changes = changed(options)
    del changes["experiment"]
    changes.pop("no_report", None)
    return read_experiment(name, changes)


def write_report(experiment: "Experiment", record: dict[str, Any], *, with_page: bool) -> None:
    """Writes `NAME.json`, `.md`, `.html` and, where matplotlib is installed, `.png` into the folder of the experiment.

    Several experiments with runs in common may have the same folder.
    """
    from mlpfusion.checks import user_path
    from mlpfusion.report.grid.chart import write_experiment_chart
    from mlpfusion.report.grid.tables import experiment_markdown
    from mlpfusion.report.html.page import report
    from mlpfusion.storage.atomic import write_file

    out, name = user_path("out", experiment.out), experiment.name
    write_file(out / f"{name}.json", json.dumps(record, indent=1) + "\n")
    write_file(out / f"{name}.md", experiment_markdown(record))
    if with_page:
        write_file(out / f"{name}.html", report([record]))
    with tempfile.TemporaryDirectory() as folder:
        for chart in write_experiment_chart(record, Path(folder) / f"{name}.png"):
            write_file(out / chart.name, chart.read_bytes())


def show(record: dict[str, Any], options: ReproduceOptions) -> None:
    """Prints the report, and which files there are."""
    from mlpfusion.report.comparison_chart import chart_note
    from mlpfusion.report.grid.tables import experiment_markdown

    click.echo(printable(experiment_markdown(record), keep="\n"))
    assert options.experiment is not None
    experiment = _experiment(options, options.experiment)
    out, name = printable(experiment.out), printable(experiment.name)
    page = "" if options.no_report else " .html,"
    click.echo(f"{out} holds {name}.json, .md,{page} .png and a file a run in runs/.")
    click.echo(chart_note(f"{name}.png"), nl=False)


SUMMARY = "Runs a table or figure of the paper: methods, tasks, seeds."
COMMAND = Command("reproduce", SUMMARY, ReproduceOptions, run, show, title="Reproducing", go_on=SAME_OUT)
