"""Opens checkpoints for training, with the head of a task."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from mlpfusion.checkpoint.open import Checkpoint
from mlpfusion.checkpoint.read import empty_model, load_model
from mlpfusion.data.chosen import training_order
from mlpfusion.data.encode import EncodedTask
from mlpfusion.data.labelled.heads import class_names, has_head, head_tensors, is_nameless
from mlpfusion.data.task import Task, TaskData
from mlpfusion.data.tasks import encode_task, kind_of_task
from mlpfusion.options.training import Finetune
from mlpfusion.seeds import seeded


def encode_for(
    checkpoint: Checkpoint, data: TaskData[Any, Any], max_length: int | None, config: Finetune | None = None
) -> EncodedTask:
    """Tokenizes `data` for the model of `checkpoint`, classes in the order of its head.

    With `config` only the training texts of a run with its `max_train_samples` and `split_seed` are
    tokenized, where a text is an example. Raises `InputError` for a trained head with other classes, and a `max_length`
    above the model's limit.
    """
    kind = kind_of_task(data.task)
    data = kind.fitted(data, checkpoint)
    is_chosen = config is not None and config.max_train_samples is not None and kind.row_is_example
    if config is not None and is_chosen:
        data = replace(data, train=data.train.subset(training_order(len(data.train), config)))
    encoded = encode_task(data, checkpoint.tokenizer, checkpoint.training_config, max_length=max_length)
    return replace(encoded, is_chosen=is_chosen)


def load_for_task(checkpoint: Checkpoint, task: Task, seed: int) -> PreTrainedModel:
    """Loads the model of `checkpoint` with the head of `task`, in fp32.

    A missing head is drawn from `seed` alone, so it is the same for a model and its compressed form.
    Raises `InputError` for a head that does not fit the task.
    """
    kind = kind_of_task(task)
    config = kind.config(checkpoint, task)
    head = kind.model_class(config)
    left_out = head_tensors(config, head) if checkpoint.new_head else ()
    with seeded(seed):
        return load_with_config(checkpoint, config, head, left_out)


def load_in_own_class(checkpoint: Checkpoint) -> PreTrainedModel:
    """Loads the checkpoint in its own class, in fp32.

    Missing tensors of a head are drawn from seed 0.
    """
    with seeded(0):
        return _padded_alike(load_with_config(checkpoint, checkpoint.training_config))


def load_like(checkpoint: Checkpoint, teacher: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Loads the checkpoint in the class of `teacher`, in fp32.

    A missing head gets the teacher's outputs and is drawn from `seed`; a trained head keeps its outputs
    and their names.
    """
    config = type(checkpoint.training_config).from_dict(checkpoint.training_config.to_dict())
    nameless = is_nameless(class_names(config)) and config.num_labels == teacher.config.num_labels
    if nameless or not has_head(checkpoint, type(teacher)):
        for name in ("id2label", "label2id"):
            setattr(config, name, getattr(teacher.config, name))
    config.problem_type = teacher.config.problem_type
    with seeded(seed):
        return _padded_alike(load_with_config(checkpoint, config, type(teacher)))


def load_with_config(
    checkpoint: Checkpoint,
    config: PreTrainedConfig,
    kind: type[PreTrainedModel] | None = None,
    left_out: Sequence[str] = (),
) -> PreTrainedModel:
    """Loads the checkpoint as the model of `config`, in fp32.

    What is missing is drawn from the global random stream, rows of new tokens about the mean of the others.
    """
    size, stored = config.get_text_config().vocab_size, checkpoint.config.get_text_config().vocab_size
    if size != stored:
        config = type(config).from_dict(config.to_dict())
        config.get_text_config().vocab_size = stored
    model = load_model(checkpoint.folder, config, kind=kind, dtype=torch.float32, left_out=left_out)
    if size != stored:
        model.resize_token_embeddings(size)
    return model


def empty_for_task(checkpoint: Checkpoint, task: Task) -> PreTrainedModel:
    """Builds the model of `load_for_task` on the meta device, without weights."""
    kind = kind_of_task(task)
    config = kind.config(checkpoint, task)
    return empty_model(config, kind.model_class(config))


def _padded_alike(model: PreTrainedModel) -> PreTrainedModel:
    """Sets the padding id of the config in the generation config, in place."""
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = model.config.get_text_config().pad_token_id
    return model
