"""`mlpfusion sparsify`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlpfusion.commands.command import Command
from mlpfusion.options.adapters.sparsity import Sparsity
from mlpfusion.options.fields import argument, option, part
from mlpfusion.progress import Progress

if TYPE_CHECKING:
    from mlpfusion.dsee.record import SparsityRecord


@dataclass(frozen=True)
class SparsifyOptions:
    """Zeroes weights of MODEL (a folder or a Hub id) by what an adapter, trained on it, adds to them.

    The second stage of DSEE; LoRA's adapters do too. OUT holds MODEL with the zeros in its weights, OUT/adapter the
    adapter, not merged: that would fill the zeros. `mlpfusion tune OUT --adapter OUT/adapter` trains it again.
    OUT appears complete or not at all.
    """

    model: str = argument("MODEL")
    out: str = argument("OUT")
    adapter: str | None = option(
        None, "Folder of the adapter: `adapter` in the OUT of tune.", metavar="DIR", required=True
    )
    sparsity: Sparsity = part(Sparsity)
    revision: str | None = option(None, "Branch, tag or commit of a Hub id.")
    overwrite: bool = option(False, "Replace OUT, if a former run wrote all that it holds.")


def run(options: SparsifyOptions, _progress: Progress) -> "SparsityRecord":
    """Writes the model with zeros and returns the record. Raises `InputError`."""
    from mlpfusion.checkpoint.open import open_checkpoint
    from mlpfusion.checks import user_path
    from mlpfusion.extras import ADAPTER
    from mlpfusion.storage.output import check_output

    ADAPTER.check()
    from mlpfusion.dsee.adapter.saved import read_adapter
    from mlpfusion.dsee.sparsify import check_sparsify, sparsify_checkpoint
    from mlpfusion.report.dsee.sparsity import sparsity_card

    assert options.adapter is not None
    out = user_path("out", options.out)
    replaced = check_output(out, overwrite=options.overwrite, reads=(options.model, options.adapter))
    saved = read_adapter(options.adapter)
    source = open_checkpoint(options.model, options.revision, with_adapter=True)
    form = check_sparsify(source, saved, options.sparsity)
    return sparsify_checkpoint(source, saved, form, options.sparsity, out, replaced, sparsity_card)


def show(record: "SparsityRecord", options: SparsifyOptions) -> None:
    """Prints how many zeros there are, and what comes next."""
    from mlpfusion.report.dsee.sparsity import print_sparsity

    print_sparsity(record, options.out)


COMMAND = Command(
    "sparsify",
    "Zeroes weights of MODEL under an adapter, by what it adds.",
    SparsifyOptions,
    run,
    show,
    usage="--adapter DIR [OPTIONS]",
)
