"""The head of a causal model at the tokens that it predicts, and nowhere else."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mlpfusion.data.language.labels import NOT_PREDICTED, is_shifted
from mlpfusion.errors import InputError
from mlpfusion.sites.recording import hooks


@contextmanager
def head_at_predicted(model: PreTrainedModel, batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the batch for a model whose head reads the predicted tokens alone.

    A causal model computes logits of prompts and padding too, and its loss leaves them out: for a vocabulary of 50,000
    that is most of the arithmetic and memory of a small model. Inside, the head gets the states before the labelled
    tokens as one row, and a last one without a label, so that the shift by one of the model's own loss still fits:
    logits of shape (1, predicted + 1, vocabulary), and the same loss and gradients up to rounding. Any other model and
    batch stay as they are. Raises `InputError` for a causal model that does not name its head.
    """
    labels = batch.get("labels")
    if labels is None or labels.ndim != 2 or not is_shifted(model.config):
        yield dict(batch)
        return
    # the token before each predicted one, and the first token of the batch for the last row
    places = torch.cat([(labels[:, 1:] != NOT_PREDICTED).nonzero(), labels.new_zeros(1, 2)])

    def rows(_head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states, *others = inputs
        assert states.shape[:2] == labels.shape, "the head must read one state a token"
        return (states[places[:, 0], places[:, 1]][None], *others)

    shifted = labels[places[:-1, 0], places[:-1, 1] + 1]
    packed = torch.cat([labels.new_full((1,), NOT_PREDICTED), shifted])[None]
    head = model.get_output_embeddings()
    if head is None:
        raise InputError(f"`model` must name its head in get_output_embeddings, this {type(model).__name__} does not")
    with hooks() as handles:
        handles.append(head.register_forward_pre_hook(rows))
        yield {**batch, "labels": packed}
