"""The data of a job, from its flags."""

import torch

from mlpfusion.data.encode import EncodedExamples, EncodedTask
from mlpfusion.data.glue import CustomTask, find_task
from mlpfusion.data.load import TaskData, load_files, load_task
from mlpfusion.errors import InputError
from mlpfusion.options.task import TaskOptions
from mlpfusion.options.training import Finetune


def chosen_data(options: TaskOptions, validation: str | None) -> TaskData:
    """Reads the task that the options name, `validation` the file to report on. Raises `InputError`."""
    columns = custom_task(options.text_column, options.label_column, regression=options.regression, task=options.task)
    return task_data(options.task, options.train, validation, columns)


def task_data(task: str | None, train: str | None, validation: str | None, columns: CustomTask | None) -> TaskData:
    """The task of that name, or of the files; with both, the files take the place of the task's own.

    Raises `InputError` as the loaders do, or if too little is given.
    """
    if task is not None:
        return load_task(task, train=train, validation=validation)
    if columns is None or not (train and validation):
        raise InputError("`task` must be given, or `train`, `validation`, `text_column` and `label_column`")
    return load_files(train, validation, columns)


def custom_task(
    text_column: tuple[str, ...], label_column: str | None, *, regression: bool, task: str | None = None
) -> CustomTask | None:
    """The columns, None if not all are named.

    Raises `InputError` for more than two of text, and for any with a `task`, which has its own.
    """
    if task is not None:
        find_task(task)
    given = {"text_column": ",".join(text_column), "label_column": label_column, "regression": regression}
    for name, value in given.items():
        if task is not None and value:
            raise InputError(
                f"`{name}` must be left out with `task`, got {value}: {task} has its own columns and labels"
            )
    if len(text_column) > 2:
        raise InputError(f"`text_column` must name one column or two, got {', '.join(text_column)}")
    return CustomTask(text_column, label_column, regression) if text_column and label_column else None


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
