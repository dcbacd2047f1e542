"""Labels of tokens, and batches of token ids with a label a token."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchEncoding, PreTrainedConfig, PreTrainedTokenizerBase

NOT_PREDICTED = -100  # label of a token without a loss, in all of transformers


def aligned(logits: Tensor, labels: Tensor, *, shifted: bool) -> tuple[Tensor, Tensor]:
    """Logits of tokens beside the labels that they predict.

    With `shifted` the logits of a token predict the next one, as those of a causal model do. The logits of an
    encoder-decoder stand beside their own labels.
    """
    return (logits[:, :-1] if shifted else logits), predicted_labels(labels, shifted=shifted)


def predicted_labels(labels: Tensor, *, shifted: bool) -> Tensor:
    """Labels that some logits stand for: with `shifted` all but the first of every sample, else all.

    >>> predicted_labels(torch.tensor([[7, 8, 9]]), shifted=True).tolist()
    [[8, 9]]
    """
    return labels[:, 1:] if shifted else labels


def num_predicted(labels: Tensor, *, shifted: bool) -> int:
    """Number of labels that a mean loss is over: one a sample, or the predicted tokens of all samples.

    >>> num_predicted(torch.tensor([[-100, 7, 8], [9, 9, -100]]), shifted=True)
    3
    """
    if labels.ndim == 1:
        return len(labels)
    return int((predicted_labels(labels, shifted=shifted) != NOT_PREDICTED).sum())


def text_ids(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (token ids, where they are) of labels; elsewhere the ids are 0.

    >>> text_ids(torch.tensor([7, 8, -100]))
    (tensor([7, 8, 0]), tensor([ True,  True, False]))
    """
    there = labels != NOT_PREDICTED
    return labels.where(there, 0), there


def is_shifted(config: PreTrainedConfig) -> bool:
    """Whether logits of a model predict the next token, not their own."""
    return not config.is_encoder_decoder


@dataclass(frozen=True)
class PadRight:
    """Pads token ids and labels on the right, whatever side the tokenizer pads on.

    So the first token of an example has the position 0 in every batch.
    """

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, items: list[dict[str, Any]]) -> BatchEncoding:
        """Batch of the items; padding has the label `NOT_PREDICTED`."""
        inputs = [{name: value for name, value in item.items() if name != "labels"} for item in items]
        batch = self.tokenizer.pad(inputs, padding_side="right", return_tensors="pt")
        if "labels" in items[0]:
            labels = [torch.tensor(item["labels"]) for item in items]
            batch["labels"] = pad_sequence(labels, batch_first=True, padding_value=NOT_PREDICTED)
        return batch
