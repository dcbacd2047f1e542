"""One block of points before and after clustering: canonical order, duplicates, exact means.

Passes over the points go strip by strip, so the caller's points are the only large tensor, beside
the centred points while inner products are taken.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlpfusion.cluster.gram import SLAB_WIDTH, segment_sums

# Entries converted to float64 at once: 2 MB stay in a cache, and the allocator keeps them at hand.
_STRIP_ENTRIES = 2**18


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
class RowOrder:
    """An order of the rows of one block by their values alone.

    Permuting the rows therefore changes nothing. Sorted point i is the caller's row `rows[i]`;
    `groups` numbers the distinct rows from 0, equal rows alike.
    """

    rows: Int[Tensor, " neurons"]
    groups: Int[Tensor, " neurons"]

    @property
    def num_distinct(self) -> int:
        return int(self.groups[-1]) + 1


def order_rows(points: Float[Tensor, "neurons features"]) -> RowOrder:
    """Sorts the rows by their projection on a fixed direction. Numbers the distinct ones.

    >>> order = order_rows(torch.tensor([[2.0], [1.0], [2.0]]))
    >>> order.num_distinct, order.groups.bincount().tolist()
    (2, [1, 2])
    """
    # Equal rows have equal projections and become neighbours. cos(1), cos(2), ... is a generic
    # direction: rows that differ only in sign or by a permutation of features, so that their norms
    # are equal, get other projections.
    direction = torch.arange(1, points.shape[1] + 1, dtype=torch.float64, device=points.device).cos()
    keys = [(strip.double() * direction).sum(1) for strip in points.split(_strip_rows(points))]
    keys, rows = torch.cat(keys).sort(stable=True)
    starts = torch.ones_like(rows)
    starts[0] = 0
    # rows are compared only where the projection does not tell them apart, hence hardly ever
    for alike in (~(keys[1:] > keys[:-1])).nonzero()[:, 0].split(_strip_rows(points)):
        starts[alike + 1] = (points[rows[alike + 1]] != points[rows[alike]]).any(1).long()
    return RowOrder(rows, starts.cumsum(0))


def centered_slabs(
    points: Float[Tensor, "neurons features"], order: RowOrder, dtype: torch.dtype
) -> Iterator[Float[Tensor, "neurons slab"]]:
    """Yields the sorted points without their mean, a few features at a time.

    Inner products of centred points stay small and their differences exact.

    >>> points = torch.tensor([[5.0], [1.0]])
    >>> [slab.tolist() for slab in centered_slabs(points, order_rows(points), torch.float32)]
    [[[-2.0], [2.0]]]
    """
    for slab in _sorted_slabs(points, order):
        yield slab.sub_(slab.sum(0) / len(slab)).to(dtype)


def distances_to_centers(
    points: Float[Tensor, "neurons features"], order: RowOrder, centers: Float[Tensor, "clusters features"]
) -> Float[Tensor, "clusters neurons"]:
    """Computes the squared distances of the sorted points, short of |x|^2.

    >>> points = torch.tensor([[5.0], [1.0]])
    >>> distances_to_centers(points, order_rows(points), torch.tensor([[4.0]])).tolist()
    [[5.0, -3.0]]
    """
    dtype = torch.promote_types(points.dtype, torch.float32)
    distances = torch.zeros(len(centers), len(points), dtype=dtype, device=points.device)
    for slab, center_slab in zip(_sorted_slabs(points, order), centers.split(SLAB_WIDTH, 1), strict=True):
        mean = slab.sum(0) / len(slab)
        near = (center_slab - mean).to(dtype)
        distances += near.square().sum(1)[:, None] - 2 * near @ slab.sub_(mean).to(dtype).T
    return distances


def summarize(
    points: Float[Tensor, "neurons features"],
    order: RowOrder,
    labels: Int[Tensor, " neurons"],
    num_clusters: int,
    convergence: Convergence,
) -> KMeansResult:
    """Builds the result from labels of the sorted points.

    >>> points = torch.tensor([[1.0], [5.0], [1.0]])
    >>> order = order_rows(points)
    >>> summarize(points, order, order.groups, 2, Convergence(0, 0, True)).centroids.tolist()
    [[1.0], [5.0]]
    """
    sizes = torch.bincount(labels, minlength=num_clusters)
    centroids, inertia, between = [], 0.0, 0.0
    for slab in _sorted_slabs(points, order):
        sums = segment_sums(slab, labels, num_clusters)
        mean = sums.sum(0) / len(points)
        means = sums.div_(sizes[:, None])
        centroids.append(means.to(points.dtype))
        inertia += float(slab.sub_(means.index_select(0, labels)).square_().sum())
        # total inertia = within clusters + between them
        between += float((means - mean).square_().sum(1).mul_(sizes).sum())
    row_labels = torch.empty_like(labels)
    row_labels[order.rows] = labels
    clusters = _by_smallest_member(row_labels, num_clusters)
    return KMeansResult(
        labels=clusters.argsort()[row_labels],
        centroids=torch.cat(centroids, 1).index_select(0, clusters),
        cluster_sizes=sizes[clusters].int(),
        inertia=inertia,
        total_inertia=inertia + between,
        num_iter=convergence.num_iter,
        num_rounds=convergence.num_rounds,
        converged=convergence.converged,
    )


def _sorted_slabs(
    points: Float[Tensor, "neurons features"], order: RowOrder
) -> Iterator[Float[Tensor, "neurons slab"]]:
    """Yields a few features of all points at a time, in float64."""
    return (slab.index_select(0, order.rows).double() for slab in points.split(SLAB_WIDTH, 1))


def _strip_rows(points: Float[Tensor, "neurons features"]) -> int:
    return max(1, _STRIP_ENTRIES // max(1, points.shape[1]))


def _by_smallest_member(labels: Int[Tensor, " neurons"], num_clusters: int) -> Int[Tensor, " clusters"]:
    """Sorts the clusters by the index of their first point."""
    positions = torch.arange(len(labels), device=labels.device)
    first = positions.new_full((num_clusters,), len(labels)).scatter_reduce_(0, labels, positions, "amin")
    return first.argsort()
