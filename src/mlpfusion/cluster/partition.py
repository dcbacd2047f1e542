"""A clustering that is being changed: labels, cluster sums, and the distance of every point to every centre."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mlpfusion.cluster.gram import InnerProducts, add_to_segments, segment_sums


class Partition:
    """Non-empty clusters of a batch of blocks; `move` is the only thing that changes it.

    Points and clusters are numbered through all blocks: point i of block b is `b * neurons + i`, cluster j is
    `b * clusters + j`. `distances[j, b * neurons + i]` is the squared distance of point i of block b to centre j of its
    block, |x_i - c_j|^2 = |x_i|^2 - 2 <x_i, s_j> / n_j + |s_j|^2 / n_j^2 with the cluster sum s_j. A move costs one row
    of the block's distances for each of the two clusters it touches.
    """

    def __init__(self, space: InnerProducts, labels: Int[Tensor, "blocks neurons"], num_clusters: int) -> None:
        self.num_blocks, self.num_clusters = len(labels), num_clusters
        dtype, arange = space.rows.dtype, torch.arange(labels.numel(), device=labels.device)
        self.block_of_point = arange // labels.shape[1]
        self.labels = labels.flatten()
        self.counts = torch.bincount(self.labels, minlength=self.num_blocks * num_clusters).to(dtype)
        # A gain below this is a tie up to rounding. Four times as much already changes the labels of real layers.
        self.resolution = (space.squared_norms.mean(1) * 2 * torch.finfo(dtype).eps)[self.block_of_point]
        self._space, self._rows = space, space.rows.flatten(0, 1)
        self._sums = segment_sums(self._rows, self.labels, len(self.counts))
        self.distances = self._sums.new_empty(num_clusters, len(arange))
        self._refresh(torch.ones_like(self.counts, dtype=torch.bool))

    def move(self, points: Int[Tensor, " moved"], targets: Int[Tensor, " moved"]) -> None:
        """Puts each point (at most once) into its target cluster, which is another one; no cluster may be emptied."""
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
        """The labels, numbered from 0 in each block."""
        return self._local(self.labels).view(self.num_blocks, -1)

    def own(self, matrix: Float[Tensor, "clusters points"]) -> Float[Tensor, " points"]:
        """The entry of every point for its own cluster, in a matrix laid out like `distances`."""
        return matrix.gather(0, self._local(self.labels)[None])[0]

    def set_own(self, matrix: Float[Tensor, "clusters points"], value: float) -> None:
        """Overwrites these entries."""
        matrix.scatter_(0, self._local(self.labels)[None], value)

    def best_clusters(
        self, matrix: Float[Tensor, "clusters points"], points: Int[Tensor, " chosen"]
    ) -> Int[Tensor, " chosen"]:
        """The cluster with the smallest entry for each chosen point.

        Asked only for the few points that may move: torch's minimum with index is 20 times slower than without.
        """
        best = matrix.index_select(1, points).min(0).indices
        return best + self.block_of_point[points] * self.num_clusters

    def inertia(self) -> Float[Tensor, " blocks"]:
        """Sum of the own distances of each block, in float64."""
        return self.own(self.distances).double().view(self.num_blocks, -1).sum(1)

    def _local(self, labels: Int[Tensor, " points"]) -> Int[Tensor, " points"]:
        return labels - self.block_of_point * self.num_clusters

    def _refresh(self, changed: Bool[Tensor, " clusters"]) -> None:
        norms = self._space.norms_of_sums(self._sums, self.labels)
        clusters = changed.nonzero()[:, 0]
        blocks, counts = clusters // self.num_clusters, self.counts[clusters]
        rows = self._space.with_sums(self._sums.index_select(0, clusters), blocks)
        rows = rows.mul_((-2 / counts)[:, None]).add_((norms[clusters] / counts.square())[:, None])
        rows.add_(self._space.squared_norms.index_select(0, blocks))
        self.distances.view(self.num_clusters, self.num_blocks, -1)[clusters % self.num_clusters, blocks] = rows


def fill_empty_clusters(
    labels: Int[Tensor, " points"], distances: Float[Tensor, " points"], num_clusters: int, num_blocks: int = 1
) -> Int[Tensor, " points"]:
    """The labels with each empty cluster given the point of its block that is farthest from its centre.

    A point may go only while another one stays in its cluster, so that no donor is emptied; with at least as many
    points as clusters there are always enough. The input is left unchanged.
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
    """False for the last point of every cluster, true for the others."""
    grouped = labels.argsort(stable=True)
    last = torch.ones_like(labels, dtype=torch.bool)
    last[:-1] = labels[grouped][1:] != labels[grouped][:-1]
    return torch.empty_like(last).index_put_((grouped,), ~last)
