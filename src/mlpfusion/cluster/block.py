"""One block of points before and after clustering: canonical order, duplicates, exact means."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlpfusion.cluster.gram import add_to_segments

# Rows converted to float64 at once, so that no float64 copy of the whole block is made. Not tuned.
_STRIP_ROWS = 128


@dataclass(frozen=True)
class Convergence:
    """How one restart ended."""

    num_iter: int
    num_rounds: int
    converged: bool


@dataclass(frozen=True)
class KMeansResult:
    """A clustering of the rows of one block.

    Clusters are ordered by their smallest member; none is empty. `centroids` are the means of the
    members, computed in float64 and rounded once to the points' dtype. `inertia` is the sum of
    squared distances to the float64 means, `total_inertia` that to the mean of all points.
    `num_iter` counts the Lloyd iterations and `num_rounds` the rounds of single-point moves of the
    best restart; `converged` is False if either reached its limit.
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
        """Share of the total inertia left: 0 if every point is a centroid, 1 for one cluster."""
        return self.inertia / self.total_inertia if self.total_inertia > 0 else 0.0

    @property
    def largest_cluster(self) -> int:
        """Number of points in the largest cluster."""
        return int(self.cluster_sizes.max())

    @property
    def num_singletons(self) -> int:
        """Number of clusters with one point."""
        return int((self.cluster_sizes == 1).sum())


@dataclass(frozen=True)
class OrderedBlock:
    """The points of one block, sorted by their values alone.

    Permuting the rows of the input therefore changes nothing. Sorted point i is the caller's row
    `order[i]`; `groups` numbers the distinct rows from 0, equal rows alike.
    """

    points: Float[Tensor, "neurons features"]
    order: Int[Tensor, " neurons"]
    groups: Int[Tensor, " neurons"]

    @property
    def num_distinct(self) -> int:
        return int(self.groups[-1]) + 1

    def mean(self) -> Float[Tensor, " features"]:
        """Computes the mean of all points in float64."""
        sums = [strip.sum(0, dtype=torch.float64) for strip in self.points.split(_STRIP_ROWS)]
        return torch.stack(sums).sum(0) / len(self.points)

    def centered(self, dtype: torch.dtype) -> Float[Tensor, "neurons features"]:
        """Subtracts the mean: inner products stay small and their differences exact."""
        mean = self.mean()
        return torch.cat([(strip.double() - mean).to(dtype) for strip in self.points.split(_STRIP_ROWS)])


def order_block(points: Float[Tensor, "neurons features"]) -> OrderedBlock:
    """Sorts the points by their projection on a fixed direction. Numbers the distinct rows.

    >>> block = order_block(torch.tensor([[2.0], [1.0], [2.0]]))
    >>> block.num_distinct, block.groups.bincount().tolist()
    (2, [1, 2])
    """
    # Equal rows have equal projections and become neighbours. cos(1), cos(2), ... is a generic
    # direction: rows that differ only in sign or by a permutation of features, so that their norms
    # are equal, get other projections.
    direction = torch.arange(1, points.shape[1] + 1, dtype=torch.float64, device=points.device).cos()
    keys = [(strip.double() * direction).sum(1) for strip in points.split(_STRIP_ROWS)]
    order = torch.cat(keys).argsort(stable=True)
    ordered = points[order]
    starts = torch.zeros_like(order)
    starts[1:] = (ordered[1:] != ordered[:-1]).any(1)
    return OrderedBlock(ordered, order, starts.cumsum(0))


def summarize(
    block: OrderedBlock, labels: Int[Tensor, " neurons"], num_clusters: int, convergence: Convergence
) -> KMeansResult:
    """Builds the result from labels in the order of the block.

    >>> block = order_block(torch.tensor([[1.0], [5.0], [1.0]]))
    >>> summarize(block, block.groups, 2, Convergence(0, 0, True)).centroids.tolist()
    [[1.0], [5.0]]
    """
    sizes = torch.bincount(labels, minlength=num_clusters)
    means = torch.zeros(num_clusters, block.points.shape[1], dtype=torch.float64, device=labels.device)
    for points, segments in _strips(block.points, labels):
        add_to_segments(means, segments, points)
    means /= sizes[:, None]
    row_labels = torch.empty_like(labels)
    row_labels[block.order] = labels
    clusters = _by_smallest_member(row_labels, num_clusters)
    return KMeansResult(
        labels=clusters.argsort()[row_labels],
        centroids=means[clusters].to(block.points.dtype),
        cluster_sizes=sizes[clusters].int(),
        inertia=_sum_of_squares(block.points, means, labels),
        total_inertia=_sum_of_squares(block.points, block.mean()[None], torch.zeros_like(labels)),
        num_iter=convergence.num_iter,
        num_rounds=convergence.num_rounds,
        converged=convergence.converged,
    )


def _sum_of_squares(
    points: Float[Tensor, "neurons features"],
    centers: Float[Tensor, "clusters features"],
    labels: Int[Tensor, " neurons"],
) -> float:
    strips = _strips(points, labels)
    return sum(float((centers[strip_labels].sub_(strip)).square_().sum()) for strip, strip_labels in strips)


def _strips(
    points: Float[Tensor, "neurons features"], labels: Int[Tensor, " neurons"]
) -> Iterator[tuple[Float[Tensor, "strip features"], Int[Tensor, " strip"]]]:
    """Yields a few rows at a time, in float64, with their labels."""
    pairs = zip(points.split(_STRIP_ROWS), labels.split(_STRIP_ROWS), strict=True)
    return ((strip.double(), strip_labels) for strip, strip_labels in pairs)


def _by_smallest_member(labels: Int[Tensor, " neurons"], num_clusters: int) -> Int[Tensor, " clusters"]:
    """Sorts the clusters by the index of their first point."""
    positions = torch.arange(len(labels), device=labels.device)
    first = positions.new_full((num_clusters,), len(labels)).scatter_reduce_(0, labels, positions, "amin")
    return first.argsort()
