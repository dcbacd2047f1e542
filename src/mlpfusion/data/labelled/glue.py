"""The tasks of GLUE as data: text columns, label names, metrics, splits."""

from dataclasses import dataclass, field

from mlpfusion.data.task import Task
from mlpfusion.errors import InputError


@dataclass(frozen=True, kw_only=True)
class LabelledTask(Task):
    """A classification task on sentences or pairs, or a regression on one number.

    A task without `label_names` is a regression. `metrics` are keys of `METRICS`. `other_names` are further names of
    the labels in checkpoints, in the same order. F1 is that of class `positive`.
    """

    text_columns: tuple[str, ...]
    label_names: tuple[str, ...]
    label_column: str = "label"
    other_names: tuple[str, ...] = ()
    positive: int = 1

    @property
    def kind(self) -> str:
        """Classification, or regression."""
        return "regression" if self.is_regression else "classification"

    def spellings(self) -> tuple[tuple[str, ...], ...]:
        """Possible names of the classes in a checkpoint.

        >>> GLUE["mrpc"].spellings()
        (('different', 'equivalent'), ('not_equivalent', 'equivalent'), ('0', '1'))
        """
        numbers = tuple(str(index) for index in range(len(self.label_names))) if self.folder else ()
        return tuple(names for names in (self.label_names, self.other_names, numbers) if names) or ((),)

    @property
    def num_labels(self) -> int:
        """Number of outputs of the head: one per class, one for a regression."""
        return max(1, len(self.label_names))

    @property
    def is_regression(self) -> bool:
        """True if the label is a number to predict."""
        return not self.label_names


def check_labelled(task: Task) -> LabelledTask:
    """The task itself. Raises `InputError` for one without labels."""
    if not isinstance(task, LabelledTask):
        allowed = "a classification or a regression for a method that learns on a task"
        raise InputError(f"`task` must be {allowed}, got {task.name}, {task.kind}")
    return task


@dataclass(frozen=True)
class CustomTask:
    """Column names of your own data set.

    Every distinct label is a class; with `regression` labels are numbers.
    """

    text_columns: tuple[str, ...]
    label_column: str
    regression: bool = False
    name: str = field(default="custom")


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
_EQUIVALENT = ("different", "equivalent")

# Wang et al. 2019; the columns and the order of the labels are those of the Hub's `nyu-mll/glue`.
GLUE: dict[str, LabelledTask] = {
    task.name: task
    for task in (
        LabelledTask(
            name="cola",
            text_columns=("sentence",),
            label_names=("unacceptable", "acceptable"),
            metrics=("matthews", "accuracy"),
            folder="glue/CoLA",
        ),
        LabelledTask(
            name="mnli",
            text_columns=("premise", "hypothesis"),
            label_names=("entailment", "neutral", "contradiction"),
            metrics=("accuracy",),
            splits=("validation_matched", "validation_mismatched"),
            folder="glue/MNLI",
        ),
        LabelledTask(
            name="mrpc",
            text_columns=_PAIR,
            label_names=_EQUIVALENT,
            metrics=("accuracy", "f1"),
            folder="glue/MRPC",
            other_names=("not_equivalent", "equivalent"),
        ),
        LabelledTask(
            name="qnli",
            text_columns=("question", "sentence"),
            label_names=_ENTAILMENT,
            metrics=("accuracy",),
            folder="glue/QNLI",
        ),
        LabelledTask(
            name="qqp",
            text_columns=("question1", "question2"),
            label_names=_EQUIVALENT,
            metrics=("accuracy", "f1"),
            folder="glue/QQP",
            other_names=("not_duplicate", "duplicate"),
        ),
        LabelledTask(name="rte", text_columns=_PAIR, label_names=_ENTAILMENT, metrics=("accuracy",), folder="glue/RTE"),
        LabelledTask(
            name="sst2",
            text_columns=("sentence",),
            label_names=("negative", "positive"),
            metrics=("accuracy",),
            folder="glue/SST-2",
        ),
        LabelledTask(
            name="stsb", text_columns=_PAIR, label_names=(), metrics=("pearson", "spearman"), folder="glue/STS-B"
        ),
        LabelledTask(
            name="wnli",
            text_columns=_PAIR,
            label_names=("not_entailment", "entailment"),
            metrics=("accuracy",),
            folder="glue/WNLI",
        ),
    )
}
