"""A clustering under change: labels, cluster sums, and all distances from points to centres."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mlpfusion.cluster.gram import InnerProducts, add_to_segments, segment_sums


class Partition:
    """Non-empty clusters of a batch of blocks; only `move` changes them.

    Points and clusters are numbered through all blocks: point i of block b is `b * neurons + i`,
    cluster j is `b * clusters + j`. With the cluster sums s_j and counts n_j,

        distances[j, b * neurons + i] = |x_i - s_j / n_j|^2
                                      = |x_i|^2 - 2 <x_i, s_j> / n_j + |s_j|^2 / n_j^2

    for point i and cluster j of block b. A move recomputes one row of the block's distances for
    each of the two clusters it touches.

    >>> from mlpfusion.cluster.gram import GramSpace
    >>> space = GramSpace.from_points([torch.tensor([[0.0], [1.0], [4.0]])])
    >>> Partition(space, torch.tensor([[0, 0, 1]]), 2).inertia().tolist()
    [0.5]
    """

    def __init__(self, space: InnerProducts, labels: Int[Tensor, "blocks neurons"], num_clusters: int) -> None:
        self.num_blocks, self.num_clusters = len(labels), num_clusters
        dtype, arange = space.rows.dtype, torch.arange(labels.numel(), device=labels.device)
        self.block_of_point = arange // labels.shape[1]
        self.labels = labels.flatten()
        self.counts = torch.bincount(self.labels, minlength=self.num_blocks * num_clusters).to(dtype)
        # A gain below 2 eps of the mean squared norm is a tie up to rounding. In 20 cases this kept
        # the labels of scikit-learn; four times as much already changes the labels of real layers.
        self.resolution = (space.squared_norms.mean(1) * 2 * torch.finfo(dtype).eps)[self.block_of_point]
        self._space, self._rows = space, space.rows.flatten(0, 1)
        self._sums = segment_sums(self._rows, self.labels, len(self.counts))
        self.distances = self._sums.new_empty(num_clusters, len(arange))
        self._refresh(torch.ones_like(self.counts, dtype=torch.bool))

    def move(self, points: Int[Tensor, " moved"], targets: Int[Tensor, " moved"]) -> None:
        """Moves each point into another cluster, at most once. No cluster may be emptied."""
        sources, rows = self.labels[points], self._rows.index_select(0, points)
        add_to_segments(self._sums, targets, rows)
        add_to_segments(self._sums, sources, rows.neg_())
        self.labels[points] = targets
        self.counts = torch.bincount(self.labels, minlength=len(self.counts)).to(rows.dtype)
        changed = torch.zeros_like(self.counts, dtype=torch.bool)
        changed[sources] = True
        changed[targets] = True
        self._refresh(changed)

    def local_labels(self) -> Int[Tensor, "blocks neurons"]:
        """Returns the labels, numbered from 0 in each block."""
        return self._local(self.labels).view(self.num_blocks, -1)

    def own(self, matrix: Float[Tensor, "clusters points"]) -> Float[Tensor, " points"]:
        """Picks the entry of every point for its own cluster, from a matrix like `distances`."""
        return matrix.gather(0, self._local(self.labels)[None])[0]

    def set_own(self, matrix: Float[Tensor, "clusters points"], value: float) -> None:
        """Overwrites the entries of all points for their own clusters."""
        matrix.scatter_(0, self._local(self.labels)[None], value)

    def best_clusters(
        self, matrix: Float[Tensor, "clusters points"], points: Int[Tensor, " chosen"]
    ) -> Int[Tensor, " chosen"]:
        """Returns the cluster with the smallest entry, for each of `points`."""
        # only for the few points that may move: torch's minimum with index is 20 times slower than
        # without
        best = matrix.index_select(1, points).min(0).indices
        return best + self.block_of_point[points] * self.num_clusters

    def inertia(self) -> Float[Tensor, " blocks"]:
        """Sums the distances of points to their own centres, a float64 number a block."""
        return self.own(self.distances).double().view(self.num_blocks, -1).sum(1)

    def _local(self, labels: Int[Tensor, " points"]) -> Int[Tensor, " points"]:
        return labels - self.block_of_point * self.num_clusters

    def _refresh(self, changed: Bool[Tensor, " clusters"]) -> None:
        norms = self._space.norms_of_sums(self._sums, self.labels)
        clusters = changed.nonzero()[:, 0]
        blocks, counts = clusters // self.num_clusters, self.counts[clusters]
        rows = self._space.with_sums(self._sums.index_select(0, clusters), blocks)
        # <x, s> becomes |x|^2 - 2 <x, s> / n + |s|^2 / n^2, in place
        rows = rows.mul_((-2 / counts)[:, None]).add_((norms[clusters] / counts.square())[:, None])
        rows.add_(self._space.squared_norms.index_select(0, blocks))
        self.distances.view(self.num_clusters, self.num_blocks, -1)[clusters % self.num_clusters, blocks] = rows


def fill_empty_clusters(
    labels: Int[Tensor, " points"], distances: Float[Tensor, " points"], num_clusters: int, num_blocks: int = 1
) -> Int[Tensor, " points"]:
    """Gives each empty cluster the point of its block farthest from its centre.

    `distances` are those of the points to their centres. No donor is emptied, and with at least as
    many points as clusters there are always enough donors. The input is not changed.

    >>> labels, distances = torch.tensor([0, 0, 0]), torch.tensor([1.0, 3.0, 2.0])
    >>> fill_empty_clusters(labels, distances, 2).tolist()
    [0, 1, 0]
    """
    counts = torch.bincount(labels, minlength=num_blocks * num_clusters)
    filled = labels.clone()
    size = len(labels) // num_blocks
    for block in (counts.view(num_blocks, -1) == 0).any(1).nonzero()[:, 0].tolist():
        empty = (counts[block * num_clusters : (block + 1) * num_clusters] == 0).nonzero()[:, 0] + block * num_clusters
        order = distances[block * size : (block + 1) * size].argsort(descending=True, stable=True) + block * size
        filled[order[_may_leave(labels[order])][: len(empty)]] = empty
    return filled


def _may_leave(labels: Int[Tensor, " neurons"]) -> Bool[Tensor, " neurons"]:
    """Returns False for the last point of every cluster, True for the others."""
    grouped = labels.argsort(stable=True)
    last = torch.ones_like(labels, dtype=torch.bool)
    last[:-1] = labels[grouped][1:] != labels[grouped][:-1]
    return torch.empty_like(last).index_put_((grouped,), ~last)
