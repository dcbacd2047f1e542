"""The data of a job, from its flags."""

import torch
from transformers import TrainerCallback

from mlpfusion.checks import user_path
from mlpfusion.errors import InputError
from mlpfusion.tasks.glue import CustomTask, find_task
from mlpfusion.tasks.load import TaskData, load_files, load_task
from mlpfusion.tune.config import Finetune


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


def display_name(model: str) -> str:
    """The name of a checkpoint for records and cards: no path of this machine."""
    folder = user_path("model", model)
    return folder.resolve().name if folder.is_dir() else model


def log_callbacks(log_dir: str | None, name: str) -> list[TrainerCallback]:
    """A writer for TensorBoard, if one is asked for. Raises `InputError` if TensorBoard is not installed."""
    if log_dir is None:
        return []
    folder = user_path("log_dir", log_dir)
    from transformers.integrations.integration_utils import TensorBoardCallback, is_tensorboard_available

    if not is_tensorboard_available():
        raise InputError("`log_dir` needs TensorBoard: pip install tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    return [TensorBoardCallback(SummaryWriter(str(folder / name)))] if name else []
