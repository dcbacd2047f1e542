"""`mlpfusion slice-heads`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlpfusion.commands.command import Command
from mlpfusion.errors import InputError
from mlpfusion.options.fields import argument, option
from mlpfusion.progress import Progress

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from mlpfusion.checkpoint.open import Checkpoint
    from mlpfusion.dsee.structured.adapter import StoredAdapter
    from mlpfusion.dsee.structured.record import HeadsRecord


@dataclass(frozen=True)
class SliceHeadsOptions:
    """Writes MODEL (a folder or a Hub id) without some heads of its attentions into the new folder OUT.

    The heads with the lowest scores go: the sum of |(alpha / r) (B A + S)| over the rows of a head in query and value,
    where --adapter names an adapter of DSEE that was trained on MODEL; without it the sum of |W| over these rows. With
    it OUT/adapter is the adapter without these heads, to be trained further on OUT. MODEL is what the adapter was
    trained on, not what it was merged into. The MLPs stay: `mlpfusion compress` narrows those of OUT.
    """

    model: str = argument("MODEL")
    out: str = argument("OUT")
    drop_heads: int | None = option(
        None, "Heads to remove in every layer; of shared keys, with their queries.", required=True
    )
    scope: str = option("layer", "layer, or global: as many in all, the lowest of all layers; each keeps one.")
    adapter: str | None = option(None, "Adapter of DSEE that scores the heads, as TUNED/adapter.", metavar="FOLDER")
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
    check_sliceable(source, choice)
    adapter = None if options.adapter is None else _adapter(source, user_path("adapter", options.adapter))
    return slice_checkpoint(source, SliceWork(choice, adapter, _flops), out, replaced, heads_card)


def _flops(model: "PreTrainedModel", tokens: int) -> int:
    from mlpfusion.measure.flops import forward_flops

    return forward_flops(model, tokens).dense


def _adapter(source: "Checkpoint", folder: "Path") -> "StoredAdapter":
    """The adapter. Raises `InputError` if it was trained on another model, by the record of `tune` beside it."""
    from mlpfusion.checkpoint.files import read_json
    from mlpfusion.extras import DSEE
    from mlpfusion.tune.record import TUNE_RECORD_FILE

    DSEE.check()
    from mlpfusion.dsee.adapter.saved import read_base
    from mlpfusion.dsee.structured.adapter import read_adapter

    tuned, base = folder.resolve().parent, read_base(folder)
    if tuned == source.folder.resolve():
        if base is not None and base.is_beside:
            return read_adapter(folder, source.empty())
        raise InputError(
            f"`model` must be what the adapter was trained on, got {source.name}, which has it merged into its weights"
        )
    adapter = read_adapter(folder, source.empty())
    if (tuned / TUNE_RECORD_FILE).is_file():
        record = read_json(tuned / TUNE_RECORD_FILE)
        if record.get("layerwise") is not None:
            raise InputError("`adapter` must stand on a model that is there, got one trained after `--layerwise`")
        if record.get("model_sha256") != source.sha256:
            raise InputError(
                f"`model` must be what the adapter was trained on, {TUNE_RECORD_FILE} beside it has another hash of "
                f"the weights than {source.name}"
            )
    return adapter


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
