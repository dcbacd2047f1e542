"""Classification heads of checkpoints: trained or not, and the order of their classes."""

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from mlpfusion.checkpoint.open import Checkpoint
from mlpfusion.checkpoint.read import empty_model
from mlpfusion.checkpoint.weights import loaded_names
from mlpfusion.data.labelled.glue import LabelledTask
from mlpfusion.data.labelled.load import Examples, LabelledData
from mlpfusion.errors import InputError
from mlpfusion.sites.sites import base_model


def classifier_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Class of transformers for sequence classification. Raises `InputError` for model types without one.

    >>> classifier_class(transformers.BertConfig()).__name__
    'BertForSequenceClassification'
    """
    if config.model_type not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise InputError(
            f"`model` must be of a type that transformers has a head for sequence classification for, "
            f"got {config.model_type}"
        )
    return getattr(transformers, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES[config.model_type])


def head_tensors(config: PreTrainedConfig, kind: type[PreTrainedModel]) -> tuple[str, ...]:
    """Names of the parameters of `kind` outside its base model."""
    return _head(empty_model(config, kind))


def has_trained_head(config: PreTrainedConfig, kind: type[PreTrainedModel], tensors: Collection[str]) -> bool:
    """True if the weight files hold the whole head of `kind`.

    `tensors` are the names in the files. `architectures` of the config is not asked: a config may
    name a head missing from the files.
    """
    model = empty_model(config, kind)
    head = _head(model)
    return bool(head) and set(head) <= set(loaded_names(model, tensors).values())


def has_head(checkpoint: Checkpoint, kind: type[PreTrainedModel]) -> bool:
    """Whether the checkpoint has a trained head of the class `kind`, to be kept."""
    return not checkpoint.new_head and has_trained_head(checkpoint.training_config, kind, checkpoint.tensors)


def _head(model: PreTrainedModel) -> tuple[str, ...]:
    base = {id(parameter) for parameter in base_model(model).parameters()}
    return tuple(name for name, parameter in model.named_parameters() if id(parameter) not in base)


def class_names(config: PreTrainedConfig) -> tuple[str, ...]:
    """Names of a head's classes, in the order of its outputs.

    >>> class_names(transformers.BertConfig(id2label={0: "bad", 1: "good"}))
    ('bad', 'good')
    """
    names: dict[Any, Any] = config.id2label or {}  # transformers makes the keys whole numbers
    return tuple(str(names.get(index, f"LABEL_{index}")) for index in range(config.num_labels or 0))


def class_order(names: Sequence[str], spellings: Sequence[Sequence[str]]) -> tuple[int, ...] | None:
    """Maps the classes of a head to the data's; None for different names.

    `names` are the head's, `spellings` alternatives for the data's, each in the data's order. Case,
    spaces, underscores and hyphens do not count, unless two classes differ in nothing else. The
    nameless `LABEL_0`, `LABEL_1`, .. take the order of the data.

    >>> class_order(["Positive", "Negative"], [("negative", "positive")])
    (1, 0)
    >>> class_order(["LABEL_0", "LABEL_1"], [("negative", "positive")])
    (0, 1)
    """
    for spelling in spellings:
        for form in (str, _plain):
            theirs, ours = [form(name) for name in names], [form(name) for name in spelling]
            if len(set(ours)) == len(ours) and sorted(theirs) == sorted(ours):
                return tuple(ours.index(name) for name in theirs)
    same = len(names) == len(spellings[0]) and is_nameless(names)
    return tuple(range(len(names))) if same else None


def is_nameless(names: Sequence[str]) -> bool:
    """True for the default names of transformers, `LABEL_0`, `LABEL_1`, ..

    >>> is_nameless(["LABEL_0", "LABEL_1"])
    True
    """
    return all(name == f"LABEL_{index}" for index, name in enumerate(names))


def teacher_order(student: PreTrainedModel, teacher: PreTrainedModel) -> list[int] | None:
    """Maps the student's classes to the teacher's; None for equal order.

    Raises `InputError` if the two heads name their classes differently.
    """
    ours, theirs = class_names(student.config), class_names(teacher.config)
    if not type(teacher).__name__.endswith("Classification") or ours == theirs or is_nameless(theirs):
        return None
    order = class_order(ours, [theirs])
    if order is None:
        raise InputError(
            f"`compressed` must have a head for the classes of `original`, {', '.join(theirs)}, "
            f"got one for {', '.join(ours)}; give both the same names"
        )
    return None if order == tuple(range(len(order))) else list(order)


def in_order_of_head(data: LabelledData, config: PreTrainedConfig) -> LabelledData:
    """Renumbers and renames the classes of `data` like the trained head of `config`.

    Raises `InputError` if the head has another number of outputs, or other names than the data.
    """
    task = data.task
    if config.num_labels != task.num_labels:
        raise _other_size(task, config)
    if task.is_regression:
        return data
    names, order = class_names(config), head_order(task, config)
    same = order == tuple(range(len(order)))
    if same and (is_nameless(names) or names == task.label_names):
        return data
    places = {label: place for place, label in enumerate(order)}

    def moved(examples: Examples) -> Examples:
        return replace(examples, labels=tuple(places[int(label)] for label in examples.labels))

    evaluation = {name: moved(examples) for name, examples in data.evaluation.items()}
    ordered = replace(task, label_names=names, other_names=(), positive=places[task.positive])
    return replace(data, task=ordered, train=moved(data.train), evaluation=evaluation)


def head_order(task: LabelledTask, config: PreTrainedConfig) -> tuple[int, ...]:
    """Finds the class of `task` for every class of the head. Raises `InputError` if the names differ."""
    names = class_names(config)
    order = class_order(names, task.spellings())
    if order is None:
        raise InputError(
            f"`model` must have a head for the classes {', '.join(task.label_names)} of {task.name}, "
            f"got one for {', '.join(names)}; give both the same names, or `new_head` draws a new one"
        )
    return order


def _plain(name: str) -> str:
    return re.sub(r"[\s_]+|(?<=\w)-(?=\w)", " ", name.casefold()).strip()


def check_order(task: LabelledTask, config: PreTrainedConfig) -> None:
    """Raises `InputError` unless the trained head of `config` has the classes of `task`, in their order."""
    if config.num_labels != task.num_labels:
        raise _other_size(task, config)
    if not task.is_regression and head_order(task, config) != tuple(range(task.num_labels)):
        raise InputError(
            f"the labels must stand in the order of the head, {', '.join(class_names(config))}, "
            f"got {', '.join(task.label_names)}"
        )


def _other_size(task: LabelledTask, config: PreTrainedConfig) -> InputError:
    return InputError(
        f"`model` must have a head of {task.num_labels} outputs for {task.name}, or none, got {config.num_labels}; "
        "`new_head` draws a new one"
    )


def check_head(model: PreTrainedModel, num_labels: int) -> None:
    """Raises `InputError` unless `model` is a sequence classifier with `num_labels` outputs."""
    if not type(model).__name__.endswith("ForSequenceClassification"):
        raise InputError(f"`model` must have a head for sequence classification, got {type(model).__name__}")
    if model.config.num_labels != num_labels:
        raise InputError(
            f"`model` must have a head of {num_labels} outputs for the task, got {model.config.num_labels}"
        )
