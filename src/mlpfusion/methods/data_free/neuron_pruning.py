"""Structured pruning by the joint norm of a neuron's weights (methods that keep neurons verbatim)."""

from dataclasses import dataclass

import torch

from mlpfusion.checks import check_fields
from mlpfusion.kinds.outcome import Narrowed
from mlpfusion.methods.block import Block
from mlpfusion.mlp import MLP, select_neurons


@dataclass(frozen=True)
class NeuronPruning:
    """Keeps the neurons with the largest |up_i| |down_i| (and |gate_i|), the same indices in all matrices.

    `norm` is 1 or 2: the sum of the absolute weights, or the Euclidean length.
    """

    norm: int = 2

    def __post_init__(self) -> None:
        check_fields(self)
        if self.norm not in (1, 2):
            raise ValueError(f"`norm` must be 1 or 2, got {self.norm}")


def compress(block: Block, config: NeuronPruning) -> Narrowed:
    """The `num_neurons` neurons with the best score in their old order; ties go to the lower index. No randomness."""
    score = joint_score(block.mlp, config.norm)
    best = torch.sort(score, descending=True, stable=True).indices[: block.num_neurons]
    return Narrowed(
        select_neurons(block.mlp, best.sort().values), {"kept_score": float(score[best].sum() / score.sum())}
    )


def joint_score(mlp: MLP, norm: int) -> torch.Tensor:
    """|up_i|_p |down_i|_p, times |gate_i|_p in a gated block, shape (neurons,), float64."""
    score = mlp.up.double().norm(norm, dim=1) * mlp.down.double().norm(norm, dim=0)
    return score if mlp.gate is None else score * mlp.gate.double().norm(norm, dim=1)
