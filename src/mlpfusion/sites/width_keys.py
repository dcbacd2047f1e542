"""Which key of a config holds the width of a stack: looked up safely, and proven on the meta device."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from mlpfusion.errors import REFUSALS, InputError, shown
from mlpfusion.sites.parts import parts_of, text_config
from mlpfusion.sites.sites import Site, base_prefix, by_holder, linear_maps
from mlpfusion.sites.table import Architecture, Stack

# What the `__init__` of a model class may raise for a config that it does not like.
_REFUSALS = (*REFUSALS, ImportError, StrictDataclassError)
_USUAL = ("intermediate", "ffn", "inner", "d_ff", "mlp")


def holder_of(config: PreTrainedConfig, key: str) -> tuple[PreTrainedConfig, str] | None:
    """Config with the entry that `key` names, and its name there; None if there is none.

    An entry is that of `config` or of its text model, after dots (`vision_config.intermediate_size`) of another part.
    """
    path, _, name = key.rpartition(".")
    holders = [part for inner, part in parts_of(config) if inner == path] if path else [config, text_config(config)]
    return next(((one, name) for one in holders if name in {*one.to_dict(), *one.attribute_map}), None)


def is_width_key(config: PreTrainedConfig, key: str, width: int) -> bool:
    """Whether `key` names an entry of the config with the value `width`, or None, the class's own default."""
    found = holder_of(config, key)
    if found is None:
        return False
    holder, name = found
    value = holder.to_dict().get(holder.attribute_map.get(name, name))
    return value is None or (type(value) is int and value == width)


def check_width_keys(config: PreTrainedConfig, sites: Sequence[Site]) -> None:
    """Raises `InputError` unless every `width_key` is null or names an entry of the config with the width's value."""
    for stack, width in dict.fromkeys((site.stack, site.intermediate_size) for site in sites):
        if stack.width_key is not None and not is_width_key(config, stack.width_key, width):
            raise InputError(
                f"`width_key` of {stack.layer} must be null or name the entry of the config that holds the width "
                f"{width}, got {shown(stack.width_key)}"
            )


def with_width(config: PreTrainedConfig, key: str, width: int) -> PreTrainedConfig:
    """Copy of the config with another width under `key`."""
    changed = copy.deepcopy(config)
    set_width(changed, key, width)
    return changed


def set_width(config: PreTrainedConfig, key: str, width: int) -> None:
    """Writes the width into the entry that `key` names. Changes the config."""
    found = holder_of(config, key)
    assert found is not None
    setattr(*found, width)


def stock_shapes(kind: type[PreTrainedModel], config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all that a model of `kind` and `config` saves; built on the meta device.

    Raises `InputError` where the class refuses the config.
    """
    try:
        with torch.device("meta"):
            model = kind(config)
    except _REFUSALS as error:
        raise InputError(f"{kind.__name__} must take the config, it says {shown(str(error))}") from error
    return saved_shapes(model)


def saved_shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all parameters and buffers that `model` saves."""
    return {name: tuple(value.shape) for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def with_proven_keys(model: PreTrainedModel, row: Architecture, sites: Sequence[Site]) -> Architecture:
    """The row with the `width_key` of every stack proven, null where no key moves the widths of this stack.

    A key is proven if the class, built on the meta device with another number there, has this width in all layers of
    the stack, and nothing but MLPs changed.
    """
    before = saved_shapes(model)
    sites = [members[0] for members in by_holder(sites).values()]
    names = dict.fromkeys(name for site in sites for name in _candidates(model.config, site.intermediate_size))
    moved = {name: _moved_stacks(model, before, sites, name) for name in names}
    return Architecture(tuple(_with_key(stack, sites, model.config, moved) for stack in row.stacks))


def _with_key(
    stack: Stack, sites: Sequence[Site], config: PreTrainedConfig, moved: dict[str, frozenset[Stack]]
) -> Stack:
    widths = dict.fromkeys(site.intermediate_size for site in sites if site.stack == stack)
    names = [name for width in widths for name in _candidates(config, width)]
    return replace(stack, width_key=next((name for name in names if stack in moved[name]), None))


def _candidates(config: PreTrainedConfig, width: int) -> list[str]:
    """Keys that may hold the width: those of this value, then empty ones with a usual name."""
    entries = {**text_config(config).to_dict(), **config.to_dict()}
    for path, part in parts_of(config):
        entries |= {f"{path}.{name}": value for name, value in part.to_dict().items()}
    equal = [name for name, value in entries.items() if type(value) is int and value == width]
    empty = [name for name, value in entries.items() if value is None and _is_usual(name)]
    return sorted(equal, key=lambda name: not _is_usual(name)) + empty


def _is_usual(name: str) -> bool:
    return any(word in name for word in _USUAL)


def _moved_stacks(
    model: PreTrainedModel, before: dict[str, tuple[int, ...]], sites: Sequence[Site], name: str
) -> frozenset[Stack]:
    """The stacks whose width is that of the key `name` in every layer; none if it moves anything else as well."""
    wanted = 2 * max(site.intermediate_size for site in sites)
    try:
        after = stock_shapes(type(model), with_width(model.config, name, wanted))
    except (InputError, StrictDataclassError):
        return frozenset()
    prefix = base_prefix(model)
    maps = {site.path: tuple(f"{prefix}{path}." for path in linear_maps(site)) for site in sites}
    changed = {key for key in {*before, *after} if before.get(key) != after.get(key)}
    if any(not any(key.startswith(paths) for paths in maps.values()) for key in changed):
        return frozenset()
    kept = {site.stack for site in sites if not any(key.startswith(maps[site.path]) for key in changed)}
    down = {site: next(weight.name for weight in site.weights if weight.field == "down") for site in sites}
    downs = [(site.stack, after.get(f"{prefix}{down[site]}", ())) for site in sites]
    wrong = {stack for stack, shape in downs if wanted not in shape}
    return frozenset(site.stack for site in sites) - kept - wrong
