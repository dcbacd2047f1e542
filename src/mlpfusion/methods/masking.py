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
    """Masks the round((1 - keep_ratio) N) entries with the smallest scores, False in the result.

    All N entries of all blocks are ranked together. Among equal scores the first ones (by block,
    matrix, row, column) are masked.

    >>> best_masks([{"up": torch.tensor([[3.0, 1.0], [2.0, 4.0]])}], 0.5)[0]["up"].tolist()
    [[True, False], [False, True]]
    """
    every = [score for block in scores for score in block.values()]
    number = round((1 - keep_ratio) * sum(score.numel() for score in every))
    pieces = iter(smallest(every, number))
    return [{name: ~next(pieces) for name in block} for block in scores]


def smallest(scores: Sequence[Float[Tensor, "..."]], number: int) -> list[Bool[Tensor, "..."]]:
    """Marks the `number` smallest entries of all tensors together; of equal ones the first.

    >>> [mask.tolist() for mask in smallest([torch.tensor([3.0, 1.0]), torch.tensor([[1.0], [0.0]])], 2)]
    [[False, True], [[False], [True]]]
    """
    mask = _smallest(torch.cat([score.reshape(-1) for score in scores]), number)
    pieces = mask.split([score.numel() for score in scores])
    return [piece.view(score.shape) for piece, score in zip(pieces, scores, strict=True)]


def apply_mask(mlp: MLP, mask: dict[str, Bool[Tensor, "out in"]]) -> Masked:
    """Zeroes the matrices where `mask` is False. The metric is the share of entries left.

    >>> mlp = MLP(torch.eye(2), torch.eye(2), torch.relu)
    >>> mask = torch.tensor([[True, False], [False, False]])
    >>> apply_mask(mlp, {"up": mask, "down": mask}).metrics
    {'density': 0.25}
    """
    density = sum(int(part.sum()) for part in mask.values()) / sum(part.numel() for part in mask.values())
    copies = {name: tensor.clone() for name, tensor in mlp.tensors().items() if name not in mask}
    matrices = mlp.matrices()
    zeroed = {name: torch.where(part, matrices[name], 0.0).contiguous() for name, part in mask.items()}
    return Masked(replace(mlp, **copies, **zeroed), {"density": density})


def _smallest(scores: Float[Tensor, " entries"], number: int) -> Bool[Tensor, " entries"]:
    """Marks the `number` smallest scores."""
    if number == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(number).values  # selection, not sorting: there are as many entries as weights
    smallest = scores < threshold
    ties = (scores == threshold).nonzero()[:, 0]
    smallest[ties[: number - int(smallest.sum())]] = True
    return smallest
