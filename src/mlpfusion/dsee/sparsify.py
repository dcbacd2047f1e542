"""A model and its adapter in, the same with zeros in the weights out."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlpfusion.checkpoint.files import ADAPTER
from mlpfusion.checkpoint.open import Checkpoint
from mlpfusion.checkpoint.save import save_model
from mlpfusion.dsee.adapter.form import TaskForm, task_form
from mlpfusion.dsee.adapter.saved import (
    AdapterBase,
    SavedAdapter,
    check_fits,
    check_not_merged,
    put_on,
    save_adapter,
    weights_sha256,
)
from mlpfusion.dsee.masks import maskable_rows, set_zeros
from mlpfusion.dsee.record import SPARSITY_RECORD_FILE, SparsityRecord
from mlpfusion.options.adapters.sparsity import Sparsity
from mlpfusion.record import model_size, versions
from mlpfusion.storage.output import Occupant, staged_folder


def check_sparsify(source: Checkpoint, saved: SavedAdapter, sparsity: Sparsity) -> TaskForm:
    """Returns the form of the model. Raises `InputError`, before any weight is read, for all that can be known."""
    check_not_merged(source, saved)
    form = task_form(source, saved)
    assert source.weight_files
    maskable_rows(check_fits(saved, form.empty()), sparsity)
    return form


def sparsify_checkpoint(
    source: Checkpoint,
    saved: SavedAdapter,
    form: TaskForm,
    sparsity: Sparsity,
    out: Path,
    replaced: Occupant | None,
    card: Callable[[SparsityRecord], str],
) -> SparsityRecord:
    """Writes the model with zeros, and the adapter beside it, into the new folder `out`.

    Raises `InputError` if the adapter was trained on other weights, and for NaN or Inf in a weight.
    """
    started, sha256 = time.perf_counter(), source.sha256
    adapted = put_on(form.load(source, saved.seed), saved, is_trainable=True)
    maps = set_zeros(adapted, sparsity)
    config: Any = adapted.peft_config["default"]
    config.base_model_name_or_path = str(out)  # where PEFT's own classes look for the weights
    if config.peft_type == "DSEE":
        config.keep_zeros = True
    base = AdapterBase(weights_sha256(adapted), saved.seed, is_beside=True)
    trained, _ = adapted.get_nb_trainable_parameters()
    with staged_folder(out, replaced) as folder:
        save_adapter(adapted, folder / ADAPTER, base, adds_tokens=saved.adds_tokens)
        model = adapted.unload()
        save_model(model, form.small_files, folder)
        record = SparsityRecord(
            criterion=sparsity.criterion,
            updated_ratio=sparsity.updated_ratio,
            other_ratio=sparsity.other_ratio,
            seed=sparsity.seed,
            model=source.origin,
            source_sha256=sha256,
            adapter_sha256=saved.sha256,
            weights_sha256=base.weights_sha256,
            parameters=model_size(model).parameters,
            adapter_parameters=trained,
            maps=tuple(maps),
            seconds=round(time.perf_counter() - started, 1),
            versions=versions(),
        )
        (folder / "README.md").write_text(card(record), encoding="utf-8")
        (folder / SPARSITY_RECORD_FILE).write_text(record.to_json(), encoding="utf-8")
    return record
