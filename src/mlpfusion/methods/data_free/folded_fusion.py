"""Fusion with P folded into `down`: same forward pass, smaller Adam kernel (paper, section 4.3)."""

from dataclasses import dataclass

from mlpfusion.checks import check_fields
from mlpfusion.kinds.outcome import Narrowed
from mlpfusion.methods.block import Block
from mlpfusion.methods.data_free import fusion
from mlpfusion.mlp import fold


@dataclass(frozen=True)
class FoldedFusion:
    """Replaces neurons by centroids and folds P into `down`: a stock block, to deploy.

    `num_init`, `max_iter` and `refine` are options of the k-means, as in Fusion.

    >>> FoldedFusion()
    FoldedFusion(num_init=1, max_iter=300, refine=True)
    """

    num_init: int = fusion.Fusion.num_init
    max_iter: int = fusion.Fusion.max_iter
    refine: bool = fusion.Fusion.refine

    def __post_init__(self) -> None:
        check_fields(self)
        fusion.check_restarts(self.num_init, self.max_iter)


def compress(block: Block, config: FoldedFusion) -> Narrowed:
    """Fuses the block and multiplies the columns of `down` by the cluster sizes."""
    fused = fusion.compress(block, fusion.Fusion(config.num_init, config.max_iter, config.refine))
    return Narrowed(fold(fused.mlp), fused.metrics)
