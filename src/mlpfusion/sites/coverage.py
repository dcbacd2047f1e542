"""How much of the MLPs of a model belongs to sites: whether a row overlooked something."""

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from mlpfusion.sites.detect import named_stacks
from mlpfusion.sites.mixtures.experts import expert_modules, expert_parameters
from mlpfusion.sites.sites import Site, base_model, is_beside_mlp, linear_maps, site_parameters


def visited_share(model: PreTrainedModel, sites: Sequence[Site]) -> float:
    """Share of the MLP parameters of the sites' layers that belong to a site; 1.0 when nothing was overlooked.

    What counts as an MLP parameter is decided by shape, not by the row: every parameter of the layer outside
    attention and mixtures with an axis as long as the intermediate size (twice as long where gate and up are one map).
    Where experts are among the sites, every parameter of an expert in their layers, whatever its shape; and everywhere
    that of an expert that no stack of the model names, for it cannot be left out by choice.
    """
    base = base_model(model)
    visited = {id(parameter) for site in sites for parameter in site_parameters(base, site)}
    experts = {id(p) for p in expert_parameters(base)}
    wanted = {id(p): p for site in sites for p in _mlp_shaped_parameters(base, site) if id(p) not in experts}
    layers = dict.fromkeys(_layer_of(site) for site in sites if site.expert is not None)
    wanted |= {id(p): p for layer in layers for p in expert_parameters(base.get_submodule(layer))}
    wanted |= {id(p): p for module in unnamed_mixtures(model).values() for p in module.parameters()}
    total = sum(parameter.numel() for parameter in wanted.values())
    return sum(p.numel() for key, p in wanted.items() if key in visited) / total


def unnamed_mixtures(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The modules of experts, by path from the base model, that are kept in another way than a stack can name."""
    mixtures = expert_modules(base_model(model))
    stacks = named_stacks(model) if mixtures else ()
    return {path: one for path, one in mixtures.items() if not any(stack.is_of_mixture(path) for stack in stacks)}


def _layer_of(site: Site) -> str:
    """Path of the layer that holds an expert."""
    return site.stack.layer.partition("{}")[0] + str(site.layer)


def _mlp_shaped_parameters(base: nn.Module, site: Site) -> list[nn.Parameter]:
    if site.expert is not None:
        return []
    lengths = {site.intermediate_size * len(names) for names in linear_maps(site).values()}
    axes = 2 if site.hidden_size in lengths else 1
    return [
        parameter
        for name, parameter in base.get_submodule(site.path).named_parameters()
        if not is_beside_mlp(name) and parameter.ndim >= axes and lengths & set(parameter.shape)
    ]
