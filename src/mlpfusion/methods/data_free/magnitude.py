"""Unstructured magnitude pruning in one shot (paper, section 5.1, OMP)."""

from collections.abc import Sequence
from dataclasses import dataclass

from mlpfusion.kinds.outcome import Masked
from mlpfusion.methods.block import Block
from mlpfusion.methods.masking import apply_mask, best_masks


@dataclass(frozen=True)
class Magnitude:
    """Zeroes the smallest weights, ranked over all blocks; no gain on dense hardware.

    >>> Magnitude()
    Magnitude()
    """


def compress(blocks: Sequence[Block], config: Magnitude) -> list[Masked]:
    """Zeroes the smallest |w| of all matrices of all blocks. Biases stay. No randomness."""
    sizes = [{name: w.abs() for name, w in block.mlp.matrices().items()} for block in blocks]
    masks = best_masks(sizes, blocks[0].keep_ratio)
    return [apply_mask(block.mlp, mask) for block, mask in zip(blocks, masks, strict=True)]
