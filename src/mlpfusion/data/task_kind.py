"""What a kind of task is: how it is read, its head, its inputs and its scores."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from mlpfusion.checkpoint.open import Checkpoint
from mlpfusion.data.encode import EncodedTask
from mlpfusion.data.task import Parts, Task, TaskData, unused_option
from mlpfusion.options.fields import changed
from mlpfusion.options.task import TaskOptions


@dataclass(frozen=True)
class ModelNames:
    """What others call a model for a kind of task: PEFT, the class of transformers that loads it, the Hub."""

    adapter: str
    auto_class: str
    pipeline_tag: str


SEQUENCE_CLASSIFIER = ModelNames("SEQ_CLS", "AutoModelForSequenceClassification", "text-classification")


class TaskKind(ABC):
    """What all tasks of one kind have in common.

    `row_is_example`: every row of the data makes one example. An example asks the model for `answers` predictions to
    compare: one class, or several tokens.
    """

    row_is_example: ClassVar[bool] = True
    answers: ClassVar[int] = 1

    @abstractmethod
    def names(self, config: PreTrainedConfig) -> ModelNames:
        """What a model with `config` is called for such a task."""

    def new_tokens(self, _task: Any) -> tuple[str, ...]:
        """Special tokens that the tokenizer of a model must have."""
        return ()

    @abstractmethod
    def load(self, task: Any, options: TaskOptions, validation: str | None, parts: Parts) -> TaskData[Any, Any]:
        """Reads `parts` of `task`, in which files of `options` take the place of its own.

        Raises `InputError` for options that the kind has not, and data that cannot be read.
        """

    def check_options(self, task: Task, options: TaskOptions, used: Collection[str]) -> None:
        """Raises `InputError` for a changed option that is not among those that the kind uses."""
        for name, value in changed(options).items():
            if name not in used:
                raise unused_option(task, name, value)

    @abstractmethod
    def model_class(self, config: PreTrainedConfig) -> type[PreTrainedModel]:
        """Class of the model with the head. Raises `InputError` for a model that has none."""

    @abstractmethod
    def config(self, checkpoint: Checkpoint, task: Any) -> PreTrainedConfig:
        """A copy of the config of `checkpoint` that fits `task`. Raises `InputError` for a head that does not fit."""

    @abstractmethod
    def check_model(self, model: PreTrainedModel, task: Any) -> None:
        """Raises `InputError` unless `model` has the head of `task`."""

    def fitted(self, data: TaskData[Any, Any], _checkpoint: Checkpoint) -> TaskData[Any, Any]:
        """The data as the head of the checkpoint wants it."""
        return data

    @abstractmethod
    def encode(
        self,
        data: TaskData[Any, Any],
        tokenizer: PreTrainedTokenizerBase,
        config: PreTrainedConfig | None,
        max_length: int | None,
    ) -> EncodedTask:
        """Tokenizes every split of `data` that was read."""

    @abstractmethod
    def choices(self, task: Any) -> tuple[str, ...]:
        """Scores that epoch and rate can be chosen by, the usual one first."""

    @abstractmethod
    def evaluation_batch(self, batch_size: int) -> int:
        """Examples that are evaluated together where a step trains on `batch_size`."""

    @abstractmethod
    def kept(self, logits: Tensor, labels: Tensor, *, shifted: bool) -> Tensor:
        """What the scores need of the logits of a batch, one row an example; `shifted` as in `aligned`."""

    @abstractmethod
    def score(self, task: Any, kept: NDArray, labels: NDArray) -> dict[str, float]:
        """The `choices` of `task` by name, from what was `kept` of all examples."""

    @abstractmethod
    def answer_logits(self, logits: Tensor, labels: Tensor, *, shifted: bool) -> Tensor:
        """Logits of the predictions that are compared: (answers of all examples, outputs)."""
