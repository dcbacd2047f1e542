"""Token ids of a task, and its batches: padded to the longest of the batch only."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset
from transformers import DataCollatorWithPadding, PreTrainedConfig, PreTrainedTokenizerBase

from mlpfusion.checkpoint.lengths import MAX_LENGTH, longest_text, text_length
from mlpfusion.checkpoint.tokenizer import tokenized, warn_if_cut
from mlpfusion.data.glue import Task
from mlpfusion.data.load import Examples, TaskData


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
    """A task as token ids, with the collator that makes batches of them, and the tokens at which texts were cut.

    `is_chosen` says that `train` holds only what a run with `max_train_samples` takes of it, in the order of that run.
    """

    task: Task
    train: EncodedExamples
    evaluation: Mapping[str, EncodedExamples]
    source: str
    collate: DataCollatorWithPadding
    max_length: int = MAX_LENGTH
    is_chosen: bool = False


def encode_task(
    data: TaskData,
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig | None = None,
    *,
    max_length: int | None = None,
) -> EncodedTask:
    """Token ids of every split, for a model of `config`.

    Texts are cut at `max_length` tokens, the longer one of a pair first; without it at 128, or at what the model takes
    if that is less, with a warning if it was. Raises `InputError` as `text_length` and `tokenized` do.
    """
    length = text_length(max_length, longest_text(tokenizer, config))
    splits = {"train": data.train, **data.evaluation}
    items = {name: tokenized(one.texts, tokenizer, config, max_length=length) for name, one in splits.items()}
    if max_length is None:
        pairs = [pair for name in splits for pair in zip(splits[name].texts, items[name], strict=True)]
        warn_if_cut(pairs, tokenizer, length)
    encoded = {name: _labelled(items[name], splits[name]) for name in splits}
    evaluation = {name: encoded[name] for name in data.evaluation}
    return EncodedTask(data.task, encoded["train"], evaluation, data.source, DataCollatorWithPadding(tokenizer), length)


def encode_texts(
    texts: Sequence[tuple[str, ...]],
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig | None = None,
    *,
    max_length: int | None = None,
) -> EncodedExamples:
    """Unlabelled texts (or pairs of them) as token ids, cut as `encode_task` cuts them."""
    length = text_length(max_length, longest_text(tokenizer, config))
    items = tokenized(texts, tokenizer, config, max_length=length)
    if max_length is None:
        warn_if_cut(list(zip(texts, items, strict=True)), tokenizer, length)
    return EncodedExamples(items)


def _labelled(items: Sequence[dict[str, Any]], examples: Examples) -> EncodedExamples:
    return EncodedExamples([item | {"labels": label} for item, label in zip(items, examples.labels, strict=True)])
