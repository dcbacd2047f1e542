"""Gives an uninitialised model the shapes that its `mlp_fusion` key names, and checks that they fit."""

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel

from mlpfusion.architectures.sites import Site, base_model, find_sites, has_module, site_parameters
from mlpfusion.errors import InputError
from mlpfusion.install.key import FusionKey
from mlpfusion.install.narrow import ScaledActivation, make_room


def rebuild_sites(model: PreTrainedModel, key: FusionKey) -> None:
    """Resizes every site of the key that the model has. Idempotent.

    Site paths are relative to the base model, so a nested stack (T5's, OPT's, BART's), in which they lead nowhere, is
    passed over. Raises `InputError` where key and model disagree.
    """
    base = base_model(model)
    if not any(has_module(base, path) for path in key.sites):
        return
    for site in installed_sites(model, key):
        wanted = key.sites[site.path]
        if (site.intermediate_size, _is_scaled(base, site)) == (wanted.intermediate_size, wanted.scaled):
            continue
        if site.intermediate_size != wanted.original_size or _is_scaled(base, site):
            raise InputError(
                f"`mlp_fusion` wants {wanted.intermediate_size} of {wanted.original_size} neurons at {site.path}, "
                f"the config gives that layer {site.intermediate_size}"
            )
        make_room(model, site, wanted.intermediate_size, scaled=wanted.scaled)
        _check_size(base, site, wanted.num_parameters)


def check_loaded(model: PreTrainedModel, key: FusionKey, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Raises `InputError` unless all scales, and no others, were loaded, and each is a partition of the neurons."""
    lost = [name for name in (*missing, *unexpected) if name.endswith(".output_scale")]
    if lost:
        raise InputError(
            f"the checkpoint must hold the `output_scale` of every scaled block and no other, see {min(lost)}"
        )
    base = base_model(model)
    for site in installed_sites(model, key):
        activation = base.get_submodule(site.module_path("activation"))
        if not isinstance(activation, ScaledActivation) or activation.output_scale.is_meta:
            continue
        smallest, total = int(activation.output_scale.min()), int(activation.output_scale.sum())
        if smallest < 1 or total != key.sites[site.path].original_size:
            raise InputError(
                f"the `output_scale` at {site.path} must be at least 1 and sum up to "
                f"{key.sites[site.path].original_size}, got a minimum of {smallest} and a sum of {total}"
            )


def installed_sites(model: PreTrainedModel, key: FusionKey) -> list[Site]:
    """The sites of the key that are in the model: all, or those of one stack where the model has only that one.

    Raises `InputError` if a stack of the model lacks a layer that the key names.
    """
    sites = [site for site in find_sites(model, key.architecture) if site.path in key.sites]
    templates = {
        stack.layer for stack in key.architecture.stacks if has_module(base_model(model), stack.layer.format(0))
    }
    expected = [p for p in key.sites if any(p.startswith(t.partition("{}")[0]) for t in templates)]
    missing = sorted(set(expected) - {site.path for site in sites})
    if missing:
        raise InputError(f"`mlp_fusion.sites` must name layers of the model, got {', '.join(missing)}")
    return sites


def _check_size(base: nn.Module, site: Site, num_parameters: int) -> None:
    count = sum(parameter.numel() for parameter in site_parameters(base, site))
    if count != num_parameters:
        raise InputError(f"`mlp_fusion` wants {num_parameters} parameters at {site.path}, the model has {count}")


def _is_scaled(base: nn.Module, site: Site) -> bool:
    return isinstance(base.get_submodule(site.module_path("activation")), ScaledActivation)
