"""MLP Fusion: neurons become cluster centroids, a stand-alone constant P keeps the Adam kernel (paper, Eq. 5)."""

from dataclasses import dataclass, replace

import torch

from mlpfusion.checks import check_fields, check_range
from mlpfusion.cluster import KMeansResult, kmeans
from mlpfusion.kinds.outcome import Narrowed
from mlpfusion.methods.block import Block
from mlpfusion.mlp import MLP, neurons, replace_neurons

# All restarts are drawn before the first.
MAX_RESTARTS = 1000


@dataclass(frozen=True)
class Fusion:
    """MLP Fusion with a stand-alone P: the method of the paper, for fine-tuning.

    Of `num_init` restarts of k-means the best is taken. Lloyd's iterations end after `max_iter` at the latest.
    `refine` adds single-point moves to Lloyd's k-means; without it the clustering is that of the paper.
    """

    num_init: int = 1
    max_iter: int = 300
    refine: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        check_restarts(self.num_init, self.max_iter)


def check_restarts(num_init: int, max_iter: int) -> None:
    """Raises `InputError` for numbers of restarts and iterations that k-means does not take."""
    check_range("num_init", num_init, 1, MAX_RESTARTS)
    check_range("max_iter", max_iter, 1)


def compress(block: Block, config: Fusion) -> Narrowed:
    """The block of `num_neurons` centroids with the cluster sizes as its `output_scale` (int32)."""
    clusters = cluster_neurons(block.mlp, block.num_neurons, config, block.generator)
    return Narrowed(fused_block(block.mlp, clusters), cluster_metrics(clusters))


def fused_block(mlp: MLP, clusters: KMeansResult) -> MLP:
    """`mlp` with centroids for neurons and P for its `output_scale`."""
    centroids = replace_neurons(mlp, clusters.centroids)
    return replace(centroids, output_scale=clusters.cluster_sizes.to(torch.int32))


def cluster_neurons(mlp: MLP, num_neurons: int, config: Fusion, generator: torch.Generator) -> KMeansResult:
    """k-means on the rows [gate | up | b1 | down] of all neurons; raw, unscaled rows as in the paper's code."""
    return kmeans(
        neurons(mlp),
        num_neurons,
        generator=generator,
        num_init=config.num_init,
        max_iter=config.max_iter,
        refine=config.refine,
    )


def cluster_metrics(clusters: KMeansResult) -> dict[str, float]:
    """Cluster-size diagnostics: real clusterings are skewed, and one giant cluster means a poor block."""
    sizes = clusters.cluster_sizes
    largest, singletons = int(sizes.max()), int((sizes == 1).sum())
    mean_size = int(sizes.sum()) / len(sizes)
    return {
        "inertia": clusters.inertia,
        "inertia_ratio": clusters.inertia_ratio,
        "largest_cluster": largest,
        "singletons": singletons,
        "degenerate": largest > 10 * mean_size and singletons > len(sizes) / 2,
        "num_iter": clusters.num_iter,
        "converged": clusters.converged,
    }
