"""Unstructured magnitude pruning in one shot (paper, section 5.1, OMP)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mlpfusion.kinds.outcome import Masked
from mlpfusion.methods.masking import apply_mask, best_masks
from mlpfusion.mlp import MLP


@dataclass(frozen=True)
class Magnitude:
    """Zeroes the smallest weights, ranked over all chosen blocks: masked, same width, no gain on dense hardware."""


def compress(
    mlps: Sequence[MLP], keep_ratio: float, config: Magnitude, generators: Sequence[torch.Generator]
) -> list[Masked]:
    """The blocks with zeros for the smallest |w| of all their matrices ranked together; biases stay. No randomness."""
    masks = best_masks([{name: w.abs() for name, w in mlp.matrices().items()} for mlp in mlps], keep_ratio)
    return [apply_mask(mlp, mask) for mlp, mask in zip(mlps, masks, strict=True)]
