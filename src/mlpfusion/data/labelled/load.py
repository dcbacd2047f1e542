"""Loads a labelled task from GLUE or your own files, and checks all rows."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlpfusion.data.files.folder import data_folder
from mlpfusion.data.files.row import Row
from mlpfusion.data.files.rows import Table, check_not_empty, column_value, hub_table, read_table, short_name
from mlpfusion.data.labelled.glue import CustomTask, LabelledTask
from mlpfusion.data.task import ALL, Parts, TaskData
from mlpfusion.errors import InputError, shown

HUB_DATASET = "nyu-mll/glue"
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}")  # 18 digits fit into 64 bits


@dataclass(frozen=True)
class Examples:
    """Texts (one or two each) and labels (class numbers, or floats)."""

    texts: tuple[tuple[str, ...], ...]
    labels: tuple[int | float, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Sequence[int]) -> "Examples":
        """Picks the examples at `indices`, in their order."""
        return Examples(tuple(self.texts[index] for index in indices), tuple(self.labels[index] for index in indices))


LabelledData = TaskData[LabelledTask, Examples]


def load_glue(
    task: LabelledTask,
    *,
    train: Path | str | None = None,
    validation: Path | str | None = None,
    parts: Parts = ALL,
) -> LabelledData:
    """Loads `parts` of a GLUE task from the folder in MLPFUSION_DATA, else the Hub.

    `train` and `validation` are files with the task's columns, to read instead. If the folder has
    only a part of a training set (`train_subset`), that part is read and named in `source`. Raises
    `InputError` for a missing split or column, an empty split, and a label out of range.
    """
    folder, sources = data_folder(task.folder), []
    reported = task.splits if validation is None else ("validation",)
    splits = {}
    for split in parts.names(reported):
        table, source = _split_table(task, split, train if split == "train" else validation, folder)
        splits[split] = _examples(table, task, split)
        sources.append(source)
    return TaskData(task, splits.pop("train", Examples((), ())), splits, ", ".join(sources))


def load_files(train: Path | str, validation: Path | str | None, columns: CustomTask) -> LabelledData:
    """Loads your own data set from two files, or the training split alone.

    Classes are the distinct labels of the training file, sorted (numbers by value), stripped of
    white space. Metrics are accuracy, and F1 for two classes; Pearson and Spearman for a
    regression. Raises `InputError` for a missing column, an empty file, and a validation label
    absent from training.

    >>> for name in ("a.csv", "b.csv"):
    ...     _ = (folder / name).write_text("text,label\\ngood,yes\\nbad,no\\n")
    >>> load_files(folder / "a.csv", folder / "b.csv", CustomTask(("text",), "label")).task.label_names
    ('no', 'yes')
    """
    files = {"train": train} | ({} if validation is None else {"validation": validation})
    tables = {split: read_table(file, split) for split, file in files.items()}
    _check_columns(tables["train"], columns.text_columns, columns.label_column, "train")
    names = () if columns.regression else _label_names(tables["train"], columns.label_column)
    metrics = ("pearson", "spearman") if not names else ("accuracy", "f1")[: 2 if len(names) == 2 else 1]
    task = LabelledTask(
        name=columns.name,
        text_columns=columns.text_columns,
        label_names=names,
        metrics=metrics,
        label_column=columns.label_column,
    )
    splits = {split: _examples(table, task, split) for split, table in tables.items()}
    return TaskData(task, splits.pop("train"), splits, ", ".join(map(short_name, files.values())))


def _split_table(task: LabelledTask, split: str, file: Path | str | None, folder: Path | None) -> tuple[Table, str]:
    if file is not None:
        return read_table(file, split), short_name(file)
    if folder is None:
        table = hub_table(HUB_DATASET, task.name, split)
        return table, table.name
    for name in (split, f"{split}_subset"):
        path = folder / f"{name}.jsonl.gz"
        if path.is_file():
            return read_table(path, split), f"{task.folder}/{path.name}"
    raise InputError(f"`task` must have a {split} split in {folder}, {task.name} has none; give a file by --{split}")


def _check_columns(table: Table, text_columns: Sequence[str], label_column: str, split: str) -> None:
    check_not_empty(table, split)
    for column, option in [*((column, "text_column") for column in text_columns), (label_column, "label_column")]:
        for row in table.rows:
            value = column_value(table, row, column, option)
            if option == "text_column" and not isinstance(value, str):
                raise InputError(f"`{column}` must be text in {table.place(row)}, got {shown(value)}")


def _examples(table: Table, task: LabelledTask, split: str) -> Examples:
    _check_columns(table, task.text_columns, task.label_column, split)
    texts = tuple(tuple(row.values[column] for column in task.text_columns) for row in table.rows)
    names = {str(number): number for number in range(task.num_labels)} if task.folder else {}
    names |= {name: number for number, name in enumerate(task.label_names)}
    labels = tuple(_label(row.values[task.label_column], task, names, table, row) for row in table.rows)
    return Examples(texts, labels)


def _label(value: Any, task: LabelledTask, names: Mapping[str, int], table: Table, row: Row) -> int | float:
    if task.is_regression:
        return _number(value, table, row)
    name = _class_name(value)
    if name is not None and name in names:
        return names[name]
    allowed = f"0 to {task.num_labels - 1}" if task.folder else ", ".join(task.label_names)
    raise InputError(f"`label` must be one of {allowed} in {table.place(row)}, got {shown(value)}")


def _class_name(value: Any) -> str | None:
    """Class name, stripped; None unless `value` is text or a whole number."""
    return str(value).strip() if type(value) in (str, int) else None


def _number(value: Any, table: Table, row: Row) -> float:
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if number - number != 0:  # NaN and Inf
        raise InputError(f"`label` must be a finite number in {table.place(row)}, got {shown(value)}")
    return number


def _label_names(table: Table, column: str) -> tuple[str, ...]:
    values: dict[str, None] = {}
    for row in table.rows:
        name = _class_name(row.values[column])
        if name is None:
            given = f"got {shown(row.values[column])} in {table.place(row)}"
            raise InputError(f"`label` must be text or a whole number for a class, {given}; --regression takes it")
        values[name] = None
    if len(values) < 2:
        raise InputError(f"`label` must have at least two different values in train, got {sorted(values)}")
    numeric = all(_WHOLE_NUMBER.fullmatch(value) for value in values)
    return tuple(sorted(values, key=(lambda value: (int(value), value)) if numeric else str))
