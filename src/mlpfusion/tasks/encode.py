"""Token ids of a task, and its batches: padded to the longest of the batch only."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from mlpfusion.errors import InputError
from mlpfusion.tasks.glue import Task
from mlpfusion.tasks.load import Examples, TaskData


class EncodedExamples(Dataset[dict[str, Any]]):
    """Examples as token ids: each item holds `input_ids`, `attention_mask` and what else the tokenizer gives.

    `labels` are there unless the examples have none.
    """

    def __init__(self, items: Sequence[dict[str, Any]]):
        self.items = list(items)
        self.lengths = [len(item["input_ids"]) for item in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[index]

    def subset(self, indices: Sequence[int]) -> "EncodedExamples":
        """The examples at `indices`, in that order."""
        return EncodedExamples([self.items[index] for index in indices])

    def sha256(self) -> str:
        """Hash of all that the model sees, labels and order included."""
        digest = hashlib.sha256()
        for item in self.items:
            digest.update(repr(sorted(item.items())).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class EncodedTask:
    """A task as token ids, with the collator that makes batches of them."""

    task: Task
    train: EncodedExamples
    evaluation: Mapping[str, EncodedExamples]
    source: str
    collate: DataCollatorWithPadding


def encode_task(data: TaskData, tokenizer: PreTrainedTokenizerBase, *, max_length: int = 128) -> EncodedTask:
    """Token ids of every split; texts longer than `max_length` tokens are cut, the longer one of a pair first.

    Raises `InputError` if `max_length` is below 8 or above what the tokenizer's model takes.
    """
    limit = tokenizer.model_max_length
    if not 8 <= max_length <= limit:
        raise InputError(f"`max_length` must be between 8 and {limit}, got {max_length}")
    evaluation = {name: _encode(examples, tokenizer, max_length) for name, examples in data.evaluation.items()}
    train = _encode(data.train, tokenizer, max_length)
    return EncodedTask(data.task, train, evaluation, data.source, DataCollatorWithPadding(tokenizer))


def encode_texts(
    texts: Sequence[tuple[str, ...]], tokenizer: PreTrainedTokenizerBase, *, max_length: int = 128
) -> EncodedExamples:
    """Unlabelled texts (or pairs of them) as token ids."""
    columns = [list(column) for column in zip(*texts, strict=True)]
    second = columns[1] if len(columns) == 2 else None
    encoded = tokenizer(columns[0], text_pair=second, truncation=True, max_length=max_length, padding=False)
    names = list(encoded)
    return EncodedExamples(
        [dict(zip(names, row, strict=True)) for row in zip(*(encoded[n] for n in names), strict=True)]
    )


def _encode(examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> EncodedExamples:
    encoded = encode_texts(examples.texts, tokenizer, max_length=max_length)
    pairs = zip(encoded.items, examples.labels, strict=True)
    return EncodedExamples([item | {"labels": label} for item, label in pairs])
