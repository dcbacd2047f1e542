"""Layer-wise tuning (paper, Eq. 6): compressed blocks learn the original's hidden states."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from mlpfusion.batch import Batch, shifted_right
from mlpfusion.data.language.labels import text_ids
from mlpfusion.kinds.key import model_key
from mlpfusion.kinds.rebuild import installed_sites
from mlpfusion.sites.sites import base_model, site_parameters
from mlpfusion.storage.raw import raw_bytes
from mlpfusion.tune.frozen import frozen

# One tensor per layer: the hidden states of the visible tokens of a batch, sample by sample.
States = Sequence[Float[Tensor, "visible hidden"]]
_NOT_INPUTS = ("labels", "index")


def layer_states(model: nn.Module, config: PreTrainedConfig, batch: Batch) -> tuple[Any, States]:
    """Returns (model outputs, hidden states after every layer without padding).

    Encoder layers come first. Embeddings are left out (Eq. 6 starts at l = 1); if transformers
    applies the final norm to the last state, it is included. The decoder of an encoder-decoder
    reads the tokens in `labels`, or without these the same texts, like its classifiers, shifted by one.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name not in _NOT_INPUTS}
    visible = batch["attention_mask"].bool()
    if not config.is_encoder_decoder:
        outputs = model(**inputs, output_hidden_states=True)
        return outputs, [state[visible] for state in outputs["hidden_states"][1:]]
    text, read = batch["input_ids"], visible
    if "labels" in batch:
        text, read = text_ids(batch["labels"])
    outputs = model(**inputs, decoder_input_ids=shifted_right(text, config), output_hidden_states=True)
    encoder = [state[visible] for state in outputs["encoder_hidden_states"][1:]]
    return outputs, encoder + [state[read] for state in outputs["decoder_hidden_states"][1:]]


def layerwise_loss(states: States, teacher: States) -> Tensor:
    """Eq. 6: sum over the layers of the mean squared difference of the states.

    >>> float(layerwise_loss([torch.ones(2, 3), torch.zeros(2, 3)], [torch.zeros(2, 3), torch.zeros(2, 3)]))
    1.0
    """
    pairs = zip(states, teacher, strict=True)
    return torch.stack([nn.functional.mse_loss(state.float(), target.float()) for state, target in pairs]).sum()


@contextmanager
def only_blocks_trained(model: PreTrainedModel) -> Iterator[None]:
    """Freezes everything but the linear maps of the compressed blocks while open.

    Restores all flags on exit, and asserts that no other parameter and no buffer changed a byte.
    """
    key = model_key(model.config)
    assert key is not None
    base = base_model(model)
    trained = {id(value) for site in installed_sites(model, key) for value in site_parameters(base, site)}
    before = _digest(model, trained)
    with frozen(parameter for parameter in model.parameters() if id(parameter) not in trained):
        yield
    assert _digest(model, trained) == before, "a parameter outside the compressed blocks moved"


def _digest(model: nn.Module, without: set[int]) -> str:
    digest = hashlib.blake2b()
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if id(value) not in without:
            digest.update(name.encode())
            digest.update(raw_bytes(value))
    return digest.hexdigest()
