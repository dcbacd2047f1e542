"""What a cut changes in the outputs of the whole model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from mlpfusion.batch import Batch
from mlpfusion.data.unlabelled.windows import is_causal
from mlpfusion.errors import InputError
from mlpfusion.measure.output_error import output_error
from mlpfusion.sites.recording import recordable, recording
from mlpfusion.sites.sites import Site, base_model
from mlpfusion.sites.traces import last_hidden_tokens


@dataclass(frozen=True)
class ModelOutputs:
    """Last hidden states at all visible tokens, and the loss of a language model in nats a token (None for others)."""

    hidden: Float[Tensor, "tokens hidden"]
    loss: float | None


@dataclass(frozen=True)
class ModelError:
    """How far the outputs of a whole model moved.

    `hidden_error`: relative error of the last hidden state, as that of a block. `loss_before`, `loss_after`: mean loss
    of the next token in nats; None for other models than language models.
    """

    hidden_error: float
    loss_before: float | None
    loss_after: float | None

    @property
    def loss_increase(self) -> float:
        """`loss_after` - `loss_before`, of a language model."""
        assert self.loss_before is not None
        assert self.loss_after is not None
        return self.loss_after - self.loss_before


@torch.no_grad()
def model_outputs(model: PreTrainedModel, batches: Sequence[Batch]) -> ModelOutputs:
    """Runs the model on the batches. Raises `InputError` without any batch."""
    if not batches:
        raise InputError("`batches` must hold at least one batch, got none")
    with recording(model, gradients=False):
        home = [recordable(batch, model.device) for batch in batches]
        hidden = torch.cat([last_hidden_tokens(model, batch) for batch in home])
        return ModelOutputs(hidden, _loss(model, home) if is_causal(model) else None)


def model_error(before: ModelOutputs, after: ModelOutputs) -> ModelError:
    """Compares the outputs of two models on the same batches.

    >>> before, after = (ModelOutputs(torch.tensor([[size]]), loss) for size, loss in ((2.0, 3.0), (1.0, 3.5)))
    >>> model_error(before, after)
    ModelError(hidden_error=0.5, loss_before=3.0, loss_after=3.5)
    """
    return ModelError(output_error(before.hidden, after.hidden).relative, before.loss, after.loss)


def model_error_from_dict(data: dict[str, Any]) -> ModelError:
    """Reads a `ModelError` from its JSON data."""
    return ModelError(data["hidden_error"], data["loss_before"], data["loss_after"])


@contextmanager
def layer_of_other(model: PreTrainedModel, other: PreTrainedModel, site: Site) -> Iterator[None]:
    """`model` with the layer of `site` from `other`, a compressed copy of it, while the context is open."""
    list_path, _, name = site.layer_path.rpartition(".")
    layers = base_model(model).get_submodule(list_path)
    own = getattr(layers, name)
    setattr(layers, name, base_model(other).get_submodule(site.layer_path))
    try:
        yield
    finally:
        setattr(layers, name, own)


def _loss(model: PreTrainedModel, batches: Sequence[Batch]) -> float:
    """Mean loss of the visible tokens that have one before them."""
    total, count = 0.0, 0
    for batch in batches:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        ids, logits = batch["input_ids"], model(**inputs, use_cache=False).logits[:, :-1].float()
        losses = cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").double()
        mask = batch.get("attention_mask", torch.ones_like(ids))[:, 1:].bool()
        total, count = total + float(losses[mask].sum()), count + int(mask.sum())
    return total / max(1, count)
