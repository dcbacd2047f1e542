"""Structured pruning by the product of the norms of a neuron's weights."""

from dataclasses import dataclass

import torch

from mlpfusion.checks import check_fields
from mlpfusion.kinds.outcome import Narrowed
from mlpfusion.methods.block import Block
from mlpfusion.mlp import MLP, select_neurons


@dataclass(frozen=True)
class NeuronPruning:
    """Keeps the neurons with the largest |up_i| |down_i| (times |gate_i| if gated).

    The same indices in all matrices. `norm` is 1 (sum of absolute weights) or 2 (Euclidean length).

    >>> NeuronPruning(norm=1)
    NeuronPruning(norm=1)
    """

    norm: int = 2

    def __post_init__(self) -> None:
        check_fields(self)
        if self.norm not in (1, 2):
            raise ValueError(f"`norm` must be 1 or 2, got {self.norm}")


def compress(block: Block, config: NeuronPruning) -> Narrowed:
    """Keeps the neurons with the best scores, in their old order. Ties go to the lower index.

    No randomness.
    """
    return keep_best(block, joint_score(block.mlp, config.norm))


def keep_best(block: Block, score: torch.Tensor) -> Narrowed:
    """Keeps the `num_neurons` neurons of `block` with the best scores, in their old order.

    Ties go to the lower index. The metric is the share of the scores that is kept, 1 if all are 0.
    """
    best = torch.sort(score, descending=True, stable=True).indices[: block.num_neurons]
    kept = float(score[best].sum() / score.sum()) if score.any() else 1.0
    return Narrowed(select_neurons(block.mlp, best.sort().values), {"kept_score": kept})


def joint_score(mlp: MLP, norm: int) -> torch.Tensor:
    """|up_i|_p |down_i|_p, times |gate_i|_p in a gated block, shape (neurons,), float64.

    >>> joint_score(MLP(torch.tensor([[3.0, 4.0]]), torch.ones(2, 1), torch.relu), norm=1).tolist()
    [14.0]
    """
    score = mlp.up.double().norm(norm, dim=1) * mlp.down.double().norm(norm, dim=0)
    return score if mlp.gate is None else score * mlp.gate.double().norm(norm, dim=1)
