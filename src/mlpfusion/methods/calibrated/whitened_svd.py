"""Truncated singular value decomposition of every matrix on what it sees (SVD-LLM, Wang et al. 2025)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mlpfusion.checks import check_above_zero, check_fields
from mlpfusion.cluster.gram import gram_matrix
from mlpfusion.kinds.outcome import LowRank
from mlpfusion.methods.block import Block, CalibrationNeeds
from mlpfusion.methods.calibrated.refit import moments
from mlpfusion.methods.data_free.svd import truncated_svd
from mlpfusion.mlp import MLP


@dataclass(frozen=True)
class WhitenedSVD:
    """Replaces each matrix by two trained factors with the least error on its inputs; the width stays.

    `ridge` is added to the second moments of the inputs, in units of their mean: directions that no input has count as
    much as one of that size.

    >>> WhitenedSVD().ridge
    0.0001
    """

    ridge: float = 1e-4  # not tuned

    def __post_init__(self) -> None:
        check_fields(self)
        check_above_zero("ridge", self.ridge)

    def needs(self) -> CalibrationNeeds:
        """Needs of the calibration: no gradients."""
        return CalibrationNeeds(gradients=False)


def compress(block: Block, config: WhitenedSVD) -> LowRank:
    """Factors `up`, `down` (and `gate`) at rank `rank`, each by itself, on its inputs in the original block.

    The metric is the share of the squared outputs of the matrices that is lost, ridge included. No randomness.
    """
    mlp, calibration = block.mlp, block.inputs
    entering, between = input_moments(mlp, calibration.trace.inputs)
    factors, dropped, total = {}, 0.0, 0.0
    for name, weight in mlp.matrices().items():
        left, right, values = whitened_svd(weight, between if name == "down" else entering, block.rank, config.ridge)
        factors[name] = (left.to(weight.dtype), right.to(weight.dtype))
        dropped += float(values[block.rank :].square().sum())
        total += float(values.square().sum())
    return LowRank(factors, {"squared_error_ratio": dropped / total if total else 0.0})


def input_moments(
    mlp: MLP, inputs: Float[Tensor, "tokens hidden"]
) -> tuple[Float[Tensor, "hidden hidden"], Float[Tensor, "neurons neurons"]]:
    """Means over the tokens of x x^T for the inputs x of the block, and of a a^T for the inputs a of `down`."""
    x = inputs.to(mlp.up.device, torch.float64)
    return gram_matrix(x.T) / len(x), moments(mlp, inputs).gram[: mlp.num_neurons, : mlp.num_neurons]


def whitened_svd(
    weight: Float[Tensor, "out in"], moment: Float[Tensor, "in in"], rank: int, ridge: float
) -> tuple[Float[Tensor, "out rank"], Float[Tensor, "rank in"], Float[Tensor, " values"]]:
    """Returns the factors of rank t with the least E|(weight - left right) x|^2, and all singular values, in float64.

    With E[x x^T] = S S^T (Cholesky) the error is |(weight - left right) S|_F^2, so the factors are those of the SVD of
    weight S, the right one times S^-1. The squares of the dropped values sum to the error.

    >>> moment = torch.diag(torch.tensor([1.0, 100.0], dtype=torch.float64))
    >>> left, right, _ = whitened_svd(torch.diag(torch.tensor([2.0, 1.0])), moment, 1, ridge=1e-9)
    >>> (left @ right).round(decimals=4).abs().tolist()
    [[0.0, 0.0], [0.0, 1.0]]
    """
    mean = float(moment.diagonal().mean()) or 1.0
    root = torch.linalg.cholesky(moment + ridge * mean * torch.eye(len(moment)).to(moment))
    left, right, values = truncated_svd(weight.double() @ root, rank)
    return left, torch.linalg.solve_triangular(root, right, upper=False, left=False), values
