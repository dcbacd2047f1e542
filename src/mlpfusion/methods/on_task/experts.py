"""Experts of equal size by balanced k-means (Zhang et al., MoEfication, Findings of ACL 2022)."""

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mlpfusion.cluster import kmeans


def balanced_clusters(
    points: Float[Tensor, "neurons features"],
    num_clusters: int,
    generator: torch.Generator,
    max_iter: int = 20,  # not tuned
) -> tuple[Int[Tensor, " neurons"], Float[Tensor, "clusters features"]]:
    """Clusters the rows into `num_clusters` clusters of one size. Returns labels and means.

    `num_clusters` must divide the number of rows. Starts from plain k-means. Each iteration assigns
    the rows with the smallest sum of squared distances among all balanced assignments, until the
    labels stay or `max_iter` is reached. In float64.

    >>> rows = torch.tensor([[0.0], [0.1], [0.2], [9.0]])
    >>> labels, means = balanced_clusters(rows, 2, torch.Generator().manual_seed(0))
    >>> labels.bincount().tolist()
    [2, 2]
    """
    size = len(points) // num_clusters
    assert size * num_clusters == len(points)
    rows = points.double().cpu()
    centres = _means(rows, kmeans(rows, num_clusters, generator=generator).labels.cpu(), num_clusters)
    labels = torch.full((len(rows),), -1)
    for _ in range(max_iter):
        costs = torch.cdist(rows, centres).square().repeat_interleave(size, dim=1)  # a column for each place
        assigned = torch.from_numpy(linear_sum_assignment(costs.numpy())[1]) // size
        if torch.equal(assigned, labels):
            break
        labels = assigned
        centres = _means(rows, labels, num_clusters)
    return labels.to(points.device), centres.to(points)


def _means(rows: Tensor, labels: Tensor, num_clusters: int) -> Tensor:
    """Mean of every cluster, 0 for an empty one."""
    sums = rows.new_zeros(num_clusters, rows.shape[1]).index_add_(0, labels, rows)
    return sums / labels.bincount(minlength=num_clusters).clamp_min(1)[:, None]
