"""A batch of model inputs by name, and its preparation for a model."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from mlpfusion.errors import InputError

Batch = Mapping[str, Tensor]


def with_decoder_inputs(batches: Sequence[Batch], config: PreTrainedConfig) -> list[Batch]:
    """Adds `decoder_input_ids`, the texts shifted right, for a model with encoder and decoder.

    Batches for other models are returned as given. Raises `InputError` if the config has no
    `decoder_start_token_id`.
    """
    if not config.is_encoder_decoder:
        return list(batches)
    return [
        {
            **batch,
            "decoder_input_ids": shifted_right(batch["input_ids"], config),
            "decoder_attention_mask": batch["attention_mask"],
        }
        for batch in batches
    ]


def shifted_right(ids: Tensor, config: PreTrainedConfig) -> Tensor:
    """Moves token ids one place to the right, behind the decoder's start token.

    Raises `InputError` if the config has no `decoder_start_token_id`.
    """
    start = getattr(config, "decoder_start_token_id", None)
    if start is None:
        raise InputError("the config of `model` must have a `decoder_start_token_id`, got none")
    return torch.cat([torch.full_like(ids[:, :1], start), ids[:, :-1]], dim=1)


def to_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Moves every tensor of a batch to `device`.

    >>> to_device({"input_ids": torch.ones(1, 2)}, torch.device("cpu"))["input_ids"].device
    device(type='cpu')
    """
    return {name: tensor.to(device) for name, tensor in batch.items()}


def num_tokens(batch: Batch) -> int:
    """Number of entries of the first tensor, padding included.

    >>> num_tokens({"input_ids": torch.zeros(2, 3), "labels": torch.zeros(2)})
    6
    """
    return next(iter(batch.values())).numel()


def batches_sha256(batches: Iterable[Batch]) -> str:
    """Hash of all model inputs, in order.

    >>> batches_sha256([{"input_ids": torch.ones(1, 2)}]) == batches_sha256([{"input_ids": torch.ones(2, 1)}])
    False
    """
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(repr([(name, batch[name].tolist()) for name in sorted(batch)]).encode())
    return digest.hexdigest()
