"""Labels of tokens, and batches of token ids with a label a token."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchEncoding, PreTrainedTokenizerBase

NOT_PREDICTED = -100  # label of a token without a loss, in all of transformers


def num_predicted(labels: Tensor) -> int:
    """Number of labels that a mean loss is over: one a sample, or the predicted tokens of all samples.

    >>> num_predicted(torch.tensor([[-100, 7, 8], [-100, 9, -100]]))
    3
    """
    return len(labels) if labels.ndim == 1 else int((labels[:, 1:] != NOT_PREDICTED).sum())


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
