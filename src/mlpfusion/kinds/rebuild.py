"""Gives an uninitialised model the shapes that its `mlp_fusion` key names, and checks that they fit."""

import warnings
from collections.abc import Iterable, Sequence

from transformers import PreTrainedModel

from mlpfusion.errors import InputError
from mlpfusion.kinds.key import FusionKey
from mlpfusion.kinds.table import KINDS, kind_of, rebuild, site_size
from mlpfusion.sites.sites import Site, base_model, by_holder, find_sites, has_module, has_stack, linear_maps


def rebuild_sites(model: PreTrainedModel, key: FusionKey) -> None:
    """Makes room for what the key names at every site that the model has. Idempotent.

    Site paths are relative to the base model, so a nested stack (T5's, OPT's, BART's), in which they lead nowhere, is
    passed over. Raises `InputError` where key and model disagree.
    """
    base = base_model(model)
    if not any(has_module(base, path) for path in key.sites):
        return
    _check_parallel(model, key)
    for site in installed_sites(model, key):
        entry = key.sites[site.holder]
        rebuild(model, site, entry)
        _check_size(base, site, entry.num_parameters)


def check_loaded(model: PreTrainedModel, key: FusionKey, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Raises `InputError` unless all compressed blocks were loaded whole, no other scales were, and each fits its kind.

    A lost weight is refused even where transformers would make a random one: in a compressed block nobody wants that.
    """
    for kind in KINDS:
        lost = [name for name in (*missing, *unexpected) if name.endswith(kind.buffers)]
        if lost:
            raise InputError(f"the checkpoint must hold {kind.buffers_of} and no other, see {min(lost)}")
    missing, sites = sorted(missing), installed_sites(model, key)
    for site in sites:
        for path in linear_maps(site):
            absent = [name for name in missing if f".{path}." in f".{name}"]
            if absent:
                raise InputError(f"the checkpoint must hold all weights of compressed blocks, {absent[0]} is missing")
        entry = key.sites[site.holder]
        kind_of(entry).check(model, site, entry)
        if getattr(model, "tp_size", None) is not None:
            kind_of(entry).after_cut(model, site)
    if getattr(model, "is_quantized", False):  # transformers sets it on a model that it quantises, on no other
        _warn_of_scales(model, sites, key)


def installed_sites(model: PreTrainedModel, key: FusionKey) -> list[Site]:
    """The sites of the key that are in the model: all, or those of one stack where the model has only that one.

    Experts that share their tensors are one entry of the key; the first of them stands for all. Raises `InputError` if
    a stack of the model lacks a layer that the key names.
    """
    holders = by_holder(find_sites(model, key.architecture))
    sites = [members[0] for holder, members in holders.items() if holder in key.sites]
    starts = {
        stack.layer.partition("{}")[0] for stack in key.architecture.stacks if has_stack(base_model(model), stack)
    }
    expected = [path for path in key.sites if any(path.startswith(start) for start in starts)]
    missing = sorted(set(expected) - {site.holder for site in sites})
    if missing:
        raise InputError(f"`mlp_fusion.sites` must name layers of the model, got {', '.join(missing)}")
    return sites


def _warn_of_scales(model: PreTrainedModel, sites: Sequence[Site], key: FusionKey) -> None:
    """Warns if quantised `down` maps stand behind scales: one scale a row cannot hold columns of such lengths."""
    entries = [(site, key.sites[site.holder]) for site in sites]
    scaled = sum(kind_of(entry).is_hurt_by_quantising(model, site, entry) for site, entry in entries)
    if scaled:
        warnings.warn(
            f"the weights of {scaled} blocks are quantised behind stand-alone scales, which costs accuracy: load the "
            "model without quantisation, call `mlpfusion.fold` on it, save it, and quantise that",
            stacklevel=2,
        )


def _check_parallel(model: PreTrainedModel, key: FusionKey) -> None:
    """Raises `InputError` if a tensor parallel plan is to spread a model with blocks that no plan can cut."""
    config = getattr(model.config, "distributed_config", None)  # transformers puts it there before the model is built
    if (getattr(config, "tp_size", None) or 1) > 1:
        bad = [path for path, entry in key.sites.items() if not kind_of(entry).can_be_cut]
        if bad:
            whole = " and ".join(kind.name for kind in KINDS if not kind.can_be_cut)
            raise InputError(f"`tp_plan` must be left out for {whole} blocks, got one at {bad[0]}")


def _check_size(base: PreTrainedModel, site: Site, num_parameters: int) -> None:
    count = site_size(base, site)
    if count != num_parameters:
        raise InputError(f"`mlp_fusion` wants {num_parameters} parameters at {site.holder}, the model has {count}")
