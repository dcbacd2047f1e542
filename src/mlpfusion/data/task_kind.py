"""What a kind of task is: how it is read, its head, its inputs and its scores."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from mlpfusion.checkpoint.open import Checkpoint
from mlpfusion.data.encode import EncodedTask
from mlpfusion.data.task import TaskData
from mlpfusion.options.task import TaskOptions


class TaskKind(ABC):
    """What all tasks of one kind have in common.

    `adapter` is PEFT's name of the kind, `auto_class` the class of transformers that loads a tuned model, and
    `pipeline_tag` the Hub's. A row of the data is one example unless `packs_rows`. An example asks the model for
    `answers` predictions to compare: one class, or several tokens.
    """

    adapter: ClassVar[str]
    auto_class: ClassVar[str]
    pipeline_tag: ClassVar[str]
    packs_rows: ClassVar[bool] = False
    answers: ClassVar[int] = 1

    @abstractmethod
    def load(self, task: Any, options: TaskOptions, validation: str | None) -> TaskData[Any, Any]:
        """Reads the data of `task`, in which files of `options` take the place of its own.

        Raises `InputError` for options that the kind has not, and data that cannot be read.
        """

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
        """Tokenizes every split of `data`."""

    @abstractmethod
    def evaluation_batch(self, batch_size: int) -> int:
        """Examples that are evaluated together where a step trains on `batch_size`."""

    @abstractmethod
    def kept(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What the scores need of the logits of a batch, one row an example."""

    @abstractmethod
    def score(self, task: Any, kept: NDArray, labels: NDArray) -> dict[str, float]:
        """Every metric of `task` by name, from what was `kept` of all examples."""

    @abstractmethod
    def answer_logits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits of the predictions that are compared: (answers of all examples, outputs)."""
