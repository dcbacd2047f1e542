"""Fusion with P folded into `down`: same forward as `Fusion`, smaller Adam kernel of `down` (paper, section 4.3)."""

from dataclasses import dataclass

from mlpfusion.checks import check_fields
from mlpfusion.kinds.outcome import Narrowed
from mlpfusion.methods.block import Block
from mlpfusion.methods.data_free import fusion
from mlpfusion.mlp import fold


@dataclass(frozen=True)
class FoldedFusion:
    """MLP Fusion with P folded into the second linear map: a stock block, for deployment or as the ablation.

    `num_init`, `max_iter` and `refine` are those of the k-means of Fusion.
    """

    num_init: int = fusion.Fusion.num_init
    max_iter: int = fusion.Fusion.max_iter
    refine: bool = fusion.Fusion.refine

    def __post_init__(self) -> None:
        check_fields(self)
        fusion.check_restarts(self.num_init, self.max_iter)


def compress(block: Block, config: FoldedFusion) -> Narrowed:
    """The block of `num_neurons` centroids with `down` times the cluster sizes, no scale."""
    fused = fusion.compress(block, fusion.Fusion(config.num_init, config.max_iter, config.refine))
    return Narrowed(fold(fused.mlp), fused.metrics)
