"""One block of points before and after clustering: canonical order, exact duplicates, exact means."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlpfusion.cluster.gram import add_to_segments

_STRIP_ROWS = 128


@dataclass(frozen=True)
class KMeansResult:
    """A clustering of the rows of one block.

    Clusters are ordered by their smallest member and none is empty. `centroids` are the means of the members, computed
    in float64 and rounded once to the points' dtype; `inertia` (sum of squared distances to the float64 means) and
    `total_inertia` (to the one mean of all points) are float64 numbers. `num_iter` counts the Lloyd iterations and
    `num_rounds` the rounds of single-point moves of the restart that won, and `converged` says whether both ended
    before their limits.
    """

    labels: Int[Tensor, " neurons"]
    centroids: Float[Tensor, "clusters features"]
    cluster_sizes: Int[Tensor, " clusters"]
    inertia: float
    total_inertia: float
    num_iter: int
    num_rounds: int
    converged: bool

    @property
    def inertia_ratio(self) -> float:
        """Part of the total inertia that is left, 0 (every point is its centroid) to 1 (one cluster)."""
        return self.inertia / self.total_inertia if self.total_inertia > 0 else 0.0

    @property
    def largest_cluster(self) -> int:
        """Size of the largest cluster, in points."""
        return int(self.cluster_sizes.max())

    @property
    def num_singletons(self) -> int:
        """How many clusters hold one point."""
        return int((self.cluster_sizes == 1).sum())


@dataclass(frozen=True)
class OrderedBlock:
    """The points of one block in an order that depends on their values alone, so that permuting them changes nothing.

    `order` leads from there to the caller's rows, `groups` numbers the distinct rows from 0.
    """

    points: Float[Tensor, "neurons features"]
    order: Int[Tensor, " neurons"]
    groups: Int[Tensor, " neurons"]

    @property
    def num_distinct(self) -> int:
        return int(self.groups[-1]) + 1

    def mean(self) -> Float[Tensor, " features"]:
        """Mean of all points, in float64."""
        sums = [strip.sum(0, dtype=torch.float64) for strip in self.points.split(_STRIP_ROWS)]
        return torch.stack(sums).sum(0) / len(self.points)

    def centered(self, dtype: torch.dtype) -> Float[Tensor, "neurons features"]:
        """The points around their mean, which keeps inner products small and differences of them exact."""
        mean = self.mean()
        return torch.cat([(strip.double() - mean).to(dtype) for strip in self.points.split(_STRIP_ROWS)])


def order_block(points: Float[Tensor, "neurons features"]) -> OrderedBlock:
    """Sorts the points by their projection on a fixed direction and numbers the distinct rows.

    Equal rows have equal projections and become neighbours. The direction is generic: rows that differ only in sign or
    by a permutation of features, and so have one norm, are told apart.
    """
    direction = torch.arange(1, points.shape[1] + 1, dtype=torch.float64, device=points.device).cos()
    keys = [(strip.double() * direction).sum(1) for strip in points.split(_STRIP_ROWS)]
    order = torch.cat(keys).argsort(stable=True)
    ordered = points[order]
    starts = torch.zeros_like(order)
    starts[1:] = (ordered[1:] != ordered[:-1]).any(1)
    return OrderedBlock(ordered, order, starts.cumsum(0))


def summarize(
    block: OrderedBlock, labels: Int[Tensor, " neurons"], num_clusters: int, run: tuple[int, int, bool]
) -> KMeansResult:
    """The result for labels given in the block's order; `run` is (num_iter, num_rounds, converged)."""
    sizes = torch.bincount(labels, minlength=num_clusters)
    means = torch.zeros(num_clusters, block.points.shape[1], dtype=torch.float64, device=labels.device)
    for points, segments in _strips(block.points, labels):
        add_to_segments(means, segments, points)
    means /= sizes[:, None]
    own_labels = torch.empty_like(labels)
    own_labels[block.order] = labels
    clusters = _by_smallest_member(own_labels, num_clusters)
    return KMeansResult(
        clusters.argsort()[own_labels],
        means[clusters].to(block.points.dtype),
        sizes[clusters].int(),
        _sum_of_squares(block.points, means, labels),
        _sum_of_squares(block.points, block.mean()[None], torch.zeros_like(labels)),
        *run,
    )


def _sum_of_squares(
    points: Float[Tensor, "neurons features"],
    centers: Float[Tensor, "clusters features"],
    labels: Int[Tensor, " neurons"],
) -> float:
    strips = _strips(points, labels)
    return sum(float((centers[own].sub_(strip)).square_().sum()) for strip, own in strips)


def _strips(
    points: Float[Tensor, "neurons features"], labels: Int[Tensor, " neurons"]
) -> Iterator[tuple[Float[Tensor, "strip features"], Int[Tensor, " strip"]]]:
    """The points in float64 with their labels, a few rows at a time: the memory of the whole is never needed."""
    pairs = zip(points.split(_STRIP_ROWS), labels.split(_STRIP_ROWS), strict=True)
    return ((strip.double(), own) for strip, own in pairs)


def _by_smallest_member(labels: Int[Tensor, " neurons"], num_clusters: int) -> Int[Tensor, " clusters"]:
    """The clusters, sorted by the index of their first point."""
    positions = torch.arange(len(labels), device=labels.device)
    first = positions.new_full((num_clusters,), len(labels)).scatter_reduce_(0, labels, positions, "amin")
    return first.argsort()
