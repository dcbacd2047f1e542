"""The paper's ablation Clustering (section 5.3): Fusion's centroids with sqrt(P) on both sides."""

from dataclasses import dataclass

import torch

from mlpfusion.checks import check_fields
from mlpfusion.kinds.outcome import Narrowed
from mlpfusion.methods.block import Block
from mlpfusion.methods.data_free import fusion
from mlpfusion.mlp import MLP, neurons, replace_neurons


@dataclass(frozen=True)
class Clustering:
    """Replaces neurons by centroids times sqrt(cluster size); exact for ReLU, not GELU or SiLU.

    `num_init`, `max_iter` and `refine` are options of the k-means, as in Fusion.

    >>> Clustering(refine=False)  # the paper's clustering
    Clustering(num_init=1, max_iter=300, refine=False)
    """

    num_init: int = fusion.Fusion.num_init
    max_iter: int = fusion.Fusion.max_iter
    refine: bool = fusion.Fusion.refine

    def __post_init__(self) -> None:
        check_fields(self)
        fusion.check_restarts(self.num_init, self.max_iter)


def compress(block: Block, config: Clustering) -> Narrowed:
    """Clusters the neurons and multiplies rows of `up`, its bias and columns of `down` by sqrt(P).

    In a gated block there are three factors, and only the activated one and `down` are multiplied.
    """
    mlp = block.mlp
    clusters = fusion.cluster_neurons(
        mlp, block.num_neurons, fusion.Fusion(config.num_init, config.max_iter, config.refine), block.generator
    )
    centroids = replace_neurons(mlp, clusters.centroids)
    roots = clusters.cluster_sizes.to(clusters.centroids.dtype).sqrt()
    columns = torch.ones_like(clusters.centroids) * roots[:, None]
    if mlp.gate is not None:
        unscaled = _up_columns(centroids)
        columns[:, unscaled] = 1.0
    return Narrowed(replace_neurons(mlp, clusters.centroids * columns), fusion.cluster_metrics(clusters))


def _up_columns(mlp: MLP) -> slice:
    """Columns of `neurons(mlp)` with `up` and its bias, in a gated block."""
    total = neurons(mlp).shape[1]
    start = mlp.hidden_size + (mlp.gate_bias is not None)
    return slice(start, total - mlp.hidden_size)
