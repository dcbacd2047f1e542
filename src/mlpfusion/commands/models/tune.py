"""`mlpfusion tune`."""

from functools import partial
from typing import TYPE_CHECKING

from mlpfusion.commands.command import RESUME, Command
from mlpfusion.extras import check_training_installed
from mlpfusion.options.tune import TuneOptions
from mlpfusion.progress import Progress

if TYPE_CHECKING:
    from mlpfusion.tune.record import TuneRecord


def run(options: TuneOptions, progress: Progress) -> "TuneRecord | None":
    """Returns the record; None in all processes of torchrun but the first."""
    check_training_installed()
    from mlpfusion.report.html.beside import about_tuned
    from mlpfusion.storage.processes import is_first
    from mlpfusion.tune.run import tune_checkpoint

    about = partial(about_tuned, with_report=not options.run.no_report)
    record = tune_checkpoint(options, about, progress)
    return record if is_first() else None


def show(record: "TuneRecord", options: TuneOptions) -> None:
    """Prints the runs, the scores and how they were chosen."""
    from mlpfusion.report.terminal.results import print_tuning

    print_tuning(record, options.out)


COMMAND = Command(
    "tune",
    "Fine-tunes MODEL on a task into the new folder OUT.",
    TuneOptions,
    run,
    show,
    title="Tuning",
    usage="--task NAME [OPTIONS]",
    takes_file=True,
    go_on=RESUME,
)
