"""Folds P, factors and masks into plain weights: the form to deploy, for stock transformers and other engines."""

import warnings
from dataclasses import replace

from transformers import PreTrainedModel

from mlpfusion.architectures.sites import base_model, find_sites
from mlpfusion.architectures.table import Architecture
from mlpfusion.errors import InputError
from mlpfusion.install.key import KEY, FusionKey, InstalledSite, LowRankSite, NarrowSite, key_from_dict, key_to_dict
from mlpfusion.install.kinds import KINDS
from mlpfusion.install.rebuild import installed_sites


def fold(model: PreTrainedModel) -> PreTrainedModel:
    """Makes plain linear maps of all compressed blocks. Changes `model` in place and returns it.

    Scales go into the second linear map, factors are multiplied (the model has its original size again, a warning says
    so), zeros become weights like others. The logits stay the same up to rounding; the Adam kernel does not, so fold
    after fine-tuning. If every layer now has one and the same width, the key `mlp_fusion` goes and the config gets that
    width: a stock model, which loads without this package. If not, the key stays, without scales, and a warning tells.
    Raises `InputError` if the model is not compressed.
    """
    data = getattr(model.config, KEY, None)
    if data is None:
        raise InputError("`model` must be compressed by mlpfusion, got one without the config key `mlp_fusion`")
    key = key_from_dict(data)
    for site in installed_sites(model, key):
        KINDS[type(key.sites[site.path])].fold(model, site)
    if any(isinstance(site, LowRankSite) for site in key.sites.values()):
        warnings.warn("the factors were multiplied: the model has its original size again", stacklevel=2)
    widths = _stock_widths(model, key.architecture)
    if widths is None:
        warnings.warn(
            "the layers have different widths, so the folded model still needs `import mlpfusion` to load; "
            "compress all layers to one width for a stock model",
            stacklevel=2,
        )
        set_key(model, replace(key, sites={path: _without_scale(site) for path, site in key.sites.items()}))
    else:
        _set_config(model, widths, None)
    return model


def set_key(model: PreTrainedModel, key: FusionKey) -> None:
    """Writes the key into the config, which `save_pretrained` saves. Changes the model's config."""
    _set_config(model, {}, key)


def _without_scale(site: InstalledSite) -> NarrowSite:
    """Only narrow blocks keep a key: the others have the original width when they are folded."""
    assert isinstance(site, NarrowSite)
    return replace(site, scale="none")


def _stock_widths(model: PreTrainedModel, architecture: Architecture) -> dict[str, int] | None:
    """Config key -> width if one number describes all layers that the key stands for, else None."""
    widths: dict[str, set[int]] = {}
    for site in find_sites(model, architecture):
        widths.setdefault(site.stack.width_key, set()).add(site.intermediate_size)
    if any(len(values) > 1 for values in widths.values()):
        return None
    return {name: values.pop() for name, values in widths.items()}


def _set_config(model: PreTrainedModel, widths: dict[str, int], key: FusionKey | None) -> None:
    for config in {id(config): config for config in (model.config, base_model(model).config)}.values():
        for name, width in widths.items():
            setattr(config, name, width)
        if key is not None:
            setattr(config, KEY, key_to_dict(key))
        elif hasattr(config, KEY):
            delattr(config, KEY)
