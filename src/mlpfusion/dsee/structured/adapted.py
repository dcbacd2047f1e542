"""A model under an adapter, in memory, loses the heads of the lowest updates."""

from collections.abc import Container, Sequence
from typing import Any

import torch

from mlpfusion.dsee.criteria import update_scores
from mlpfusion.dsee.structured.adapter import check_cuttable, lay, lift, maps_under
from mlpfusion.dsee.structured.choice import HeadChoice
from mlpfusion.dsee.structured.lowest import lowest_heads
from mlpfusion.dsee.structured.record import LayerHeads
from mlpfusion.errors import InputError
from mlpfusion.heads.sites import HeadSite, find_heads
from mlpfusion.heads.slicing import check_whole, slice_heads


def slice_adapted(adapted: Any, choice: HeadChoice) -> tuple[Any, list[LayerHeads]]:
    """Takes heads out of a model and its adapter: a `PeftModel` that trains, and what is left of each attention.

    The `PeftModel` given is taken apart. Raises `InputError`, before anything is changed, as `check_slice` does.
    """
    sums = {path: update_scores(layer).sum(1, dtype=torch.float64) for path, layer in maps_under(adapted).items()}
    model, adapter = lift(adapted)
    sites = find_heads(model)
    _check_scored(sites, sums)
    layers = lowest_heads(model, choice, sums)
    kept = {layer.path: layer.kept for layer in layers}
    cut = adapter.cut(model, sites, kept)
    return lay(slice_heads(model, kept), cut), layers


def check_slice(adapted: Any, choice: HeadChoice, name: str) -> None:
    """Raises `InputError` for a model, an adapter or a number of heads, called `name`, that cannot be.

    The `PeftModel` may be on the meta device. It is taken apart.
    """
    check_cuttable(adapted.peft_config["default"])
    covered = set(maps_under(adapted))
    model, _ = lift(adapted)
    check_whole(model)
    sites = find_heads(model)
    choice.check(sites, name)
    _check_scored(sites, covered)


def _check_scored(sites: Sequence[HeadSite], covered: Container[str]) -> None:
    """Raises `InputError` if an adapter on the maps `covered` says nothing of an attention."""
    for site in sites:
        if site.query not in covered and site.value not in covered:
            raise InputError(f"`adapter` must have an update of query or value at {site.path} to score its heads")
