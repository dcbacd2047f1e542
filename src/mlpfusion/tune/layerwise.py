"""Layer-wise task-specific tuning (paper, Eq. 6): the compressed blocks learn the original's hidden states."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from mlpfusion.batch import Batch
from mlpfusion.kinds.model_key import model_key
from mlpfusion.kinds.rebuild import installed_sites
from mlpfusion.sites.sites import base_model, site_parameters

# One tensor a layer: the hidden states of the visible tokens of a batch, sample by sample.
States = Sequence[Float[Tensor, "visible hidden"]]
_NOT_INPUTS = ("labels", "index")


def layer_states(model: nn.Module, config: PreTrainedConfig, batch: Batch) -> tuple[Any, States]:
    """The model's outputs, and the states after every layer (those of the encoder first), padding left out.

    The embeddings are not among them (Eq. 6 starts at l = 1); where a model puts its final norm into the last state,
    it is in there. An encoder-decoder reads its input again, shifted by one, as its classifiers do.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name not in _NOT_INPUTS}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = _shifted(batch["input_ids"], config)
    outputs = model(**inputs, output_hidden_states=True)
    names = ("encoder_hidden_states", "decoder_hidden_states") if config.is_encoder_decoder else ("hidden_states",)
    visible = batch["attention_mask"].bool()
    return outputs, [state[visible] for name in names for state in outputs[name][1:]]


def layerwise_loss(states: States, teacher: States) -> Tensor:
    """Eq. 6: the sum over the layers of the mean squared difference, over the features and the visible tokens."""
    pairs = zip(states, teacher, strict=True)
    return torch.stack([nn.functional.mse_loss(state.float(), other.float()) for state, other in pairs]).sum()


@contextmanager
def only_blocks_trained(model: PreTrainedModel) -> Iterator[None]:
    """Inside, only the linear maps of the compressed blocks have `requires_grad`; nothing else may move.

    Outside, the flags are what they were. Asserts that all other parameters, and all buffers, have the same bytes
    after as before.
    """
    key = model_key(model.config)
    assert key is not None
    base = base_model(model)
    trained = {id(value) for site in installed_sites(model, key) for value in site_parameters(base, site)}
    before = _digest(model, trained)
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in flags:
        parameter.requires_grad_(id(parameter) in trained)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    assert _digest(model, trained) == before, "a parameter outside the compressed blocks moved"


def _digest(model: nn.Module, without: set[int]) -> str:
    digest = hashlib.blake2b()
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if id(value) not in without:
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _shifted(ids: Tensor, config: PreTrainedConfig) -> Tensor:
    start = torch.full_like(ids[:, :1], config.decoder_start_token_id)
    return torch.cat([start, ids[:, :-1]], dim=1)
