"""`mlpfusion distill`."""

from functools import partial
from typing import TYPE_CHECKING

from mlpfusion.commands.command import RESUME, Command
from mlpfusion.extras import check_training_installed
from mlpfusion.options.distill import DistillOptions
from mlpfusion.progress import Progress

if TYPE_CHECKING:
    from mlpfusion.tune.record import DistillRecord


def run(options: DistillOptions, progress: Progress) -> "DistillRecord | None":
    """Returns the record; None in all processes of torchrun but the first."""
    check_training_installed()
    from mlpfusion.report.html.beside import about_distilled
    from mlpfusion.storage.processes import is_first
    from mlpfusion.tune.run_distill import distill_checkpoint

    about = partial(about_distilled, with_report=not options.run.no_report)
    record = distill_checkpoint(options, about, progress)
    return record if is_first() else None


def show(record: "DistillRecord", options: DistillOptions) -> None:
    """Prints the loss before and after, and what was left."""
    from mlpfusion.report.terminal.results import print_distillation

    print_distillation(record, options.out)


COMMAND = Command(
    "distill",
    "Trains COMPRESSED on what ORIGINAL predicts, without labels.",
    DistillOptions,
    run,
    show,
    title="Distilling",
    usage="--data FILE [OPTIONS]",
    takes_file=True,
    go_on=RESUME,
)
