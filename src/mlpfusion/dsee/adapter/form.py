"""The model that an adapter was trained on: its class and config, which need not be those of the checkpoint."""

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
from mlpfusion.checkpoint.open import Checkpoint
from mlpfusion.checkpoint.read import empty_model, model_class
from mlpfusion.data.task_model import load_with_config
from mlpfusion.dsee.adapter.saved import SavedAdapter
from mlpfusion.errors import InputError
from mlpfusion.seeds import seeded

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

    def load(self, source: Checkpoint, seed: int) -> PreTrainedModel:
        """The model with the weights of `source`; what these lack is drawn by `seed`."""
        with seeded(seed):
            return load_with_config(source, self.config, self.kind)


def task_form(source: Checkpoint, saved: SavedAdapter) -> TaskForm:
    """The form of the model that was tuned, where it lies above the adapter; else what the adapter itself says.

    Raises `InputError` for an adapter that says of no kind of task that the model has a class for.
    """
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
