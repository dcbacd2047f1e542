"""The model that is tuned: a checkpoint, read as a classifier (or regressor) of sequences for the task."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from mlpfusion.checkpoint.read import check_finite, check_weights, load_model, read_config, resolve
from mlpfusion.errors import InputError
from mlpfusion.tasks.glue import Task
from mlpfusion.tasks.text import load_tokenizer
from mlpfusion.tune.randomness import seeded

_HEAD = "ForSequenceClassification"


@dataclass(frozen=True)
class Source:
    """A checkpoint that was checked: its folder, config, tokenizer, and the SHA-256 of its config and weights."""

    folder: Path
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    sha256: str


def open_source(model: str, revision: str | None = None) -> Source:
    """Reads and checks a checkpoint. Raises `InputError` as the readers do, and for NaN or Inf in a weight."""
    folder = resolve(model, revision)
    config = read_config(folder)
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in check_weights(folder):
        check_finite(file)
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return Source(folder, config, load_tokenizer(folder), digest.hexdigest())


def prepare_config(source: Source, task: Task) -> PreTrainedConfig:
    """The config of `source` with the outputs, label names and padding token for `task`; a copy.

    Raises `InputError` if transformers has no such head for the model type, or the checkpoint has one of another size.
    """
    config = type(source.config).from_dict(source.config.to_dict())
    if config.model_type not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise InputError(
            f"`model` must be of a type that transformers has a head for sequence classification for, "
            f"got {config.model_type}"
        )
    has_head = (config.architectures or [""])[0].endswith(_HEAD)
    if has_head and config.num_labels != task.num_labels:
        raise InputError(
            f"`model` must have a head of {task.num_labels} outputs for {task.name}, or none, got {config.num_labels}"
        )
    config.num_labels = task.num_labels
    config.problem_type = "regression" if task.is_regression else "single_label_classification"
    if task.label_names:
        config.id2label = dict(enumerate(task.label_names))
        config.label2id = {name: index for index, name in enumerate(task.label_names)}
    if config.pad_token_id is None:
        config.pad_token_id = source.tokenizer.pad_token_id
    return config


def load_for_task(source: Source, task: Task, seed: int) -> PreTrainedModel:
    """The model of `source` with the head for `task`, in fp32.

    A head that the checkpoint lacks is drawn from `seed` alone: it is the same for a model and what it was compressed
    to. Raises `InputError` as `prepare_config` and `load_model` do.
    """
    config = prepare_config(source, task)
    with seeded(seed):
        return load_model(source.folder, config, kind=_kind(config), dtype=torch.float32)


def load_source(source: Source) -> PreTrainedModel:
    """The checkpoint as it is, in its own class, in fp32. What a head may lack is drawn from a fixed seed."""
    with seeded(0):
        return load_model(source.folder, source.config, dtype=torch.float32)


def load_like(source: Source, teacher: PreTrainedModel, seed: int) -> PreTrainedModel:
    """The checkpoint in the class of `teacher`, with outputs like its, in fp32; a missing head is drawn from `seed`."""
    config = type(source.config).from_dict(source.config.to_dict())
    for name in ("id2label", "label2id", "problem_type", "pad_token_id"):
        setattr(config, name, getattr(teacher.config, name))
    with seeded(seed):
        return load_model(source.folder, config, kind=type(teacher), dtype=torch.float32)


def empty_for_task(source: Source, task: Task) -> PreTrainedModel:
    """The same model without memory for its weights. Raises `InputError` as `prepare_config` does."""
    config = prepare_config(source, task)
    with torch.device("meta"):
        return _kind(config)(config)


def _kind(config: PreTrainedConfig) -> type[PreTrainedModel]:
    return getattr(transformers, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES[config.model_type])
