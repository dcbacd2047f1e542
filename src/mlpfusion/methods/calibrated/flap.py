"""Structured pruning by fluctuation, with the means of the pruned neurons in the bias (FLAP, An et al. 2024)."""

from dataclasses import dataclass, replace

import torch

from mlpfusion.kinds.outcome import Narrowed
from mlpfusion.methods.block import Block, CalibrationNeeds
from mlpfusion.methods.calibrated.refit import activation_chunks
from mlpfusion.mlp import select_neurons


@dataclass(frozen=True)
class FLAP:
    """Keeps the neurons with the largest variance of the activation over tokens, times |down_i|^2.

    What the others add on average goes into the bias of `down`, if the block has one. Every layer keeps the same share;
    the paper also ranks the layers against each other.

    >>> FLAP()
    FLAP()
    """

    def needs(self) -> CalibrationNeeds:
        """Needs of the calibration: no gradients."""
        return CalibrationNeeds(gradients=False)


def compress(block: Block, config: FLAP) -> Narrowed:
    """Keeps the neurons with the best scores, in their old order. Ties go to the lower index.

    The metric is the share of the score that is kept. No randomness.
    """
    mlp, calibration = block.mlp, block.inputs
    sums = torch.zeros(2, mlp.num_neurons, dtype=torch.float64, device=mlp.up.device)
    for activations in activation_chunks(mlp, calibration.trace.inputs):
        sums += torch.stack([activations.double().sum(0), activations.double().square().sum(0)])
    mean, square = sums / calibration.trace.num_tokens
    score = (square - mean.square()).clamp_min(0) * mlp.down.double().square().sum(0)
    order = torch.sort(score, descending=True, stable=True).indices
    best, rest = order[: block.num_neurons], order[block.num_neurons :]
    small = select_neurons(mlp, best.sort().values)
    if mlp.down_bias is not None:
        bias = mlp.down_bias.double() + mlp.down.double()[:, rest] @ mean[rest]
        small = replace(small, down_bias=bias.to(mlp.down_bias.dtype))
    return Narrowed(small, {"kept_score": float(score[best].sum() / score.sum()) if score.any() else 1.0})
