"""Ties a compressed model to its source by the hash of the original MLPs."""

import hashlib
from collections.abc import Sequence

from transformers import PreTrainedModel

from mlpfusion.compression.checks import check_not_compressed
from mlpfusion.errors import InputError
from mlpfusion.kinds.key import FusionKey, model_key
from mlpfusion.sites.sites import Site, base_model, by_holder, find_sites, site_parameters
from mlpfusion.storage.raw import raw_bytes


def source_hash(model: PreTrainedModel, sites: Sequence[Site]) -> str:
    """Returns the SHA-256 of the MLP weights of `sites`: name, dtype, shape, bytes; the same under every head."""
    digest = hashlib.sha256()
    for members in by_holder(sites).values():
        hash_site(digest, base_model(model), members[0])
    return digest.hexdigest()


def hash_site(digest: "hashlib._Hash", base: PreTrainedModel, site: Site) -> None:
    """Adds the weights of one site, or of all experts that share their tensors with it, to a `source_hash`."""
    names = {id(parameter): name for name, parameter in base.named_parameters()}
    for parameter in site_parameters(base, site):
        digest.update(f"{names[id(parameter)]} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
        digest.update(raw_bytes(parameter))


def check_source(
    original: PreTrainedModel, compressed: PreTrainedModel, names: tuple[str, str], field: str = "original"
) -> FusionKey:
    """Returns the key of `compressed`, once `original` is proven to be its source.

    The hash of the original MLPs in the key is compared. `names` are the names of the two models for the message,
    `field` is the argument with the original. Raises `InputError` for a model without a key, or another source.
    """
    check_not_compressed(original.config)
    key = model_key(compressed.config)
    if key is None:
        raise InputError(f"`compressed` must be compressed by mlpfusion, got {names[1]}")
    kinds = original.config.model_type, compressed.config.model_type
    if kinds[0] != kinds[1]:
        raise InputError(f"`{field}` must be the source of {names[1]}, a {kinds[1]}, got {names[0]}, a {kinds[0]}")
    sites = [site for site in find_sites(original, key.architecture) if site.holder in key.sites]
    if {site.holder for site in sites} != set(key.sites) or source_hash(original, sites) != key.source_sha256:
        raise InputError(f"`{field}` must be the source of {names[1]}, got {names[0]}, whose MLPs have another hash")
    return key
