"""Folds P, factors and masks into plain weights: the form to deploy, for stock transformers and other engines."""

import copy
import warnings
from dataclasses import dataclass, replace

from transformers import PreTrainedConfig, PreTrainedModel

from mlpfusion.errors import InputError
from mlpfusion.kinds.key import FusionKey, key_to_dict, model_key
from mlpfusion.kinds.kind import KEY
from mlpfusion.kinds.narrow import NarrowSite
from mlpfusion.kinds.rebuild import installed_sites
from mlpfusion.kinds.table import kind_of, put_back_on_error, site_size
from mlpfusion.sites.parts import parts_of
from mlpfusion.sites.sites import (
    Site,
    base_model,
    check_in_memory,
    check_readable,
    check_transformers_model,
    find_sites,
)
from mlpfusion.sites.table import Architecture
from mlpfusion.sites.width_keys import saved_shapes, set_width, stock_shapes


def fold(model: PreTrainedModel) -> PreTrainedModel:
    """Makes plain linear maps of all compressed blocks. Changes `model` in place and returns it.

    Scales go into the second linear map, factors are multiplied (the model has its original size again, a warning says
    so), zeros become weights like others. The logits stay the same up to rounding; the Adam kernel does not, so fold
    after fine-tuning. If every layer now has one and the same width, and the model's class builds this model from a
    config with that width (it is tried out, on the meta device), the config gets the width and the key `mlp_fusion`
    goes: a stock model, which loads without this package. If not, the key stays, without scales, and a warning says
    why. Raises `InputError`, before anything is changed, if the model is not compressed, has routed experts, is
    quantised, offloaded or wrapped by an adapter; any other exception leaves the model as it was too. Linear maps are
    replaced by new ones, as by `compress`.
    """
    check_transformers_model(model)
    key = model_key(model.config)
    if key is None:
        raise InputError("`model` must be compressed by mlpfusion, got one without the config key `mlp_fusion`")
    check_in_memory(model)
    sites = installed_sites(model, key)
    _check_foldable(model, key, sites)
    stock = _stock_form(model, key)
    with put_back_on_error(model):
        for site in sites:
            kind_of(key.sites[site.holder]).fold(model, site)
        for text in dict.fromkeys(kind_of(entry).fold_warning for entry in key.sites.values()):
            if text is not None:
                warnings.warn(text, stacklevel=2)
        reason = stock.reason or _difference(model, stock)
        if reason is None:
            _set_config(model, stock.widths, None)
        else:
            needed = "so the folded model still needs `import mlpfusion` to load"
            warnings.warn(f"{reason}, {needed}{stock.advice}", stacklevel=2)
            _set_config(model, {}, _folded_key(model, key))
    return model


def set_key(model: PreTrainedModel, key: FusionKey) -> None:
    """Writes the key into the config, which `save_pretrained` saves. Changes the model's config."""
    _set_config(model, {}, key)


@dataclass(frozen=True)
class _StockForm:
    """The stock model: entries of the config to set, and the shapes that follow; or the reason why there is none.

    `unknown` is a stack whose width no entry is known to hold. It may follow from the others: a shared expert is often
    several times as wide as an expert.
    """

    widths: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    reason: str | None = None
    advice: str = ""
    unknown: str | None = None


def _check_foldable(model: PreTrainedModel, key: FusionKey, sites: list[Site]) -> None:
    """Raises `InputError` for all that folding a site would raise for."""
    for entry in key.sites.values():
        reason = kind_of(entry).no_stock_form
        if reason is not None:
            raise InputError(reason)
    check_readable(model, sites)


def _stock_form(model: PreTrainedModel, key: FusionKey) -> _StockForm:
    """What a config without the key would have to say; nothing is changed."""
    widths: dict[str, set[int]] = {}
    narrow = any(kind_of(entry).original_width(entry) is not None for entry in key.sites.values())
    unknown = None
    for site in find_sites(model, key.architecture) if narrow else []:
        if site.stack.width_key is None:
            unknown = unknown or site.stack.layer
        else:
            widths.setdefault(site.stack.width_key, set()).add(site.intermediate_size)
    if unknown and not widths:
        return _StockForm({}, {}, _no_key(unknown))
    if any(len(values) > 1 for values in widths.values()):
        advice = "; compress all layers to one width for a stock model"
        return _StockForm({}, {}, "the layers have different widths", advice)
    wanted = {name: values.pop() for name, values in widths.items()}
    config = copy.deepcopy(model.config)
    _write(config, _base_part(model), wanted, None)
    try:
        return _StockForm(wanted, stock_shapes(type(model), config), unknown=unknown)
    except InputError as error:
        return _StockForm({}, {}, str(error))


def _no_key(layer: str) -> str:
    return f"no entry of the config is known to hold the width of {layer}"


def _difference(model: PreTrainedModel, stock: _StockForm) -> str | None:
    """The reason why the stock form is not this model, None if it is."""
    shapes = saved_shapes(model)
    if shapes == stock.shapes:
        return None
    if stock.unknown is not None:
        return _no_key(stock.unknown)
    name = min(name for name in {*shapes, *stock.shapes} if shapes.get(name) != stock.shapes.get(name))
    found, built = shapes.get(name, "no place"), stock.shapes.get(name, "no place")
    return f"{type(model).__name__} does not build these widths from its config ({name} has {found}, it makes {built})"


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


def _set_config(model: PreTrainedModel, widths: dict[str, int], key: FusionKey | None) -> None:
    part, base = _base_part(model), base_model(model).config
    _write(model.config, part, widths, key)
    if part is None and base is not model.config:
        _write(base, None, widths, key)


def _base_part(model: PreTrainedModel) -> str | None:
    """Path in the config of that of the base model, where it is another: ColPali's is a part with its own."""
    base = base_model(model).config
    return next((path for path, part in parts_of(model.config) if part is base), None)


def _write(config: PreTrainedConfig, base_part: str | None, widths: dict[str, int], key: FusionKey | None) -> None:
    """Sets the widths, and sets or removes the key, in the config of the base model too. Changes the config."""
    for name, width in widths.items():
        set_width(config, name, width)
    _write_key(config, key)
    if base_part is not None:
        _write_key(dict(parts_of(config))[base_part], None if key is None else _with_keys_from(key, f"{base_part}."))


def _write_key(config: PreTrainedConfig, key: FusionKey | None) -> None:
    if key is not None:
        setattr(config, KEY, key_to_dict(key))
    elif hasattr(config, KEY):
        delattr(config, KEY)


def _with_keys_from(key: FusionKey, prefix: str) -> FusionKey:
    stacks = key.architecture.stacks
    named = (replace(stack, width_key=stack.width_key and stack.width_key.removeprefix(prefix)) for stack in stacks)
    return replace(key, architecture=Architecture(tuple(named)))
