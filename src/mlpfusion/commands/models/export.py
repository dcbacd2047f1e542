"""`mlpfusion export`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlpfusion.commands.command import Command
from mlpfusion.options.fields import argument, option
from mlpfusion.progress import Progress

if TYPE_CHECKING:
    from mlpfusion.export.run import ExportRecord


@dataclass(frozen=True)
class ExportOptions:
    """Writes MODEL, compressed by mlpfusion (a folder or a Hub id), into the new folder OUT for other engines.

    Constants, factors and masks are folded into plain weights: export after the training. hf is a stock checkpoint of
    transformers, which other servers load too; onnx and openvino are graphs; executorch is a program for phones,
    gguf a file for llama.cpp. What was written is run by its engine, without this package, and compared: OUT appears if
    the outputs agree, complete or not at all.
    """

    model: str = argument("MODEL")
    out: str = argument("OUT")
    to: str = option("hf", "hf, onnx, openvino, executorch or gguf.", metavar="TARGET")
    pad_to: int | None = option(
        None, "Give all layers one width by neurons of zeros: the smallest multiple of this that holds the widest."
    )
    dtype: str | None = option(None, "Of the weights in a GGUF file: f32, f16, bf16 or q8_0; f16 if not given.")
    revision: str | None = option(None, "Branch, tag or commit of a Hub id.")
    overwrite: bool = option(False, "Replace OUT, if a former run wrote all that it holds.")
    push_to_hub: str | None = option(
        None, "Push OUT, once it is complete, into this repository of the Hub, a private one.", metavar="OWNER/NAME"
    )
    public: bool = option(False, "With --push-to-hub: into a public repository.")


def run(options: ExportOptions, _progress: Progress) -> "ExportRecord":
    """Writes the export, pushes it if asked, and returns its record.

    Raises `InputError`, and `ConnectionError` where the export is complete and cannot be pushed.
    """
    from mlpfusion.checkpoint.open import open_checkpoint
    from mlpfusion.checks import user_path
    from mlpfusion.export.hub import check_push, push_folder
    from mlpfusion.export.run import check_export, export_checkpoint
    from mlpfusion.export.table import find_target
    from mlpfusion.report.export import export_card
    from mlpfusion.storage.output import check_output

    target, out = find_target(options.to), user_path("out", options.out)
    replaced = check_output(out, overwrite=options.overwrite, reads=(options.model,))
    check_push(options.push_to_hub, is_public=options.public)
    source = open_checkpoint(options.model, options.revision)
    check_export(source, target, options.pad_to, options.dtype)
    record = export_checkpoint(source, target, out, replaced, export_card, options.pad_to, options.dtype)
    if options.push_to_hub is not None:
        push_folder(out, options.push_to_hub, is_public=options.public)
    return record


def show(record: "ExportRecord", options: ExportOptions) -> None:
    """Prints it for people."""
    from mlpfusion.report.export import print_export

    print_export(record, options.out, options.push_to_hub)


COMMAND = Command("export", "Writes a compressed MODEL for other engines.", ExportOptions, run, show)
