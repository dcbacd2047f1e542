"""Takes the heads of the lowest scores out of a model, and out of the adapter that scores them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mlpfusion.dsee.structured.choice import HeadChoice, head_scores, kept_heads
from mlpfusion.dsee.structured.record import LayerHeads
from mlpfusion.errors import InputError
from mlpfusion.heads.sites import HeadSite, find_heads
from mlpfusion.heads.slicing import slice_heads
from mlpfusion.sites.sites import base_model
from mlpfusion.sites.weights import linear_weight

if TYPE_CHECKING:  # it needs PEFT
    from mlpfusion.dsee.structured.adapter import StoredAdapter


@dataclass(frozen=True)
class Left:
    """What is left of each attention, and the adapter without the other heads."""

    layers: tuple[LayerHeads, ...]
    adapter: "StoredAdapter | None"


def slice_lowest(model: PreTrainedModel, choice: HeadChoice, adapter: "StoredAdapter | None") -> Left:
    """Takes the heads of the lowest scores out of `model`, in place.

    `adapter`, which no model holds, scores them and stays as it is; without one the weights do. Raises `InputError`,
    before anything is changed, for an adapter that says nothing of an attention, and as `slice_heads` does.
    """
    base, sites = base_model(model), find_heads(model)
    if adapter is not None:
        check_scored(sites, adapter)
    scores = {site.path: _scores(base, site, adapter) for site in sites}
    kept = kept_heads(scores, choice)
    cut = None if adapter is None else adapter.cut(base, sites, kept)
    slice_heads(model, kept)
    layers = [LayerHeads(one.path, one.layer, tuple(kept[one.path]), tuple(scores[one.path].tolist())) for one in sites]
    return Left(tuple(layers), cut)


def check_scored(sites: Sequence[HeadSite], adapter: "StoredAdapter") -> None:
    """Raises `InputError` if `adapter` says nothing of an attention."""
    for site in sites:
        if site.query not in adapter.places and site.value not in adapter.places:
            raise InputError(f"`adapter` must have an update of query or value at {site.path} to score its heads")


def _scores(base: PreTrainedModel, site: HeadSite, adapter: "StoredAdapter | None") -> Tensor:
    """A number a head: of |(alpha / r) (B A + S)|, or of |W| without an adapter."""
    if adapter is None:
        query, value = (linear_weight(base.get_submodule(path)) for path in (site.query, site.value))
        return head_scores(site, query, value)
    updates = [adapter.update(base, path) for path in (site.query, site.value)]
    query, value = (
        torch.zeros_like(linear_weight(base.get_submodule(path))) if update is None else update
        for path, update in zip((site.query, site.value), updates, strict=True)
    )
    return head_scores(site, query, value)
