"""The kinds of outcome: how each is installed, rebuilt before loading, checked after it, and folded."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from mlpfusion.kinds import low_rank, masked, narrow, routed
from mlpfusion.kinds.key import InstalledSite, LowRankSite, MaskedSite, NarrowSite, RoutedSite
from mlpfusion.kinds.outcome import LowRank, Masked, Narrowed, Routed
from mlpfusion.sites.sites import Site


@dataclass(frozen=True)
class Kind:
    """The functions of one kind; each works on one site of a model in place."""

    install: Callable[[PreTrainedModel, Site, Any], InstalledSite]
    rebuild: Callable[[PreTrainedModel, Site, Any], None]
    check: Callable[[PreTrainedModel, Site, Any], None]
    fold: Callable[[PreTrainedModel, Site], None]


_NARROW = Kind(narrow.install, narrow.rebuild, narrow.check, narrow.fold)
_LOW_RANK = Kind(low_rank.install, low_rank.rebuild, low_rank.check, low_rank.fold)
_MASKED = Kind(masked.install, masked.rebuild, masked.check, masked.fold)
_ROUTED = Kind(routed.install, routed.rebuild, routed.check, routed.fold)

# By what a method hands back, and by what the key of a saved config holds.
KINDS: dict[type, Kind] = {
    Narrowed: _NARROW,
    NarrowSite: _NARROW,
    LowRank: _LOW_RANK,
    LowRankSite: _LOW_RANK,
    Masked: _MASKED,
    MaskedSite: _MASKED,
    Routed: _ROUTED,
    RoutedSite: _ROUTED,
}
