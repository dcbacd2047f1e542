"""`mlpfusion reproduce`."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlpfusion.checks import check_given, check_that
from mlpfusion.commands.command import SAME_OUT, Command
from mlpfusion.commands.results import compare, dynamics
from mlpfusion.errors import InputError, printable
from mlpfusion.extras import check_training_installed
from mlpfusion.options.fields import argument, changed, from_plain, key, leaves, option, part, read_values
from mlpfusion.options.mlps import MLPOptions
from mlpfusion.progress import Progress

if TYPE_CHECKING:
    from mlpfusion.reproduce.experiment import Experiment


@dataclass(frozen=True)
class ReproduceOptions:
    """Runs EXPERIMENT, a table or figure of the paper: a grid of compressions and fine-tunings, or another command.

    EXPERIMENT is a name (without one, all are listed) or a YAML file. A grid goes over methods, tasks and seeds. Every
    run leaves a file in DIR/runs: killed, and started again, it repeats no finished run. Started several times with the
    same DIR, one for each GPU say, the processes share the runs. In the end DIR holds EXPERIMENT.json, .md, .html and
    .png. A file with `command`, compare or dynamics, has the options of that command and leaves what it leaves.
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
    overwrite: bool = option(False, "Of another command than a grid: replace --out, drop an unfinished run.")


_COMMANDS = {command.name: command for command in (compare.COMMAND, dynamics.COMMAND)}


@dataclass(frozen=True)
class CommandExperiment:
    """What the file of an experiment says beside the options of its `command`; without one it is a grid."""

    title: str = key("")
    description: str = key("")
    command: str = key("")


def run(options: ReproduceOptions, progress: Progress) -> dict[str, Any] | None:
    """Returns the record; None where all experiments are listed, and in all processes of a launch but the first."""
    if options.experiment is None:
        from mlpfusion.reproduce.named import experiment_list

        click.echo(experiment_list())
        return None
    other = other_command(options, options.experiment)
    if other is not None:
        command, its_options = other
        return command.run(its_options, progress)
    check_training_installed()
    from mlpfusion.reproduce.schedule import run_experiment
    from mlpfusion.storage.processes import is_first

    experiment = _experiment(options, options.experiment)
    record = run_experiment(experiment, progress)
    if not is_first():
        return None
    write_report(experiment, record, with_page=not options.no_report)
    return record


def other_command(options: ReproduceOptions, name: str) -> tuple[Command, Any] | None:
    """The command of an experiment and its options; None for a grid. Raises `InputError`."""
    from mlpfusion.reproduce.named import experiment_file

    values = read_values(experiment_file(name), "experiment")
    if "command" not in values:
        return None
    about = [leaf.name for leaf in leaves(CommandExperiment) if leaf.name in values]
    called = from_plain(CommandExperiment, {name: values.pop(name) for name in about}).command
    check_that(called in _COMMANDS, "command", f"one of {', '.join(_COMMANDS)}", called)
    command = _COMMANDS[called]
    told = from_plain(command.options, values | _changes(options, {leaf.name for leaf in leaves(command.options)}))
    check_given(bool(told.out), "out")
    return command, told


def _changes(options: ReproduceOptions, known: set[str]) -> dict[str, Any]:
    """The values for an experiment that were typed. Raises `InputError` for one that it does not know."""
    values = {name: value for name, value in changed(options).items() if name != "experiment"}
    for name, value in values.items():
        if name not in known:
            given = ",".join(map(str, value)) if isinstance(value, tuple) else value
            raise InputError(f"`{name}` must be left out for {options.experiment}, which does not take it, got {given}")
    return values


def _experiment(options: ReproduceOptions, name: str) -> "Experiment":
    from mlpfusion.reproduce.experiment import Experiment, read_experiment

    changes = _changes(options, {leaf.name for leaf in leaves(Experiment)} | {"no_report"})
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

    assert options.experiment is not None
    other = other_command(options, options.experiment)
    if other is not None:
        command, its_options = other
        command.show(record, its_options)
        return
    click.echo(printable(experiment_markdown(record), keep="\n"))
    experiment = _experiment(options, options.experiment)
    out, name = printable(experiment.out), printable(experiment.name)
    page = "" if options.no_report else " .html,"
    click.echo(f"{out} holds {name}.json, .md,{page} .png and a file a run in runs/.")
    click.echo(chart_note(f"{name}.png"), nl=False)


SUMMARY = "Runs a table or figure of the paper: methods, tasks, seeds."
COMMAND = Command("reproduce", SUMMARY, ReproduceOptions, run, show, title="Reproducing", go_on=SAME_OUT)
