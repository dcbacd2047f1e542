"""`mlpfusion inspect`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlpfusion.commands.command import Command
from mlpfusion.options.fields import argument, option, part
from mlpfusion.options.mlps import MLPOptions
from mlpfusion.options.selection import Selection
from mlpfusion.progress import Progress

if TYPE_CHECKING:
    from mlpfusion.compression.preview.inspection import Inspection


@dataclass(frozen=True)
class InspectOptions:
    """Shows the MLPs of MODEL (a folder, a Hub id or a GGUF file), their share of the parameters, and what a cut gives.

    Only the config is needed, no weights. In a model type without a row in the table the MLPs are found by their
    shapes.
    """

    model: str = argument("MODEL")
    revision: str | None = option(None, "Branch, tag or commit of a Hub id.")
    mlps: MLPOptions = part(MLPOptions)
    layers: str = option("all", "Layers of the cut that is shown.")
    keep_ratio: float = option(0.25, "Cut that is shown.")


def run(options: InspectOptions, _progress: Progress) -> "Inspection":
    """Returns what is found."""
    from mlpfusion.compression.preview.inspection import inspect_checkpoint

    selection = Selection(options.layers, options.keep_ratio)
    return inspect_checkpoint(options.model, selection, revision=options.revision, mlps=options.mlps)


def show(inspection: "Inspection", _options: InspectOptions) -> None:
    """Prints it for people."""
    from mlpfusion.report.inspection import print_inspection

    print_inspection(inspection)


COMMAND = Command("inspect", "Shows the MLPs of MODEL and what a cut would give.", InspectOptions, run, show)
