"""A model and its adapter in, the same with zeros in the weights out."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import TaskType
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from mlpfusion.checkpoint.config import CONFIG, read_config
from mlpfusion.checkpoint.files import ADAPTER
from mlpfusion.checkpoint.open import Checkpoint
from mlpfusion.checkpoint.read import empty_model, model_class
from mlpfusion.checkpoint.save import save_model
from mlpfusion.data.task_model import load_with_config
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
from mlpfusion.errors import InputError
from mlpfusion.options.adapters.sparsity import Sparsity
from mlpfusion.record import model_size, versions
from mlpfusion.seeds import seeded
from mlpfusion.storage.output import Occupant, staged_folder

_CLASSES: dict[str | None, Any] = {
    None: AutoModel,
    TaskType.FEATURE_EXTRACTION: AutoModel,
    TaskType.SEQ_CLS: AutoModelForSequenceClassification,
    TaskType.CAUSAL_LM: AutoModelForCausalLM,
    TaskType.SEQ_2_SEQ_LM: AutoModelForSeq2SeqLM,
}


@dataclass(frozen=True)
class TaskForm:
    """The model under an adapter: its config and class, and the folder with its tokenizer."""

    config: PreTrainedConfig
    kind: type[PreTrainedModel]
    small_files: Path

    def empty(self) -> PreTrainedModel:
        """The model on the meta device."""
        return empty_model(self.config, self.kind)


def check_sparsify(source: Checkpoint, saved: SavedAdapter, sparsity: Sparsity) -> TaskForm:
    """Returns the form of the model. Raises `InputError`, before any weight is read, for all that can be known."""
    check_not_merged(source, saved)
    form = _task_form(source, saved)
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
    seed = 0 if saved.base is None else saved.base.seed
    with seeded(seed):  # what the checkpoint lacks is drawn as for the training of the adapter
        model = load_with_config(source, form.config, form.kind)
    adapted = put_on(model, saved, is_trainable=True)
    maps = set_zeros(adapted, sparsity)
    config: Any = adapted.peft_config["default"]
    config.base_model_name_or_path = str(out)  # where PEFT's own classes look for the weights
    if config.peft_type == "DSEE":
        config.keep_zeros = True
    base = AdapterBase(weights_sha256(adapted), seed, is_beside=True)
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


def _task_form(source: Checkpoint, saved: SavedAdapter) -> TaskForm:
    """The form of the model that was tuned, where it lies above the adapter; else what the adapter itself says."""
    config = type(source.config).from_dict(source.config.to_dict())
    above = saved.folder.resolve().parent
    tuned = read_config(above) if (above / CONFIG).is_file() else None
    if tuned is not None and tuned.model_type == config.model_type:
        for name in ("architectures", "id2label", "label2id", "problem_type"):
            setattr(config, name, getattr(tuned, name))
        text, tuned_text = config.get_text_config(), tuned.get_text_config()
        text.pad_token_id, text.vocab_size = tuned_text.pad_token_id, tuned_text.vocab_size
        return TaskForm(config, model_class(config), above)
    if saved.config.task_type not in _CLASSES:
        known = ", ".join(str(TaskType(name).value) for name in _CLASSES if name is not None)
        raise InputError(f"`adapter` must have a task_type among {known}, got {saved.config.task_type}")
    mapping = _CLASSES[saved.config.task_type]._model_mapping
    if type(config) not in mapping:
        raise InputError(f"`adapter` must fit the model, a {config.model_type} has no {saved.config.task_type} form")
    heads = sorted(name for name in saved.tensors if ".classifier." in name or ".score." in name)
    outputs = [saved.tensors[name].shape[0] for name in heads if name.endswith("weight")]
    if outputs:
        config.num_labels = outputs[-1]  # RoBERTa: `dense` before `out_proj`
    kinds = mapping[type(config)]
    return TaskForm(config, kinds[0] if isinstance(kinds, tuple) else kinds, source.folder)
