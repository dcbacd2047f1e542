"""`mlpfusion measure`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlpfusion.commands.command import Command
from mlpfusion.options.fields import argument, option
from mlpfusion.progress import Progress

if TYPE_CHECKING:
    from mlpfusion.measure.comparison import CheckpointErrors


@dataclass(frozen=True)
class MeasureOptions:
    """Output error and kernel error of every block of COMPRESSED, all in place, against its source ORIGINAL."""

    original: str = argument("ORIGINAL")
    compressed: str = argument("COMPRESSED")
    data: str = option("", "Texts, one a line, or a table with --column.", metavar="FILE", required=True)
    column: str | None = option(None, "Column of a table that holds the text.", metavar="NAME")
    max_samples: int = option(256, "Texts to measure on.")
    scalar: str = option("logit", "f of the kernel: logit or prob0 (the authors').")
    seed: int = option(0, "Of the random head.")
    authors_quirks: bool = option(False, "Also the numbers of the authors' code, in fields of their own.")


def run(options: MeasureOptions, _progress: Progress) -> "CheckpointErrors":
    """Returns the errors of the blocks and of the model on the texts. Raises `InputError`."""
    from mlpfusion.batch import with_decoder_inputs
    from mlpfusion.checkpoint.open import open_checkpoint
    from mlpfusion.checkpoint.tokenizer import token_batches
    from mlpfusion.data.files.text import read_texts
    from mlpfusion.measure.approximation import Probe
    from mlpfusion.measure.comparison import measure_checkpoint
    from mlpfusion.measure.paper_numbers import last_batch

    probe = Probe(options.scalar, options.seed)
    texts = read_texts(options.data, column=options.column, max_samples=options.max_samples)
    original, compressed = open_checkpoint(options.original), open_checkpoint(options.compressed)
    folder, config = original.folder, original.config
    authors_batch = last_batch(folder, texts, config) if options.authors_quirks else None
    batches = with_decoder_inputs(token_batches(folder, texts, config), config)
    return measure_checkpoint(original, compressed, batches, probe, authors_batch)


def show(errors: "CheckpointErrors", _options: MeasureOptions) -> None:
    """Prints a table of the blocks, and the errors of the whole model."""
    from mlpfusion.report.terminal.results import print_checkpoint_errors

    print_checkpoint_errors(errors)


SUMMARY = "Output and kernel error of COMPRESSED against ORIGINAL."
COMMAND = Command("measure", SUMMARY, MeasureOptions, run, show)
