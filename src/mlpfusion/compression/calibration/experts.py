"""What a calibrated method gets of one expert, from the record of its mixture."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from mlpfusion.compression.settings import CalibrationSize
from mlpfusion.kernel import BlockTrace
from mlpfusion.methods.calibrated.calibration import Calibration
from mlpfusion.mlp import MLP, forward, in_compute_dtype
from mlpfusion.sites.mixtures.routing import RoutedTokens
from mlpfusion.sites.sites import Site


def expert_calibration(
    tokens: RoutedTokens, site: Site, row_weights: Float[Tensor, " rows"] | None = None
) -> Calibration | None:
    """The tokens that reach one expert, weighted as its router does; None if there are none.

    An error of the expert enters the output of the mixture times the weight of the router, or as it is where that
    multiplies what enters the expert. `row_weights`, by which errors of the mixture count, multiply that.
    """
    assert site.expert is not None
    found = tokens.trace_of(site.expert)
    if found is None:
        return None
    trace, weights = found
    if row_weights is not None:
        weights = weights * row_weights[tokens.routing.of_expert(site.expert)[0]].to(weights.dtype)
    return Calibration(trace, weights=weights, num_samples=len(tokens.lengths))


def sequential_calibration(
    original: RoutedTokens,
    cut: RoutedTokens,
    site: Site,
    expert: MLP,
    row_weights: Float[Tensor, " rows"] | None = None,
) -> Calibration | None:
    """The same where the blocks before the mixture are compressed.

    `cut` and `original` are what enters the mixture with those blocks and without. A state that has moved may be routed
    elsewhere, so the router of the cut run says which tokens reach the expert, and with what weight. The inputs are
    those of the cut run; the target at a token is what the original `expert` makes of that token's input in the
    original run, whether or not it was sent to the expert there. Cotangents and `row_weights` are the original's.
    """
    assert site.expert is not None
    moved = replace(cut.to(original.samples.device), cotangents=original.cotangents)
    seen = expert_calibration(moved, site, row_weights)
    if seen is None:
        return None
    block, (tokens, _) = in_compute_dtype(expert), moved.routing.of_expert(site.expert)
    return replace(seen, targets=forward(block, original.routing.inputs[tokens].to(block.up)))


def common_traces(before: RoutedTokens, after: RoutedTokens, site: Site) -> tuple[BlockTrace, BlockTrace] | None:
    """The traces of one expert in two runs of the same samples; None if no sample reaches it in both.

    Of the samples with a token that reaches it in both: a kernel has an entry for every pair of samples. Which tokens
    these are may differ.
    """
    assert site.expert is not None
    first, second = (one.trace_of(site.expert) for one in (before, after))
    if first is None or second is None:
        return None
    by_run = [one.samples_of(site.expert).cpu() for one in (before, after)]
    common = [torch.isin(samples, other).nonzero().squeeze(1) for samples, other in (by_run, by_run[::-1])]
    return (first[0].select(common[0]), second[0].select(common[1])) if len(common[0]) else None


def routed_size(tokens: RoutedTokens) -> CalibrationSize:
    """How much enters the mixture: its samples and tokens."""
    return CalibrationSize(len(tokens.lengths), int(tokens.lengths.sum()))
