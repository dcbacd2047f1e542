"""`mlpfusion slice-heads`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlpfusion.commands.command import Command
from mlpfusion.options.fields import argument, option
from mlpfusion.progress import Progress

if TYPE_CHECKING:
    from torch import nn

    from mlpfusion.dsee.adapter.saved import SavedAdapter
    from mlpfusion.dsee.structured.record import HeadsRecord


@dataclass(frozen=True)
class SliceHeadsOptions:
    """Writes MODEL (a folder or a Hub id) without some heads of its attentions into the new folder OUT.

    The heads with the lowest scores go: the sum of |(alpha / r) (B A + S)| over the rows of a head in query and value,
    where --adapter names an adapter of DSEE or LoRA (which has no S) that was trained on MODEL; without it the sum of
    |W| over these rows. With it OUT/adapter is the adapter without these heads, to be trained further on OUT. MODEL is
    what the adapter was trained on, not what it was merged into. The MLPs stay: `mlpfusion compress` narrows those of
    OUT.
    """

    model: str = argument("MODEL")
    out: str = argument("OUT")
    drop_heads: int | None = option(
        None, "Heads to remove in every layer; of shared keys, with their queries.", required=True
    )
    scope: str = option("layer", "layer, or global: as many in all, the lowest of all layers; each keeps one.")
    adapter: str | None = option(
        None, "Adapter of DSEE or LoRA that scores the heads, as TUNED/adapter.", metavar="FOLDER"
    )
    revision: str | None = option(None, "Branch, tag or commit of a Hub id.")
    overwrite: bool = option(False, "Replace OUT, if a former run wrote all that it holds.")


def run(options: SliceHeadsOptions, _progress: Progress) -> "HeadsRecord":
    """Writes the checkpoint and returns the record. Raises `InputError`, before any work for all that can be known."""
    from mlpfusion.checkpoint.open import open_checkpoint
    from mlpfusion.checks import user_path
    from mlpfusion.dsee.structured.choice import HeadChoice
    from mlpfusion.dsee.structured.run import SliceWork, check_sliceable, slice_checkpoint
    from mlpfusion.report.dsee.heads import heads_card
    from mlpfusion.storage.output import check_output

    assert options.drop_heads is not None
    out, choice = user_path("out", options.out), HeadChoice(options.drop_heads, options.scope)
    replaced = check_output(out, overwrite=options.overwrite, reads=(options.model, options.adapter))
    source = open_checkpoint(options.model, options.revision, with_adapter=options.adapter is not None)
    work = SliceWork(choice, None if options.adapter is None else _adapter(options.adapter), _flops)
    check_sliceable(source, work)
    return slice_checkpoint(source, work, out, replaced, heads_card)


def _adapter(name: str) -> "SavedAdapter":
    from mlpfusion.extras import ADAPTER

    ADAPTER.check()
    from mlpfusion.dsee.adapter.saved import read_adapter

    return read_adapter(name)


def _flops(model: "nn.Module", tokens: int) -> int:
    from mlpfusion.measure.flops import forward_flops

    return forward_flops(model, tokens).dense


def show(record: "HeadsRecord", options: SliceHeadsOptions) -> None:
    """Prints the heads that are left, layer by layer, and what that saves."""
    from mlpfusion.report.dsee.heads import print_heads

    print_heads(record, options.out)


COMMAND = Command(
    "slice-heads",
    "Removes heads of attentions, maybe by the update of an adapter.",
    SliceHeadsOptions,
    run,
    show,
    usage="--drop-heads N [OPTIONS]",
)
