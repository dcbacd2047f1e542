"""Neurons into experts of one size: balanced k-means (Zhang et al., MoEfication, Findings of ACL 2022)."""

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mlpfusion.cluster import kmeans


def balanced_clusters(
    points: Float[Tensor, "neurons features"], num_clusters: int, generator: torch.Generator, max_iter: int = 20
) -> tuple[Int[Tensor, " neurons"], Float[Tensor, "clusters features"]]:
    """Labels of clusters of exactly one size, and their means; the number of clusters must divide that of the rows.

    Lloyd from the means of plain k-means: in each iteration the assignment with the smallest sum of squared distances
    among those that fill every cluster alike, until it stays or after `max_iter`. In float64.
    """
    size = len(points) // num_clusters
    assert size * num_clusters == len(points)
    rows = points.double().cpu()
    centres = _means(rows, kmeans(rows, num_clusters, generator=generator).labels.cpu(), num_clusters)
    labels = torch.full((len(rows),), -1)
    for _ in range(max_iter):
        costs = torch.cdist(rows, centres).square().repeat_interleave(size, dim=1)  # one column a place
        found = torch.from_numpy(linear_sum_assignment(costs.numpy())[1]) // size
        if torch.equal(found, labels):
            break
        labels = found
        centres = _means(rows, labels, num_clusters)
    return labels.to(points.device), centres.to(points)


def _means(rows: Tensor, labels: Tensor, num_clusters: int) -> Tensor:
    """The mean of every cluster, 0 where it is empty."""
    sums = rows.new_zeros(num_clusters, rows.shape[1]).index_add_(0, labels, rows)
    return sums / labels.bincount(minlength=num_clusters).clamp_min(1)[:, None]
