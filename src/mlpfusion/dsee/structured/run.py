"""From a checkpoint to one without the heads of the lowest scores, and from its adapter to one that fits."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel

from mlpfusion.checkpoint.files import carried_files
from mlpfusion.checkpoint.lengths import MAX_LENGTH
from mlpfusion.checkpoint.open import Checkpoint
from mlpfusion.checkpoint.read import check_fit, display_name, read_config
from mlpfusion.checkpoint.save import save_sliced
from mlpfusion.checkpoint.stage import ADAPTER
from mlpfusion.dsee.structured.choice import HeadChoice
from mlpfusion.dsee.structured.lowest import lowest_heads
from mlpfusion.dsee.structured.record import HEADS_RECORD_FILE, Costs, HeadsRecord, LayerHeads
from mlpfusion.heads.key import heads_key
from mlpfusion.heads.sites import find_heads
from mlpfusion.heads.slicing import check_whole, slice_heads
from mlpfusion.record import versions
from mlpfusion.sites.sites import base_model
from mlpfusion.storage.output import Occupant, staged_folder

if TYPE_CHECKING:  # it needs PEFT
    from mlpfusion.dsee.adapter.saved import SavedAdapter


@dataclass(frozen=True)
class SliceWork:
    """What is asked for: which heads, the adapter whose update scores them, and how a pass over a text is counted.

    `flops` takes a model and a number of tokens.
    """

    choice: HeadChoice
    adapter: "SavedAdapter | None"
    flops: Callable[[nn.Module, int], int]


@dataclass(frozen=True)
class _Left:
    """What is left of each attention, and the FLOPs of the adapter on one text, None without one."""

    layers: list[LayerHeads]
    adapter_flops: int | None = None


def check_sliceable(source: Checkpoint, work: SliceWork) -> None:
    """Raises `InputError`, before any weight is read, for all that can be known."""
    empty = source.empty()
    check_whole(empty)
    work.choice.check(find_heads(empty))
    check_fit(source.folder, source.config)
    carried_files(source.folder)
    if work.adapter is not None:
        from mlpfusion.dsee.adapter.form import task_form
        from mlpfusion.dsee.adapter.saved import check_fits, check_not_merged
        from mlpfusion.dsee.structured.adapted import check_slice

        check_not_merged(source, work.adapter)
        form = task_form(source, work.adapter)
        check_slice(check_fits(work.adapter, form.empty()), work.choice, "drop_heads")


def slice_checkpoint(
    source: Checkpoint,
    work: SliceWork,
    out: Path,
    replaced: Occupant | None,
    card: Callable[[HeadsRecord, Path], str],
) -> HeadsRecord:
    """Writes `source` without heads, and `adapter` in it without them, into the new folder `out`, whole or not at all.

    `card` makes the text of the model card. Raises `InputError` for an adapter that was trained on other weights.
    """
    with staged_folder(out, replaced) as folder:
        left = None if work.adapter is None else _slice_adapter(source, work, work.adapter, out, folder)
        model = source.load()
        if left is None:
            left = _Left(lowest_heads(model, work.choice, None))
        slice_heads(model, {layer.path: layer.kept for layer in left.layers})
        key = heads_key(model.config)
        assert key is not None
        original, sliced = save_sliced(model, source.folder, read_config(source.folder), folder)
        record = HeadsRecord(
            recipe={
                "model": display_name(source.name),
                "drop_heads": work.choice.drop_heads,
                "scope": work.choice.scope,
            },
            scored_by="weights" if work.adapter is None else "update",
            model=source.origin,
            source_sha256=key.source_sha256,
            original=original,
            sliced=sliced,
            layers=tuple(left.layers),
            costs=_costs(source.empty(), model, work, left.adapter_flops),
            versions=versions(),
        )
        (folder / "README.md").write_text(card(record, source.folder), encoding="utf-8")
        (folder / HEADS_RECORD_FILE).write_text(record.to_json(), encoding="utf-8")
    return record


def _slice_adapter(source: Checkpoint, work: SliceWork, saved: "SavedAdapter", out: Path, folder: Path) -> _Left:
    """Writes the adapter without heads into `folder`, on the weights of `source` without them."""
    from mlpfusion.dsee.adapter.form import task_form
    from mlpfusion.dsee.adapter.saved import AdapterBase, put_on, save_adapter, weights_sha256
    from mlpfusion.dsee.structured.adapted import slice_adapted

    whole = put_on(task_form(source, saved).load(source, saved.seed), saved, is_trainable=True)
    adapted, layers = slice_adapted(whole, work.choice)
    adapted.peft_config["default"].base_model_name_or_path = str(out)  # where PEFT's own classes look for the weights
    base = AdapterBase(weights_sha256(adapted), saved.seed, is_beside=True)
    save_adapter(adapted, folder / ADAPTER, base, adds_tokens=saved.adds_tokens)
    if (tokens := _counted_tokens(adapted)) is None:
        return _Left(layers)
    with_adapter = work.flops(base_model(adapted.get_base_model()), tokens)
    with adapted.disable_adapter():
        return _Left(layers, with_adapter - work.flops(base_model(adapted.get_base_model()), tokens))


def _counted_tokens(model: Any) -> int | None:
    """The length of the text that FLOPs are counted for; None for a model that reads no text."""
    if model.main_input_name != "input_ids":
        return None
    return min(MAX_LENGTH, getattr(model.config, "max_position_embeddings", MAX_LENGTH))


def _costs(empty: PreTrainedModel, model: PreTrainedModel, work: SliceWork, adapter: int | None) -> Costs | None:
    if (tokens := _counted_tokens(model)) is None:
        return None
    before, after = (work.flops(base_model(one), tokens) for one in (empty, model))
    return Costs(tokens, before, after, adapter)
