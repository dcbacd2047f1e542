"""Examples as token ids."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from mlpfusion.checkpoint.lengths import MAX_LENGTH, longest_text, text_length
from mlpfusion.checkpoint.tokenizer import tokenized, warn_if_cut
from mlpfusion.data.task import Task

# Makes a padded batch of the items of some examples.
Collate = Callable[[list[dict[str, Any]]], Any]


class EncodedExamples(Dataset[dict[str, Any]]):
    """Tokenized examples: `input_ids`, `attention_mask`, further tokenizer outputs, `labels` if any.

    >>> len(EncodedExamples([{"input_ids": [5, 6]}, {"input_ids": [7]}]).subset([1]))
    1
    """

    def __init__(self, items: Sequence[dict[str, Any]]):
        self.items = list(items)
        self.lengths = [len(item["input_ids"]) for item in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[index]

    def subset(self, indices: Sequence[int]) -> "EncodedExamples":
        """Picks the examples at `indices`, in their order."""
        return EncodedExamples([self.items[index] for index in indices])

    def by_length(self) -> "EncodedExamples":
        """The same examples, the shortest first: batches of neighbours have little padding.

        >>> EncodedExamples([{"input_ids": [5, 6]}, {"input_ids": [7]}]).by_length().lengths
        [1, 2]
        """
        return self.subset(sorted(range(len(self)), key=self.lengths.__getitem__))

    def sha256(self) -> str:
        """Hash of all model inputs and labels, in order."""
        digest = hashlib.sha256()
        for item in self.items:
            digest.update(repr(sorted(item.items())).encode())
        return digest.hexdigest()


def without_labels(examples: EncodedExamples) -> EncodedExamples:
    """The same examples without their labels."""
    items = [{name: value for name, value in item.items() if name != "labels"} for item in examples.items]
    return EncodedExamples(items)


@dataclass(frozen=True)
class EncodedTask:
    """A tokenized task with its collator; texts are cut at `max_length` tokens.

    `is_chosen`: `train` holds only the examples of a run with `max_train_samples`, in the order of
    that run.
    """

    task: Task
    train: EncodedExamples
    evaluation: Mapping[str, EncodedExamples]
    source: str
    collate: Collate
    max_length: int = MAX_LENGTH
    is_chosen: bool = False


def encode_texts(
    texts: Sequence[tuple[str, ...]],
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig | None = None,
    *,
    max_length: int | None = None,
) -> EncodedExamples:
    """Tokenizes unlabelled texts or pairs; they are cut at `max_length` tokens.

    The default is `MAX_LENGTH`, or the limit of the model if that is smaller (a warning if a text was cut by it).
    Raises `InputError` for a `max_length` above that limit, and a text that the tokenizer refuses.
    """
    length = text_length(max_length, longest_text(tokenizer, config))
    items = tokenized(texts, tokenizer, config, max_length=length)
    if max_length is None:
        warn_if_cut(list(zip(texts, items, strict=True)), tokenizer, length)
    return EncodedExamples(items)
