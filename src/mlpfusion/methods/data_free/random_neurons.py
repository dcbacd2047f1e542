"""The control of every comparison: neurons chosen by lot."""

from dataclasses import dataclass

import torch

from mlpfusion.kinds.outcome import Narrowed
from mlpfusion.mlp import MLP, canonical_order, select_neurons


@dataclass(frozen=True)
class RandomNeurons:
    """Keeps neurons chosen uniformly at random."""


def compress(mlp: MLP, num_neurons: int, config: RandomNeurons, generator: torch.Generator) -> Narrowed:
    """`num_neurons` different neurons drawn from `generator`, in their old order."""
    canonical = canonical_order(mlp)
    chosen = torch.randperm(mlp.num_neurons, generator=generator)[:num_neurons].to(canonical.device)
    return Narrowed(select_neurons(mlp, canonical[chosen].sort().values))
