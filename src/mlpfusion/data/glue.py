"""The tasks of GLUE as data: text columns, label names, metrics, splits."""

from dataclasses import dataclass, field

from mlpfusion.errors import InputError


@dataclass(frozen=True)
class Task:
    """A classification task on sentences or pairs, or a regression on one number.

    A task without `label_names` is a regression. `metrics` are keys of `data.metrics.METRICS`, the
    headline first. `splits` are the evaluation splits; the paper selects on the first. `folder` is
    the name in the unpacked GLUE download. `other_names` are further names of the labels in
    checkpoints, in the same order. F1 is that of class `positive`.
    """

    name: str
    text_columns: tuple[str, ...]
    label_names: tuple[str, ...]
    metrics: tuple[str, ...]
    splits: tuple[str, ...] = ("validation",)
    folder: str = ""
    label_column: str = "label"
    other_names: tuple[str, ...] = ()
    positive: int = 1

    def spellings(self) -> tuple[tuple[str, ...], ...]:
        """Possible names of the classes in a checkpoint.

        >>> find_task("mrpc").spellings()
        (('different', 'equivalent'), ('not_equivalent', 'equivalent'), ('0', '1'))
        """
        numbers = tuple(str(index) for index in range(len(self.label_names))) if self.folder else ()
        return tuple(names for names in (self.label_names, self.other_names, numbers) if names) or ((),)

    @property
    def headline(self) -> str:
        """Name of the first metric, reported for the task."""
        return self.metrics[0]

    @property
    def num_labels(self) -> int:
        """Number of outputs of the head: one per class, one for a regression."""
        return max(1, len(self.label_names))

    @property
    def is_regression(self) -> bool:
        """True if the label is a number to predict."""
        return not self.label_names


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
_NOT_EQUIVALENT = ("not_equivalent", "equivalent")

# Wang et al. 2019; the columns and the order of the labels are those of the Hub's `nyu-mll/glue`.
GLUE: dict[str, Task] = {
    task.name: task
    for task in (
        Task("cola", ("sentence",), ("unacceptable", "acceptable"), ("matthews", "accuracy"), folder="CoLA"),
        Task(
            "mnli",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            ("accuracy",),
            splits=("validation_matched", "validation_mismatched"),
            folder="MNLI",
        ),
        Task("mrpc", _PAIR, _EQUIVALENT, ("accuracy", "f1"), folder="MRPC", other_names=_NOT_EQUIVALENT),
        Task("qnli", ("question", "sentence"), _ENTAILMENT, ("accuracy",), folder="QNLI"),
        Task(
            "qqp",
            ("question1", "question2"),
            _EQUIVALENT,
            ("accuracy", "f1"),
            folder="QQP",
            other_names=("not_duplicate", "duplicate"),
        ),
        Task("rte", _PAIR, _ENTAILMENT, ("accuracy",), folder="RTE"),
        Task("sst2", ("sentence",), ("negative", "positive"), ("accuracy",), folder="SST-2"),
        Task("stsb", _PAIR, (), ("pearson", "spearman"), folder="STS-B"),
        Task("wnli", _PAIR, ("not_entailment", "entailment"), ("accuracy",), folder="WNLI"),
    )
}


def find_task(name: str) -> Task:
    """Finds a GLUE task by name. Raises `InputError` for an unknown name.

    >>> find_task("rte").text_columns
    ('sentence1', 'sentence2')
    """
    if name not in GLUE:
        raise InputError(f"`task` must be one of {', '.join(GLUE)}, got {name!r}")
    return GLUE[name]
