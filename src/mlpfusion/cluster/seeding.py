"""Greedy k-means++ (Arthur and Vassilvitskii 2007, with several candidates a step) on inner products alone."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlpfusion.cluster.gram import InnerProducts

_UNITS = 2**40


def draw_uniforms(
    generators: Sequence[torch.Generator], shape: tuple[int, int, int]
) -> Float[Tensor, "restarts blocks clusters candidates"]:
    """All random numbers of the restarts, float64 in [0, 1), drawn on the CPU from each block's own generator.

    `shape` is (restarts, clusters, candidates).
    """
    return torch.stack([torch.rand(shape, generator=generator, dtype=torch.float64) for generator in generators], 1)


def greedy_kmeans_plusplus(
    space: InnerProducts, uniforms: Float[Tensor, "blocks clusters candidates"]
) -> Int[Tensor, "blocks clusters"]:
    """Indices of the points that become starting centres, one column a step.

    Each step draws its candidates with probability proportional to the squared distance to the nearest centre so far
    and keeps the one that leaves the smallest sum of these distances. The first centre is uniform. Centres are distinct
    points as long as some point is not at distance zero from all centres.
    """
    uniforms = uniforms.to(space.rows.device)
    blocks = torch.arange(len(uniforms), device=uniforms.device)
    num_points = space.squared_norms.shape[1]
    chosen = (uniforms[:, 0, 0] * num_points).long()
    closest = distances_to_points(space, chosen[:, None])[:, 0]
    centers = [chosen]
    for step in range(1, uniforms.shape[1]):
        closest[blocks, chosen] = 0
        candidates = _sample(closest, uniforms[:, step])
        distances = torch.minimum(distances_to_points(space, candidates), closest[:, None])
        best = distances.sum(-1, dtype=torch.float64).argmin(-1)
        chosen, closest = candidates[blocks, best], distances[blocks, best]
        centers.append(chosen)
    return torch.stack(centers, 1)


def distances_to_points(
    space: InnerProducts, indices: Int[Tensor, "blocks chosen"]
) -> Float[Tensor, "blocks chosen neurons"]:
    """Squared distances of all points to the points at `indices`."""
    norms = space.squared_norms
    distances = space.with_points(indices).mul(-2).add_(norms[:, None])
    return distances.add_(norms.gather(1, indices)[..., None]).clamp_(min=0)


def _sample(
    weights: Float[Tensor, "blocks neurons"], uniforms: Float[Tensor, "blocks candidates"]
) -> Int[Tensor, "blocks candidates"]:
    """Inverse of the cumulated weights; never a point of weight zero unless all are.

    Weights are counted in units of 2^-40 of the largest: a GPU adds floats along a row in no fixed order, integers give
    the same sums in any.
    """
    units = _UNITS / weights.amax(-1, keepdim=True).double().clamp_(min=torch.finfo(torch.float64).tiny * _UNITS)
    cumulated = (weights * units).long().cumsum(-1)
    found = torch.searchsorted(cumulated, (uniforms * cumulated[:, -1:]).long(), right=True)
    return found.clamp_(max=weights.shape[1] - 1)
