"""A batch of model inputs by name, and what is done to one before it enters a model."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from mlpfusion.errors import InputError

Batch = Mapping[str, Tensor]


def with_decoder_inputs(batches: Sequence[Batch], config: PreTrainedConfig) -> list[Batch]:
    """The batches; for a model with encoder and decoder with the same texts, shifted right, as the decoder's inputs.

    Raises `InputError` if the config of such a model names no token for the decoder to start with.
    """
    if not config.is_encoder_decoder:
        return list(batches)
    start = getattr(config, "decoder_start_token_id", None)
    if start is None:
        raise InputError("the config of `model` must have a `decoder_start_token_id`, got none")
    found: list[Batch] = []
    for batch in batches:
        ids = batch["input_ids"]
        shifted = torch.cat([torch.full_like(ids[:, :1], start), ids[:, :-1]], dim=1)
        found.append({**batch, "decoder_input_ids": shifted, "decoder_attention_mask": batch["attention_mask"]})
    return found


def to_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The batch on `device`."""
    return {name: tensor.to(device) for name, tensor in batch.items()}
