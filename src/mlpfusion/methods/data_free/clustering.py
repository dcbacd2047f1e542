"""The paper's Clustering ablation (section 5.3): the same centroids, the square root of P on both sides."""

from dataclasses import dataclass

import torch

from mlpfusion.checks import check_fields
from mlpfusion.kinds.outcome import Narrowed
from mlpfusion.methods.block import Block
from mlpfusion.methods.data_free import fusion
from mlpfusion.mlp import MLP, neurons, replace_neurons


@dataclass(frozen=True)
class Clustering:
    """Centroids times the square root of the cluster sizes, P nowhere else: exact for ReLU, not for GELU or SiLU.

    `num_init`, `max_iter` and `refine` are those of the k-means of Fusion.
    """

    num_init: int = fusion.Fusion.num_init
    max_iter: int = fusion.Fusion.max_iter
    refine: bool = fusion.Fusion.refine

    def __post_init__(self) -> None:
        check_fields(self)
        fusion.check_restarts(self.num_init, self.max_iter)


def compress(block: Block, config: Clustering) -> Narrowed:
    """The block of `num_neurons` centroids, every row (first map, its bias, second map) times sqrt(cluster size).

    With a gate there are three factors of which only the activated one and `down` carry the root; `up` stays.
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
    """The columns of `neurons(mlp)` that hold `up` and its bias in a gated block."""
    total = neurons(mlp).shape[1]
    start = mlp.hidden_size + (mlp.gate_bias is not None)
    return slice(start, total - mlp.hidden_size)
