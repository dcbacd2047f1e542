"""Structured pruning by the range of a neuron's input weights, as optipfair does by default."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mlpfusion.kinds.outcome import Narrowed
from mlpfusion.methods.block import Block
from mlpfusion.methods.data_free.neuron_pruning import keep_best
from mlpfusion.mlp import MLP


@dataclass(frozen=True)
class PeakToPeak:
    """Keeps the neurons with the largest range of weights, largest plus |smallest|, in `up` and `gate`.

    >>> PeakToPeak()
    PeakToPeak()
    """


def compress(block: Block, config: PeakToPeak) -> Narrowed:
    """Keeps the neurons with the best scores, in their old order. Ties go to the lower index.

    No randomness.
    """
    return keep_best(block, weight_range(block.mlp))


def weight_range(mlp: MLP) -> Float[Tensor, " neurons"]:
    """max_j up_ij + |min_j up_ij|, plus the same of `gate` in a gated block, in float64.

    >>> weight_range(MLP(torch.tensor([[3.0, -1.0]]), torch.ones(2, 1), torch.relu)).tolist()
    [4.0]
    """
    maps = [mlp.up] if mlp.gate is None else [mlp.up, mlp.gate]
    return torch.stack([one.double().amax(1) + one.double().amin(1).abs() for one in maps]).sum(0)
