"""From a checkpoint to one without the heads of the lowest scores, and from its adapter to one that fits."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from mlpfusion.checkpoint.files import carried_files
from mlpfusion.checkpoint.lengths import MAX_LENGTH
from mlpfusion.checkpoint.open import Checkpoint, open_checkpoint
from mlpfusion.checkpoint.read import check_fit, display_name, read_config
from mlpfusion.checkpoint.save import save_sliced
from mlpfusion.checkpoint.stage import ADAPTER
from mlpfusion.dsee.structured.choice import HeadChoice
from mlpfusion.dsee.structured.lowest import slice_lowest
from mlpfusion.dsee.structured.record import HEADS_RECORD_FILE, Costs, HeadsRecord
from mlpfusion.heads.key import heads_key
from mlpfusion.heads.sites import find_heads
from mlpfusion.heads.slicing import check_whole
from mlpfusion.record import versions
from mlpfusion.sites.sites import base_model
from mlpfusion.storage.output import Occupant, staged_folder

if TYPE_CHECKING:  # it needs PEFT
    from mlpfusion.dsee.structured.adapter import StoredAdapter


@dataclass(frozen=True)
class SliceWork:
    """What is asked for: which heads, the adapter whose update scores them, and how a pass over a text is counted.

    `flops` takes a model and a number of tokens.
    """

    choice: HeadChoice
    adapter: "StoredAdapter | None"
    flops: Callable[[PreTrainedModel, int], int]


def check_sliceable(source: Checkpoint, choice: HeadChoice) -> None:
    """Raises `InputError`, before any weight is read, for a model or a number of heads that cannot be."""
    empty = source.empty()
    check_whole(empty)
    choice.check(find_heads(empty))
    check_fit(source.folder, source.config)
    carried_files(source.folder)


def slice_checkpoint(
    source: Checkpoint,
    work: SliceWork,
    out: Path,
    replaced: Occupant | None,
    card: Callable[[HeadsRecord, Path], str],
) -> HeadsRecord:
    """Writes `source` without heads, and `adapter` in it without them, into the new folder `out`, whole or not at all.

    `card` makes the text of the model card. Raises `InputError` for an adapter that says nothing of an attention.
    """
    model = source.load()
    left = slice_lowest(model, work.choice, work.adapter)
    adapter, key = left.adapter, heads_key(model.config)
    assert key is not None
    with staged_folder(out, replaced) as folder:
        original, sliced = save_sliced(model, source.folder, read_config(source.folder), folder)
        record = HeadsRecord(
            recipe={
                "model": display_name(source.name),
                "drop_heads": work.choice.drop_heads,
                "scope": work.choice.scope,
            },
            scored_by="weights" if adapter is None else "update",
            model=source.origin,
            source_sha256=key.source_sha256,
            original=original,
            sliced=sliced,
            layers=left.layers,
            costs=_costs(source.empty(), model, work, adapter),
            versions=versions(),
        )
        if adapter is not None:
            assert adapter.folder is not None  # of the uncut one
            adapter.write(str(out), folder / ADAPTER)
            _say_where_it_lies(folder, adapter.folder)
        (folder / "README.md").write_text(card(record, source.folder), encoding="utf-8")
        (folder / HEADS_RECORD_FILE).write_text(record.to_json(), encoding="utf-8")
    return record


def _say_where_it_lies(folder: Path, whole: Path) -> None:
    """Writes into the adapter in `folder` on which weights it lies: those beside it. `whole` is the uncut adapter."""
    from mlpfusion.dsee.adapter.form import task_form
    from mlpfusion.dsee.adapter.saved import AdapterBase, put_on, read_adapter, weights_sha256, write_base

    source, saved = open_checkpoint(str(folder), with_adapter=True), read_adapter(str(whole))
    model = task_form(source, saved).load(source, saved.seed)
    adapted = put_on(model, read_adapter(str(folder / ADAPTER)), is_trainable=False)
    write_base(folder / ADAPTER, AdapterBase(weights_sha256(adapted), saved.seed, is_beside=True))


def _costs(
    empty: PreTrainedModel, model: PreTrainedModel, work: SliceWork, adapter: "StoredAdapter | None"
) -> Costs | None:
    if model.main_input_name != "input_ids":
        return None
    tokens = min(MAX_LENGTH, getattr(model.config, "max_position_embeddings", MAX_LENGTH))
    before, after = (work.flops(base_model(one), tokens) for one in (empty, model))
    return Costs(tokens, before, after, None if adapter is None else 2 * tokens * adapter.num_entries)
