"""The masked kind: linear maps of the old width whose zeros stay zero.

On disk they are plain weights with zeros in them. Stock transformers loads such a checkpoint without this package: the
function is the same, but the mask is lost, so that fine-tuning fills the zeros.
"""

import torch
from transformers import PreTrainedModel

from mlpfusion.errors import InputError
from mlpfusion.kinds.key import MaskedSite
from mlpfusion.kinds.linear import linear_copy, replace_module, resized
from mlpfusion.kinds.outcome import Masked
from mlpfusion.modules.masked import MASKED_TYPES, with_type
from mlpfusion.sites.sites import Site, base_model, is_plain, linear_maps, linear_tensors, site_parameters


def install(model: PreTrainedModel, site: Site, outcome: Masked) -> MaskedSite:
    """Puts the zeros in, and keeps them in training, also in a masked block. Changes the model; values are copied."""
    base = base_model(model)
    fold(model, site)
    for path, names in linear_maps(site).items():
        linear = base.get_submodule(path)
        new = resized(linear)
        linear_copy(new, torch.cat([getattr(outcome.mlp, name) for name in names]), linear_tensors(linear)[1])
        replace_module(base, path, with_type(new, MASKED_TYPES[type(new)]))
    return MaskedSite(_num_zeros(model, site), sum(parameter.numel() for parameter in site_parameters(base, site)))


def rebuild(model: PreTrainedModel, site: Site, entry: MaskedSite) -> None:
    """Puts maps that keep their zeros in place; the weights will bring the zeros. Changes the model; idempotent."""
    _swap(model, site, MASKED_TYPES)


def check(model: PreTrainedModel, site: Site, entry: MaskedSite) -> None:
    """Raises `InputError` if the loaded weights have fewer zeros than the key names: something filled them.

    Weights that a quantiser has packed are not looked at: they are frozen.
    """
    base = base_model(model)
    maps = [base.get_submodule(path) for path in linear_maps(site)]
    if not all(is_plain(linear) and type(linear) in MASKED_TYPES.values() for linear in maps):
        return
    if any(linear_tensors(linear)[0].is_meta for linear in maps):
        return
    found = _num_zeros(model, site)
    if found < entry.num_zeros:
        raise InputError(
            f"the weights at {site.path} must have at least {entry.num_zeros} zeros, got {found}: an adapter that is "
            "merged fills them. Nothing is lost: remove the entry `mlp_fusion` from the config.json, and this loads as "
            "the plain model that it is; call `fold` on such a model before it is saved"
        )


def fold(model: PreTrainedModel, site: Site) -> None:
    """Puts the plain maps back: zeros are weights like others from here on. Changes the model."""
    _swap(model, site, {masked: plain for plain, masked in MASKED_TYPES.items()})


def _swap(model: PreTrainedModel, site: Site, types: dict[type, type]) -> None:
    base = base_model(model)
    for path in linear_maps(site):
        linear = base.get_submodule(path)
        if type(linear) in types:
            replace_module(base, path, with_type(linear, types[type(linear)]))


def _num_zeros(model: PreTrainedModel, site: Site) -> int:
    base = base_model(model)
    weights = [linear_tensors(base.get_submodule(path))[0] for path in linear_maps(site)]
    return sum(weight.numel() - int(weight.count_nonzero()) for weight in weights)
