"""What a compressed model was made from: the hash of the original MLPs, in the key and in the record."""

import hashlib
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from mlpfusion.compression.checks import check_not_compressed
from mlpfusion.errors import InputError
from mlpfusion.kinds.key import FusionKey
from mlpfusion.kinds.model_key import model_key
from mlpfusion.sites.sites import Site, base_model, find_sites, site_parameters


def source_hash(model: PreTrainedModel, sites: Sequence[Site]) -> str:
    """SHA-256 of the original MLP weights of `sites` (name, dtype, shape, bytes), the same under every head."""
    digest = hashlib.sha256()
    names = {id(parameter): name for name, parameter in base_model(model).named_parameters()}
    for site in sites:
        for parameter in site_parameters(base_model(model), site):
            digest.update(f"{names[id(parameter)]} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_source(
    original: PreTrainedModel, compressed: PreTrainedModel, names: tuple[str, str], field: str = "original"
) -> FusionKey:
    """The key of `compressed`. Raises `InputError` unless it is compressed, and `original` is what it was made from.

    The hash of the source weights stands in the key. `names` are those of the two models for the message, `field` is
    that of the original.
    """
    check_not_compressed(original.config)
    key = model_key(compressed.config)
    if key is None:
        raise InputError(f"`compressed` must be compressed by mlpfusion, got {names[1]}")
    kinds = original.config.model_type, compressed.config.model_type
    if kinds[0] != kinds[1]:
        raise InputError(f"`{field}` must be the source of {names[1]}, a {kinds[1]}, got {names[0]}, a {kinds[0]}")
    sites = [site for site in find_sites(original, key.architecture) if site.path in key.sites]
    if {site.path for site in sites} != set(key.sites) or source_hash(original, sites) != key.source_sha256:
        raise InputError(f"`{field}` must be the source of {names[1]}, got {names[0]}, whose MLPs have another hash")
    return key
