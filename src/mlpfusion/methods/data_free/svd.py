"""Truncated singular value decomposition of every matrix by itself (paper, section 5.3)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mlpfusion.errors import InputError
from mlpfusion.kinds.outcome import LowRank
from mlpfusion.methods.block import Block
from mlpfusion.mlp import MLP


@dataclass(frozen=True)
class SVD:
    """Replaces each matrix by two trained factors, its truncated SVD; the width stays.

    >>> SVD()
    SVD()
    """


def compress(block: Block, config: SVD) -> LowRank:
    """Factors `up`, `down` (and `gate`) into U_t diag(S_t) and V_t^T for t = `rank`.

    The metric is the share of the squared singular values dropped, over all matrices. No
    randomness.
    """
    return factorise(block.mlp, block.rank)


def factorise(mlp: MLP, rank: int) -> LowRank:
    """The factors U_t diag(S_t) and V_t^T of `up`, `down` (and `gate`) for t = `rank`.

    The metric is the share of the squared singular values that is dropped, over all matrices.
    Raises `InputError` for a rank out of range.
    """
    if not 1 <= rank <= min(mlp.up.shape):
        raise InputError(f"`rank` must be between 1 and {min(mlp.up.shape)}, got {rank}")
    factors, dropped, total = {}, 0.0, 0.0
    for name, weight in mlp.matrices().items():
        left, right, values = truncated_svd(weight, rank)
        factors[name] = (left.to(weight.dtype), right.to(weight.dtype))
        dropped += float(values[rank:].double().square().sum())
        total += float(values.double().square().sum())
    return LowRank(factors, {"squared_error_ratio": dropped / total if total else 0.0})


def truncated_svd(
    weight: Float[Tensor, "out in"], rank: int
) -> tuple[Float[Tensor, "out rank"], Float[Tensor, "rank in"], Float[Tensor, " values"]]:
    """Returns U_t diag(S_t), V_t^T and all singular values, in fp32 or better.

    The product of the first two is the best approximation of rank t.

    >>> left, right, values = truncated_svd(torch.ones(3, 2), 1)
    >>> left.shape, right.shape, values.shape
    (torch.Size([3, 1]), torch.Size([1, 2]), torch.Size([2]))
    """
    compute = torch.promote_types(weight.dtype, torch.float32)
    left, values, right = torch.linalg.svd(weight.to(compute), full_matrices=False)
    left = (left[:, :rank] * values[:rank]).clone(memory_format=torch.contiguous_format)
    return left, right[:rank].clone(memory_format=torch.contiguous_format), values
