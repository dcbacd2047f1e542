"""Neurons chosen uniformly at random: the control of every comparison."""

from dataclasses import dataclass

import torch

from mlpfusion.kinds.outcome import Narrowed
from mlpfusion.methods.block import Block
from mlpfusion.mlp import canonical_order, select_neurons


@dataclass(frozen=True)
class RandomNeurons:
    """Keeps neurons chosen uniformly at random.

    >>> RandomNeurons()
    RandomNeurons()
    """


def compress(block: Block, config: RandomNeurons) -> Narrowed:
    """Keeps `num_neurons` different neurons drawn from `generator`, in their old order."""
    mlp = block.mlp
    canonical = canonical_order(mlp)
    draw = torch.randperm(mlp.num_neurons, generator=block.generator)[: block.num_neurons].to(canonical.device)
    return Narrowed(select_neurons(mlp, canonical[draw].sort().values))
