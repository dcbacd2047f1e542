"""The tasks of GLUE as data: which columns hold the text, what the labels mean, and what is measured."""

from dataclasses import dataclass, field

from mlpfusion.errors import InputError


@dataclass(frozen=True)
class Task:
    """A sentence or sentence-pair task. Without label names it is a regression on one number.

    `metrics` are names of `tasks.metrics.METRICS`, the first is the headline. `splits` are the evaluation splits, the
    first of which is the one to select on where the paper's habit is followed; `folder` is the name in the unpacked
    GLUE download. `other_names` are what checkpoints call the labels too, in the same order; `positive` is the class
    whose F1 is measured.
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
        """The names that the classes may have in a checkpoint: its own, others, and for GLUE their numbers."""
        numbers = tuple(str(index) for index in range(len(self.label_names))) if self.folder else ()
        return tuple(names for names in (self.label_names, self.other_names, numbers) if names) or ((),)

    @property
    def headline(self) -> str:
        """The metric that stands for the task."""
        return self.metrics[0]

    @property
    def num_labels(self) -> int:
        """Outputs of the head: one a class, or one for a regression."""
        return max(1, len(self.label_names))

    @property
    def is_regression(self) -> bool:
        """Whether the label is a number to predict."""
        return not self.label_names


@dataclass(frozen=True)
class CustomTask:
    """What names the columns of a data set of one's own: `classes`, every distinct label one, unless `regression`."""

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
    """The row of a task by its name. Raises `InputError` for an unknown one."""
    if name not in GLUE:
        raise InputError(f"`task` must be one of {', '.join(GLUE)}, got {name!r}")
    return GLUE[name]
