"""Loads a labelled task: texts and labels, checked before any training; one code after the rows are read."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlpfusion.errors import InputError
from mlpfusion.tasks.glue import CustomTask, Task, find_task
from mlpfusion.tasks.rows import Rows, hub_rows, read_rows

DATA_VARIABLE = "MLPFUSION_DATA"
DEFAULT_DATA = Path("..") / "shared" / "data"
HUB_DATASET = "nyu-mll/glue"


@dataclass(frozen=True)
class Examples:
    """Texts (one or two each) and labels: class numbers, or floats for a regression."""

    texts: tuple[tuple[str, ...], ...]
    labels: tuple[int | float, ...]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class TaskData:
    """A task with its examples; `evaluation` holds the reported splits by name, `source` says where they are from."""

    task: Task
    train: Examples
    evaluation: Mapping[str, Examples]
    source: str


def load_task(name: str, *, train: Path | None = None, validation: Path | None = None) -> TaskData:
    """A task of GLUE: from the folder that MLPFUSION_DATA names (default ../shared/data if it exists), else the Hub.

    `train` and `validation` are files with the columns of the task to take instead. Where a folder holds a part of a
    training set only (`train_subset`), that is taken, and `source` says so. Raises `InputError` for an unknown task, a
    missing split or column, an empty split, and a label out of range.
    """
    task = find_task(name)
    folder, sources = _data_folder(task), []
    wanted = [("train", train), *((split, validation) for split in task.splits)]
    if validation is not None:
        wanted = [("train", train), ("validation", validation)]
    splits = {}
    for split, file in wanted:
        rows, source = _split_rows(task, split, file, folder)
        splits[split] = _examples(rows, task, split, f"{split} of {name}")
        sources.append(source)
    return TaskData(task, splits.pop("train"), splits, ", ".join(sources))


def load_files(train: Path, validation: Path, columns: CustomTask) -> TaskData:
    """A data set of one's own. Classes are the distinct labels of the training file in their order, numbers as numbers.

    Measured are accuracy, and F1 for two classes; Pearson and Spearman for a regression. Raises `InputError` as
    `load_task` does, and for a validation label that training does not have.
    """
    train_rows, validation_rows = read_rows(train, "train"), read_rows(validation, "validation")
    _check_columns(train_rows, columns.text_columns, columns.label_column, "train", f"train, {train}")
    names = () if columns.regression else _label_names(train_rows, columns.label_column)
    metrics = ("pearson", "spearman") if not names else ("accuracy", "f1")[: 2 if len(names) == 2 else 1]
    task = Task(columns.name, columns.text_columns, names, metrics, label_column=columns.label_column)
    evaluation = {"validation": _examples(validation_rows, task, "validation", f"validation, {validation}")}
    return TaskData(
        task, _examples(train_rows, task, "train", f"train, {train}"), evaluation, f"{train.name}, {validation.name}"
    )


def _data_folder(task: Task) -> Path | None:
    """The folder of the task's files, None for the Hub."""
    named = os.environ.get(DATA_VARIABLE)
    folder = (DEFAULT_DATA if named is None else Path(named).expanduser()) / "glue" / task.folder
    if folder.is_dir() and named != "":
        return folder
    if named:
        raise InputError(f"`{DATA_VARIABLE}` must name a folder that holds glue/{task.folder}, got {named}")
    return None


def _split_rows(task: Task, split: str, file: Path | None, folder: Path | None) -> tuple[Rows, str]:
    if file is not None:
        return read_rows(file, split), file.name
    if folder is None:
        return hub_rows(HUB_DATASET, task.name, split), f"{HUB_DATASET} {task.name} {split}"
    for name in (split, f"{split}_subset"):
        path = folder / f"{name}.jsonl.gz"
        if path.is_file():
            return read_rows(path, split), f"glue/{task.folder}/{path.name}"
    raise InputError(f"`task` must have a {split} split in {folder}, {task.name} has none; give a file by --{split}")


def _check_columns(rows: Rows, text_columns: Sequence[str], label_column: str, split: str, where: str) -> None:
    if not rows:
        raise InputError(f"`{split}` must hold at least one row, got none in {where}")
    for column, option in [*((column, "text_column") for column in text_columns), (label_column, "label_column")]:
        for number, row in enumerate(rows, start=1):
            if column not in row:
                raise InputError(f"`{option}` must be a column of {where}, one of {', '.join(row)}, got {column!r}")
            if option == "text_column" and not isinstance(row[column], str):
                raise InputError(f"`{column}` must be text in {where}, got {row[column]!r} in row {number}")


def _examples(rows: Rows, task: Task, split: str, where: str) -> Examples:
    _check_columns(rows, task.text_columns, task.label_column, split, where)
    texts = tuple(tuple(row[column] for column in task.text_columns) for row in rows)
    labels = tuple(_label(row[task.label_column], task, f"{where}, row {number}") for number, row in enumerate(rows, 1))
    return Examples(texts, labels)


def _label(value: Any, task: Task, where: str) -> int | float:
    if task.is_regression:
        return _number(value, where)
    if isinstance(value, str) and value in task.label_names:
        return task.label_names.index(value)
    if str(value) in task.label_names and not isinstance(value, bool):
        return task.label_names.index(str(value))
    if task.folder and type(value) is int and 0 <= value < task.num_labels:
        return value
    allowed = f"0 to {task.num_labels - 1}" if task.folder else ", ".join(task.label_names)
    raise InputError(f"`label` must be one of {allowed} in {where}, got {value!r}")


def _number(value: Any, where: str) -> float:
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if number - number != 0:  # NaN and Inf
        raise InputError(f"`label` must be a finite number in {where}, got {value!r}")
    return number


def _label_names(rows: Rows, column: str) -> tuple[str, ...]:
    values = {row[column] for row in rows if isinstance(row[column], str | int) and not isinstance(row[column], bool)}
    others = [row[column] for row in rows if type(row[column]) not in (str, int)]
    if others:
        raise InputError(
            f"`label` must be text or a whole number for a class, got {others[0]!r}; --regression takes it"
        )
    if len(values) < 2:
        raise InputError(f"`label` must have at least two different values in train, got {sorted(values)}")
    numeric = all(str(value).lstrip("-").isdigit() for value in values)
    return tuple(str(value) for value in sorted(values, key=(lambda v: (int(v), str(v))) if numeric else str))
