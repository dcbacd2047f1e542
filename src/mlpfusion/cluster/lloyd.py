"""Lloyd's algorithm (1982) on a partition with all distances."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mlpfusion.cluster.partition import Partition, fill_empty_clusters


def lloyd(partition: Partition, max_iter: int) -> tuple[Int[Tensor, " blocks"], Bool[Tensor, " blocks"]]:
    """Moves all points to their nearest centres until none moves. Changes `partition`.

    Returns the number of iterations and the convergence of each block. A point stays if its own
    centre is among the nearest. A block has also converged when its inertia no longer falls. An
    empty cluster takes the point farthest from its centre.

    >>> from mlpfusion.cluster.gram import GramSpace
    >>> space = GramSpace.from_points([torch.tensor([[0.0], [1.0], [9.0]])])
    >>> lloyd(partition := Partition(space, torch.tensor([[0, 1, 1]]), 2), max_iter=10)[1].tolist()
    [True]
    >>> partition.labels.tolist()
    [0, 0, 1]
    """
    active = torch.ones(partition.num_blocks, dtype=torch.bool, device=partition.labels.device)
    num_iter = torch.zeros_like(active, dtype=torch.int64)
    inertia = partition.inertia()
    for _ in range(max_iter):
        num_iter += active
        labels = _reassign(partition, active)
        moved = (labels != partition.labels).nonzero()[:, 0]
        partition.move(moved, labels[moved])
        before, inertia = inertia, partition.inertia()
        has_moved = torch.zeros_like(active)
        has_moved[partition.block_of_point[moved]] = True
        active &= has_moved & (inertia < before)
        if not active.any():
            break
    return num_iter, ~active


def _reassign(partition: Partition, active: Bool[Tensor, " blocks"]) -> Int[Tensor, " points"]:
    """Returns the labels after one assignment step of the active blocks."""
    nearest = partition.distances.amin(0)
    gains = partition.own(partition.distances) - nearest
    # a gain within rounding is a tie, and a tied point stays: otherwise points could move back and
    # forth for ever
    movers = ((gains > partition.resolution) & active[partition.block_of_point]).nonzero()[:, 0]
    labels = partition.labels.clone()
    labels[movers] = partition.best_clusters(partition.distances, movers)
    return fill_empty_clusters(labels, nearest, partition.num_clusters, partition.num_blocks)
