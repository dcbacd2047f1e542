"""The kinds of outcome, and how an outcome gets into a model: whole, or the model stays as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from mlpfusion.kinds import low_rank, masked, narrow, narrow_experts, routed
from mlpfusion.kinds.kind import InstalledSite, Kind
from mlpfusion.kinds.outcome import Outcome
from mlpfusion.sites.sites import Site, base_model, module_paths, site_parameters
from mlpfusion.sites.weights import ModelTensors

KINDS: tuple[Kind, ...] = (narrow.KIND, low_rank.KIND, masked.KIND, routed.KIND, narrow_experts.KIND)
KIND_NAMES: dict[str, Kind] = {kind.name: kind for kind in KINDS}
_BY_TYPE: dict[type, Kind] = {kind.outcome: kind for kind in KINDS} | {kind.entry: kind for kind in KINDS}


def kind_of(block: Outcome | InstalledSite) -> Kind:
    """The kind of an outcome, or of an entry of the key."""
    return _BY_TYPE[type(block)]


def kind_of_outcome(makes: type[Outcome]) -> Kind:
    """The kind of the outcomes of one class."""
    return _BY_TYPE[makes]


@torch.no_grad()
def install(model: PreTrainedModel, site: Site, outcome: Outcome) -> InstalledSite:
    """Puts a block in the place of the one at `site`; returns its entry in the key. Changes the model.

    The values are copied into new modules: those that stood there, which `put_back_on_error` brings back, keep theirs.
    """
    base, (entry, tensors) = base_model(model), stored_form(model, site, outcome)
    kind_of(entry).make_room(model, site, entry)
    places = _own_tensors(base, site)
    for name, tensor in tensors.items():
        places[name].copy_(tensor)
    assert site_size(base, site) == entry.num_parameters
    return entry


def stored_form(model: PreTrainedModel, site: Site, outcome: Outcome) -> tuple[InstalledSite, dict[str, Tensor]]:
    """The entry of a block in the key, and its tensors by their names in a compressed model, from the base model."""
    kind, original = kind_of(outcome), ModelTensors(base_model(model))
    return kind.entry_of(site, outcome, original), kind.tensors(site, outcome, original)


def rebuild(model: PreTrainedModel, site: Site, entry: InstalledSite) -> None:
    """Makes room for the block that `entry` names, uninitialised. Changes the model; idempotent.

    Raises `InputError` where entry and model disagree.
    """
    kind = kind_of(entry)
    if not kind.is_there(model, site, entry):
        kind.make_room(model, site, entry)


def site_size(base: PreTrainedModel, site: Site) -> int:
    """Number of parameters of the linear maps of a site."""
    return sum(parameter.numel() for parameter in site_parameters(base, site))


def _own_tensors(base: PreTrainedModel, site: Site) -> dict[str, Tensor]:
    """The parameters and buffers of the modules of a site, by name from `base`."""
    modules = {path: base.get_submodule(path) for path in module_paths(site)}
    return {
        f"{path}.{name}": tensor
        for path, module in modules.items()
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }


@contextmanager
def put_back_on_error(model: PreTrainedModel) -> Iterator[None]:
    """Inside, modules may be replaced, hooks added and the config edited; any exception puts back what stood there.

    Tensors are not copied: new values must go into new modules, not into those of the model.
    """
    dicts: list[dict[Any, Any]] = []
    for module in model.modules():
        dicts += [module._modules, module._forward_pre_hooks]
    before = [(one, dict(one)) for one in dicts]
    configs = [(config, dict(vars(config))) for config in _configs(model)]
    try:
        yield
    except BaseException:
        for one, entries in before:
            one.clear()
            one.update(entries)
        for config, entries in configs:
            vars(config).clear()
            vars(config).update(entries)
        raise


def _configs(model: PreTrainedModel) -> list[PreTrainedConfig]:
    """The configs of a model and of its base, and those inside these."""
    found: dict[int, PreTrainedConfig] = {}
    waiting = [model.config, base_model(model).config]
    while waiting:
        config = waiting.pop()
        if id(config) not in found:
            found[id(config)] = config
            waiting += [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    return list(found.values())
