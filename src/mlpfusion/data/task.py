"""What a model learns: the part that all kinds of tasks share, and the data of a task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from mlpfusion.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task by name.

    `metrics` are scores of its kind, the headline first. `splits` are the evaluation splits; the paper selects on the
    first. `folder` holds its files in `MLPFUSION_DATA`; it is "" for your own files.
    """

    name: str
    metrics: tuple[str, ...]
    splits: tuple[str, ...] = ("validation",)
    folder: str = ""

    @property
    def kind(self) -> str:
        """Key of `KINDS`, which says what head, inputs and scores the task has."""
        raise NotImplementedError

    @property
    def reported(self) -> tuple[str, ...]:
        """The splits, and their parts, that have the headline score."""
        return self.splits

    @property
    def headline(self) -> str:
        """Name of the first metric, reported for the task."""
        return self.metrics[0]


def unused_option(task: Task, name: str, value: object) -> InputError:
    """The error for an option that a task does not use."""
    return InputError(f"`{name}` must be left out for the task {task.name}, which has no use for it, got {value}")


class Split(Protocol):
    """The examples of one split, before they are tokenized."""

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Parts:
    """The parts of a task that are read; a training split that is not is empty."""

    train: bool = True
    reported: bool = True

    def names(self, reported: Sequence[str]) -> tuple[str, ...]:
        """Names of the splits to read.

        >>> Parts(train=False).names(("validation", "test"))
        ('validation', 'test')
        """
        return (*(("train",) if self.train else ()), *(reported if self.reported else ()))


ALL, TRAIN, REPORTED = Parts(), Parts(reported=False), Parts(train=False)
AnyTask = TypeVar("AnyTask", bound=Task)
AnySplit = TypeVar("AnySplit", bound=Split)


@dataclass(frozen=True)
class TaskData(Generic[AnyTask, AnySplit]):
    """A task with its examples; `evaluation` holds the reported splits by name.

    `source` names the files or data sets for the record.
    """

    task: AnyTask
    train: AnySplit
    evaluation: Mapping[str, AnySplit]
    source: str

    @property
    def read(self) -> dict[str, AnySplit]:
        """All splits that were read, by name."""
        return ({"train": self.train} if len(self.train) else {}) | dict(self.evaluation)
