"""Folds P, factors and masks into plain weights: the form to deploy, for stock transformers and other engines."""

import warnings
from dataclasses import replace

from transformers import PreTrainedModel

from mlpfusion.checks import whole_number
from mlpfusion.errors import InputError
from mlpfusion.heads.key import NO_STOCK_FORM, heads_key
from mlpfusion.kinds.key import FusionKey, model_key
from mlpfusion.kinds.narrow import NarrowSite
from mlpfusion.kinds.rebuild import installed_sites
from mlpfusion.kinds.stock.entries import set_entries
from mlpfusion.kinds.stock.form import StockForm, stock_form
from mlpfusion.kinds.stock.widths import even_widths, set_widths
from mlpfusion.kinds.table import kind_of, put_back_on_error, rebuild, site_size
from mlpfusion.sites.sites import base_model, check_in_memory, check_readable, check_transformers_model


def fold(model: PreTrainedModel, *, pad_to: int | None = None) -> PreTrainedModel:
    """Makes plain linear maps of all compressed blocks. Changes `model` in place and returns it.

    Scales go into the second linear map, factors are multiplied (the model has its original size again, a warning says
    so), zeros become weights like others. The logits stay the same up to rounding; the Adam kernel does not, so fold
    after fine-tuning. If every layer now has one and the same width, and the model's class builds this model from a
    config with that width (it is tried out, on the meta device), the config gets the width and the key `mlp_fusion`
    goes: a stock model, which loads without this package. If not, the key stays, without scales, and a warning says
    why. With `pad_to` all layers get one width, the smallest multiple of it that holds the widest; the neurons that are
    added are zeros, which change no output. Raises `InputError`, before anything is changed, if the model is not
    compressed, has routed experts, is quantised, offloaded or wrapped by an adapter, and with `pad_to` if there is no
    stock form; any other exception leaves the model as it was too. Linear maps are replaced by new ones, as by
    `compress`.
    """
    check_transformers_model(model)
    multiple = None if pad_to is None else whole_number("pad_to", pad_to, 1)
    key = model_key(model.config)
    if key is None:
        if heads_key(model.config) is not None:
            raise InputError(f"`model` must have a stock form to be folded, but {NO_STOCK_FORM}")
        raise InputError("`model` must be compressed by mlpfusion, got one without the config key `mlp_fusion`")
    check_in_memory(model)
    sites = installed_sites(model, key)
    if (reason := _no_stock_form(key)) is not None:
        raise InputError(f"`model` must have a stock form to be folded, but {reason}")
    check_readable(model, sites)
    with put_back_on_error(model):
        form = _fold_blocks(model, key, multiple)
        for text in dict.fromkeys(kind_of(entry).fold_warning for entry in key.sites.values()):
            if text is not None:
                warnings.warn(text, stacklevel=2)
        if form.reason is None:
            set_entries(model, form.widths, None)
        elif multiple is not None:
            raise InputError(f"`pad_to` must be left out, there is no stock form: {form.reason}")
        else:
            needed = "so the folded model still needs `import mlpfusion` to load"
            cure = "; `pad_to` pads them to one, for a stock model" if form.is_uneven else ""
            warnings.warn(f"{form.reason}, {needed}{cure}", stacklevel=2)
            set_entries(model, {}, _folded_key(model, key))
    return model


def form_after_fold(empty: PreTrainedModel, key: FusionKey, pad_to: int | None = None) -> StockForm:
    """What `fold` will make of a model with `key`. `empty` is on the meta device, compressed or not; it is changed."""
    if (reason := _no_stock_form(key)) is not None:
        return StockForm(reason=reason, is_foldable=False)
    for site in installed_sites(empty, key):
        rebuild(empty, site, key.sites[site.holder])
    return _fold_blocks(empty, key, pad_to)


def _no_stock_form(key: FusionKey) -> str | None:
    """Why blocks of one of the kinds in `key` cannot be folded; None if all can."""
    reasons = (kind_of(entry).no_stock_form for entry in key.sites.values())
    return next((reason for reason in reasons if reason is not None), None)


def _fold_blocks(model: PreTrainedModel, key: FusionKey, pad_to: int | None) -> StockForm:
    """Makes plain linear maps of all blocks, of one width with `pad_to`; returns the stock form. Changes the model."""
    for site in installed_sites(model, key):
        kind_of(key.sites[site.holder]).fold(model, site)
    if pad_to is not None:
        set_widths(model, key.architecture, even_widths(model, key.architecture, pad_to))
    return stock_form(model, key.architecture)


def _folded_key(model: PreTrainedModel, key: FusionKey) -> FusionKey:
    """The key of plain blocks of the widths that they have now."""
    sites = {}
    for site in installed_sites(model, key):
        entry = key.sites[site.holder]
        if isinstance(entry, NarrowSite):
            sites[site.holder] = replace(entry, scale="none")
        else:
            size = site_size(base_model(model), site)
            sites[site.holder] = NarrowSite(site.intermediate_size, site.intermediate_size, "none", size)
    return FusionKey(key.architecture, sites, key.method, key.seed, key.source_sha256)
