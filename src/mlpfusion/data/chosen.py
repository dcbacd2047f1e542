"""The data of a job, from its flags."""

from typing import Any

import torch

from mlpfusion.data.encode import EncodedExamples, EncodedTask
from mlpfusion.data.labelled.kind import load_custom
from mlpfusion.data.task import ALL, Parts, TaskData
from mlpfusion.data.tasks import find_task, kind_of_task
from mlpfusion.errors import InputError
from mlpfusion.options.task import TaskOptions
from mlpfusion.options.training import Finetune


def chosen_data(options: TaskOptions, validation: str | None, parts: Parts = ALL) -> TaskData[Any, Any]:
    """Reads the task that the options name, or the labelled files; `validation` is the file to report on.

    With a task and files, the files take the place of the task's own. Raises `InputError` as the loaders do, or if too
    little is given.
    """
    if options.task is None:
        return load_custom(options, validation, parts)
    task = find_task(options.task)
    return kind_of_task(task).load(task, options, validation, parts)


def training_order(num_examples: int, config: Finetune) -> list[int]:
    """The training examples that a run takes, at most `max_train_samples`: a random order by `split_seed`."""
    order = torch.randperm(num_examples, generator=torch.Generator().manual_seed(config.split_seed)).tolist()
    return order[: config.max_train_samples]


def split_train(data: EncodedTask, config: Finetune) -> tuple[EncodedExamples, EncodedExamples | None]:
    """Returns (training examples, examples for choosing the best epoch).

    The split depends on `split_seed` alone, not on `seed`. Raises `InputError` if a part would be empty.
    """
    order = list(range(len(data.train))) if data.is_chosen else training_order(len(data.train), config)
    if config.select_on == "last":
        return data.train.subset(order), None
    if config.select_on == "validation":
        return data.train.subset(order), next(iter(data.evaluation.values()))
    num_held_out = round(config.holdout * len(order))
    if not 2 <= num_held_out < len(order):
        raise InputError(
            f"`holdout` must leave at least 2 examples to choose on and 1 to train on, "
            f"got {config.holdout:g} of {len(order)} examples"
        )
    return data.train.subset(order[num_held_out:]), data.train.subset(order[:num_held_out])
