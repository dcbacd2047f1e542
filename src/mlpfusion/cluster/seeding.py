"""Greedy k-means++ on inner products (Arthur and Vassilvitskii 2007, several candidates a step)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlpfusion.cluster.gram import InnerProducts

# Weights are counted in units of 2^-40 of the largest: a GPU adds floats along a row in no fixed
# order, integers give the same sums in any. 2^40 times 2^22 points still fit into 63 bits.
_UNITS = 2**40


def draw_uniforms(
    generators: Sequence[torch.Generator], shape: tuple[int, int, int]
) -> Float[Tensor, "restarts blocks clusters candidates"]:
    """Draws all random numbers of the restarts, float64 in [0, 1), on the CPU.

    `shape` is (restarts, clusters, candidates). Each block draws from its own generator.

    >>> draw_uniforms([torch.Generator(), torch.Generator()], (1, 3, 8)).shape
    torch.Size([1, 2, 3, 8])
    """
    return torch.stack([torch.rand(shape, generator=generator, dtype=torch.float64) for generator in generators], 1)


def greedy_kmeans_plusplus(
    space: InnerProducts, uniforms: Float[Tensor, "blocks clusters candidates"]
) -> Int[Tensor, "blocks clusters"]:
    """Returns the indices of the starting centres.

    Each step draws candidates with probability proportional to the squared distance to the nearest
    centre so far, and keeps the candidate with the smallest sum of these distances. The first
    centre is uniform. Centres are distinct points as long as some point is not at distance zero
    from all centres.

    >>> from mlpfusion.cluster.gram import GramSpace
    >>> space = GramSpace.from_points([torch.tensor([[0.0], [0.1], [9.0]])])
    >>> greedy_kmeans_plusplus(space, torch.full((1, 2, 4), 0.5)).tolist()
    [[1, 2]]
    """
    uniforms = uniforms.to(space.rows.device)
    blocks = torch.arange(len(uniforms), device=uniforms.device)
    num_points = space.squared_norms.shape[1]
    center = (uniforms[:, 0, 0] * num_points).long()
    closest = distances_to_points(space, center[:, None])[:, 0]
    centers = [center]
    for step in range(1, uniforms.shape[1]):
        closest[blocks, center] = 0  # exactly, so that rounding cannot draw a centre twice
        candidates = _sample(closest, uniforms[:, step])
        distances = torch.minimum(distances_to_points(space, candidates), closest[:, None])
        best = distances.sum(-1, dtype=torch.float64).argmin(-1)
        center, closest = candidates[blocks, best], distances[blocks, best]
        centers.append(center)
    return torch.stack(centers, 1)


def distances_to_points(
    space: InnerProducts, indices: Int[Tensor, "blocks chosen"]
) -> Float[Tensor, "blocks chosen neurons"]:
    """Computes the squared distances of all points to the points at `indices`.

    >>> from mlpfusion.cluster.gram import GramSpace
    >>> space = GramSpace.from_points([torch.tensor([[0.0], [1.0], [3.0]])])
    >>> distances_to_points(space, torch.tensor([[0]])).tolist()
    [[[0.0, 1.0, 9.0]]]
    """
    norms = space.squared_norms
    distances = space.with_points(indices).mul(-2).add_(norms[:, None])
    return distances.add_(norms.gather(1, indices)[..., None]).clamp_(min=0)


def _sample(
    weights: Float[Tensor, "blocks neurons"], uniforms: Float[Tensor, "blocks candidates"]
) -> Int[Tensor, "blocks candidates"]:
    """Samples points by the inverse of the cumulative weights.

    A point of weight zero is never drawn, unless all weights are zero.
    """
    units = _UNITS / weights.amax(-1, keepdim=True).double().clamp_(min=torch.finfo(torch.float64).tiny * _UNITS)
    cumulative = (weights * units).long().cumsum(-1)
    points = torch.searchsorted(cumulative, (uniforms * cumulative[:, -1:]).long(), right=True)
    return points.clamp_(max=weights.shape[1] - 1)
