"""Traces of experts: one record a mixture, from which that of an expert is cut when it is asked for."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from mlpfusion.errors import InputError
from mlpfusion.kernel import BlockTrace
from mlpfusion.sites.mixtures.routing import RoutedTokens, Routing, SeenMixture
from mlpfusion.sites.sites import Site


@dataclass(frozen=True)
class RecordedTraces:
    """The traces of single MLPs by the path of the site, and what enters and leaves mixtures by theirs."""

    blocks: dict[str, BlockTrace]
    mixtures: dict[str, RoutedTokens]

    def at(self, site: Site) -> BlockTrace | None:
        """The trace at `site`, None for an expert that no token reaches.

        The samples of an expert are those with a token that reaches it.
        """
        if site.expert is None:
            return self.blocks[site.path]
        assert site.mixture is not None
        found = self.mixtures[site.mixture].trace_of(site.expert)
        return None if found is None else found[0]

    def samples_at(self, site: Site) -> Int[Tensor, " reached"]:
        """The numbers of the samples of the trace at `site`, ascending."""
        if site.expert is None:
            return torch.arange(self.blocks[site.path].num_samples)
        assert site.mixture is not None
        return self.mixtures[site.mixture].samples_of(site.expert)

    def num_samples(self, site: Site) -> int:
        """All samples that were recorded at `site`, or at the mixture that it is in."""
        if site.mixture is None:
            return self.blocks[site.path].num_samples
        return len(self.mixtures[site.mixture].lengths)

    def cotangents(self) -> dict[str, Tensor]:
        """The gradients of f at every token, by the path of the MLP or the mixture."""
        found = {path: trace.cotangents for path, trace in self.blocks.items()}
        return found | {path: one.cotangents for path, one in self.mixtures.items() if one.cotangents is not None}


def routed_tokens(tensors: Sequence[Tensor]) -> RoutedTokens:
    """The tokens of a mixture from their rows and the numbers of rows a token and of tokens a sample.

    The rows are inputs, numbers and weights of the experts, and cotangents, if any.

    >>> ones = torch.ones(3, 1)
    >>> routed_tokens([ones, ones.int(), ones, torch.tensor([1, 0, 2]), torch.tensor([2, 1])]).samples.tolist()
    [0, 1, 1]
    """
    inputs, chosen, weights, *cotangents, rows, lengths = tensors
    tokens = torch.arange(len(lengths), device=rows.device).repeat_interleave(lengths.to(rows.device))
    return RoutedTokens(Routing(inputs, chosen, weights), tokens.repeat_interleave(rows), lengths, *cotangents)


def check_mixtures_ran(paths: Iterable[str], seen: Mapping[str, SeenMixture]) -> None:
    """Raises `InputError` unless every mixture ran once."""
    for path in paths:
        runs = seen[path].runs if path in seen else 0
        if runs != 1:
            raise InputError(f"`sites` must run once a forward pass, got {runs} runs of {path}")
