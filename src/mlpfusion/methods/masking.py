"""Zeroes the weights with the smallest scores, exactly as many as asked for."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mlpfusion.kinds.outcome import Masked
from mlpfusion.mlp import MLP


def best_masks(
    scores: Sequence[dict[str, Float[Tensor, "out in"]]], keep_ratio: float
) -> list[dict[str, Bool[Tensor, "out in"]]]:
    """For every matrix which entries stay, ranked over all of them together; round((1 - keep_ratio) N) do not.

    Of equal scores the earlier ones (block, matrix, row, column) go first.
    """
    flat = torch.cat([score.reshape(-1) for block in scores for score in block.values()])
    kept = ~_smallest(flat, round((1 - keep_ratio) * flat.numel()))
    pieces = iter(kept.split([score.numel() for block in scores for score in block.values()]))
    return [{name: next(pieces).view(score.shape) for name, score in block.items()} for block in scores]


def apply_mask(mlp: MLP, mask: dict[str, Bool[Tensor, "out in"]]) -> Masked:
    """The block with zeros where `mask` is False; the metric is the share of its matrices that stays."""
    kept = sum(int(part.sum()) for part in mask.values()) / sum(part.numel() for part in mask.values())
    copies = {name: tensor.clone() for name, tensor in mlp.tensors().items() if name not in mask}
    zeroed = {name: torch.where(part, getattr(mlp, name), 0.0).contiguous() for name, part in mask.items()}
    return Masked(replace(mlp, **copies, **zeroed), {"density": kept})


def _smallest(scores: Float[Tensor, " entries"], number: int) -> Bool[Tensor, " entries"]:
    """Which are the `number` smallest; by selection, not by sorting: there are as many entries as weights."""
    if number == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(number).values
    chosen = scores < threshold
    ties = (scores == threshold).nonzero()[:, 0]
    chosen[ties[: number - int(chosen.sum())]] = True
    return chosen
