"""Opens checkpoints for training, as classifiers or regressors of sequences."""

from dataclasses import replace

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from mlpfusion.checkpoint.open import Checkpoint
from mlpfusion.checkpoint.read import load_model
from mlpfusion.data.chosen import training_order
from mlpfusion.data.encode import EncodedTask, encode_task
from mlpfusion.data.glue import Task
from mlpfusion.data.heads import (
    class_names,
    classifier_class,
    has_trained_head,
    head_order,
    head_tensors,
    in_order_of_head,
    is_nameless,
)
from mlpfusion.data.load import TaskData
from mlpfusion.errors import InputError
from mlpfusion.options.training import Finetune
from mlpfusion.seeds import seeded


def has_head(checkpoint: Checkpoint, kind: type[PreTrainedModel]) -> bool:
    """Whether the checkpoint has a trained head of the class `kind`, to be kept."""
    return not checkpoint.new_head and has_trained_head(checkpoint.training_config, kind, checkpoint.tensors)


def encode_for(
    checkpoint: Checkpoint, data: TaskData, max_length: int | None, config: Finetune | None = None
) -> EncodedTask:
    """Tokenizes `data` for the model of `checkpoint`, classes in the order of its head.

    With `config` only the training texts of a run with its `max_train_samples` and `split_seed` are
    tokenized. Raises `InputError` for a trained head with other classes, and a `max_length` above the
    model's limit.
    """
    if has_head(checkpoint, classifier_class(checkpoint.training_config)):
        data = in_order_of_head(data, checkpoint.training_config)
    is_chosen = config is not None and config.max_train_samples is not None
    if config is not None and is_chosen:
        data = replace(data, train=data.train.subset(training_order(len(data.train), config)))
    return replace(
        encode_task(data, checkpoint.tokenizer, checkpoint.training_config, max_length=max_length), is_chosen=is_chosen
    )


def prepare_config(checkpoint: Checkpoint, task: Task) -> PreTrainedConfig:
    """Copies the config of `checkpoint` with the outputs and label names of `task`.

    Raises `InputError` for a model type without a head for sequences, and for a trained head of
    another size, with other classes or in another order (`encode_for` reorders a task).
    """
    config = type(checkpoint.training_config).from_dict(checkpoint.training_config.to_dict())
    if has_head(checkpoint, classifier_class(config)):
        _check_order(task, config)
    if config.is_encoder_decoder and config.pad_token_id == config.eos_token_id:
        raise InputError(
            "the tokenizer must have a padding token that is not its end token, where the head reads, "
            f"got {checkpoint.tokenizer.pad_token!r}; name another `pad_token` in tokenizer_config.json"
        )
    config.num_labels = task.num_labels
    config.problem_type = "regression" if task.is_regression else "single_label_classification"
    if task.label_names:
        config.id2label = dict(enumerate(task.label_names))
        config.label2id = {name: index for index, name in enumerate(task.label_names)}
    return config


def load_for_task(checkpoint: Checkpoint, task: Task, seed: int) -> PreTrainedModel:
    """Loads the model of `checkpoint` with the head of `task`, in fp32.

    A missing head is drawn from `seed` alone, so it is the same for a model and its compressed form.
    Raises `InputError` for a head that does not fit the task.
    """
    config = prepare_config(checkpoint, task)
    kind = classifier_class(config)
    left_out = head_tensors(config, kind) if checkpoint.new_head else ()
    with seeded(seed):
        return load_model(checkpoint.folder, config, kind=kind, dtype=torch.float32, left_out=left_out)


def load_in_own_class(checkpoint: Checkpoint) -> PreTrainedModel:
    """Loads the checkpoint in its own class, in fp32.

    Missing tensors of a head are drawn from seed 0.
    """
    with seeded(0):
        return _padded_alike(load_model(checkpoint.folder, checkpoint.training_config, dtype=torch.float32))


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
        return _padded_alike(load_model(checkpoint.folder, config, kind=type(teacher), dtype=torch.float32))


def empty_for_task(checkpoint: Checkpoint, task: Task) -> PreTrainedModel:
    """Builds the model of `load_for_task` on the meta device, without weights."""
    config = prepare_config(checkpoint, task)
    with torch.device("meta"):
        return classifier_class(config)(config)


def _padded_alike(model: PreTrainedModel) -> PreTrainedModel:
    """Sets the padding id of the config in the generation config, in place."""
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = model.config.get_text_config().pad_token_id
    return model


def _check_order(task: Task, config: PreTrainedConfig) -> None:
    if config.num_labels != task.num_labels:
        raise InputError(
            f"`model` must have a head of {task.num_labels} outputs for {task.name}, or none, got {config.num_labels}; "
            "`new_head` draws a new one"
        )
    if not task.is_regression and head_order(task, config) != tuple(range(task.num_labels)):
        raise InputError(
            f"the labels must stand in the order of the head, {', '.join(class_names(config))}, "
            f"got {', '.join(task.label_names)}"
        )
