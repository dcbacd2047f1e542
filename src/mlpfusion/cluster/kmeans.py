"""k-means for neurons: few points, many features, and a quarter as many clusters as points.

Greedy k-means++, then Lloyd, then single-point moves, all on one Gram matrix: after building the
matrix no step depends on the number of features.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlpfusion.checks import check_fields, num_not_finite
from mlpfusion.cluster.block import (
    Convergence,
    KMeansResult,
    RowOrder,
    centered_slabs,
    distances_to_centers,
    order_rows,
    summarize,
)
from mlpfusion.cluster.gram import GramSpace, InnerProducts, PointSpace
from mlpfusion.cluster.lloyd import lloyd
from mlpfusion.cluster.partition import Partition, fill_empty_clusters
from mlpfusion.cluster.refine import refine
from mlpfusion.cluster.seeding import distances_to_points, draw_uniforms, greedy_kmeans_plusplus

_Blocks: TypeAlias = Sequence[Float[Tensor, "neurons features"]] | Float[Tensor, "blocks neurons features"]


@dataclass(frozen=True)
class _Restart:
    """One restart of one block."""

    inertia: float
    labels: Int[Tensor, " neurons"]
    convergence: Convergence


@dataclass(frozen=True)
class _Settings:
    """Settings shared by all blocks, the arguments of `kmeans`."""

    num_clusters: int
    num_init: int
    num_candidates: int
    max_iter: int
    refine: bool
    tol: float
    max_gram_bytes: int


def kmeans(
    points: Float[Tensor, "neurons features"],
    num_clusters: int,
    *,
    generator: torch.Generator,
    num_init: int = 1,  # restarts gain 1 %, single-point moves 5 to 6 %
    num_candidates: int = 8,  # 8 to 512 end within 2 % of each other, before any moves
    max_iter: int = 300,  # scikit-learn's
    refine: bool = True,
    tol: float = 3e-5,  # not tuned
    init: Float[Tensor, "clusters features"] | None = None,
    max_gram_bytes: int = 2**32,  # a Gram matrix of 32,768 neurons in float32
) -> KMeansResult:
    """Clusters the rows of `points` by squared distance to the cluster means.

    Greedy k-means++ seeds with `num_candidates` draws a step. Lloyd follows, at most `max_iter`
    iterations, and with `refine` single-point moves until a round lowers the inertia by less than
    `tol` times the inertia. The best of `num_init` restarts is returned. With `init` and without
    `refine` this is plain Lloyd from the given centres, as in scikit-learn; `generator` is then
    unused. `generator` must be a CPU generator.

    Permuting the rows permutes the labels and changes nothing else. With at most `num_clusters`
    distinct rows the inertia is 0. Arithmetic is float32 (float64 for float64 points). A Gram
    matrix above `max_gram_bytes` is replaced by GEMMs.

    Raises ValueError if a number is out of range, `init` has another shape, or a value is not
    finite.

    >>> points = torch.tensor([[0.0], [10.0], [0.5], [9.5]])
    >>> kmeans(points, 2, generator=torch.Generator().manual_seed(0)).labels.tolist()
    [0, 1, 0, 1]
    """
    (result,) = kmeans_batched(
        points[None],
        num_clusters,
        generators=[generator],
        num_init=num_init,
        num_candidates=num_candidates,
        max_iter=max_iter,
        refine=refine,
        tol=tol,
        init=None if init is None else init[None],
        max_gram_bytes=max_gram_bytes,
    )
    return result


def kmeans_batched(
    points: _Blocks,
    num_clusters: int,
    *,
    generators: Sequence[torch.Generator],
    num_init: int = 1,
    num_candidates: int = 8,
    max_iter: int = 300,
    refine: bool = True,
    tol: float = 3e-5,
    init: Float[Tensor, "blocks clusters features"] | None = None,
    max_gram_bytes: int = 2**32,
) -> list[KMeansResult]:
    """Clusters each block by `kmeans`, with a generator for each.

    The result for a block does not depend on the other blocks. As many blocks are solved together
    as have Gram matrices that fit into `max_gram_bytes`. No points are kept meanwhile: `points` may
    be a sequence that makes a block whenever asked for one. All have one shape.

    >>> points = torch.tensor([[[0.0], [10.0], [0.5]], [[7.0], [0.0], [0.5]]])
    >>> generators = [torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)]
    >>> [r.labels.tolist() for r in kmeans_batched(points, 2, generators=generators)]
    [[0, 1, 0], [0, 1, 1]]
    """
    settings = _Settings(num_clusters, num_init, num_candidates, max_iter, refine, tol, max_gram_bytes)
    check_fields(settings)
    _check_settings(settings, len(points[0]))
    _check_tensors(points, init, settings, len(generators))
    size = max(1, max_gram_bytes // _gram_bytes(len(points[0]), _working_dtype(points[0])))
    results: list[KMeansResult] = []
    for start in range(0, len(points), size):
        results += _solve(points, range(start, min(start + size, len(points))), generators, init, settings)
    return results


def _check_settings(settings: _Settings, num_points: int) -> None:
    if not 1 <= settings.num_clusters <= num_points:
        raise ValueError(f"`num_clusters` must be between 1 and {num_points}, got {settings.num_clusters}")
    at_least_one = {
        "num_init": settings.num_init,
        "num_candidates": settings.num_candidates,
        "max_iter": settings.max_iter,
    }
    for name, value in at_least_one.items():
        if not value >= 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}")
    if not settings.tol >= 0:
        raise ValueError(f"`tol` must be at least 0, got {settings.tol}")


def _check_tensors(
    points: _Blocks, init: Float[Tensor, "blocks clusters features"] | None, settings: _Settings, num_generators: int
) -> None:
    if num_generators != len(points):
        raise ValueError(f"`generators` must hold one generator a block ({len(points)}), got {num_generators}")
    expected = (len(points), settings.num_clusters, points[0].shape[1])
    if init is not None and init.shape != expected:
        raise ValueError(f"`init` must have the shape {expected[1:]} a block, got {tuple(init.shape[1:])}")
    if init is not None:
        _check_finite("init", init)


def _check_finite(name: str, tensor: Float[Tensor, "*shape"]) -> None:
    bad = num_not_finite(tensor)
    if bad:
        raise ValueError(f"`{name}` must be finite, got {bad} entries that are not")


def _check_points(points: Float[Tensor, "neurons features"]) -> Float[Tensor, "neurons features"]:
    if not points.is_floating_point():
        raise ValueError(f"`points` must be floating-point numbers, got {points.dtype}")
    _check_finite("points", points)
    return points


def _gram_bytes(num_points: int, dtype: torch.dtype) -> int:
    return num_points**2 * dtype.itemsize


def _working_dtype(points: Float[Tensor, "neurons features"]) -> torch.dtype:
    return torch.promote_types(points.dtype, torch.float32)


@torch.no_grad()
def _solve(
    points: _Blocks,
    group: Sequence[int],
    generators: Sequence[torch.Generator],
    init: Float[Tensor, "blocks clusters features"] | None,
    settings: _Settings,
) -> list[KMeansResult]:
    """Solves the blocks of a group together. Points are looked at block by block."""
    orders = {i: order_rows(_check_points(points[i])) for i in group}
    few = [i for i in group if orders[i].num_distinct <= settings.num_clusters]
    restarts = {i: _distinct_rows(orders[i], settings.num_clusters) for i in few}
    others = {i: orders[i] for i in group if i not in restarts}
    if others:
        space = _inner_products(points, others, settings.max_gram_bytes)
        if init is None:
            shape = (settings.num_init, settings.num_clusters, settings.num_candidates)
            uniforms = draw_uniforms([generators[i] for i in others], shape)
            starts = (_seeded_distances(space, some) for some in uniforms)
        else:
            distances = [distances_to_centers(points[i], order, init[i]) for i, order in others.items()]
            starts = iter([torch.stack(distances)])
        restarts |= zip(others, _best_restarts(space, starts, settings), strict=True)
    ends = ((points[i], orders[i], restarts[i]) for i in group)
    return [summarize(block, o, r.labels, settings.num_clusters, r.convergence) for block, o, r in ends]


def _inner_products(points: _Blocks, orders: dict[int, RowOrder], max_gram_bytes: int) -> GramSpace | PointSpace:
    first = next(iter(orders))
    dtype = _working_dtype(points[first])
    fits = _gram_bytes(len(points[first]), dtype) <= max_gram_bytes
    slabs = (centered_slabs(points[i], order, dtype) for i, order in orders.items())
    return (GramSpace if fits else PointSpace).from_slabs(slabs)


def _distinct_rows(order: RowOrder, num_clusters: int) -> _Restart:
    """Gives every distinct row a cluster. Spare clusters split duplicates."""
    labels = fill_empty_clusters(order.groups, torch.zeros(len(order.groups), device=order.groups.device), num_clusters)
    return _Restart(0.0, labels, Convergence(num_iter=0, num_rounds=0, converged=True))


@torch.inference_mode()  # thousands of small operations take an eighth less time
def _best_restarts(
    space: InnerProducts, starts: Iterator[Float[Tensor, "blocks clusters neurons"]], settings: _Settings
) -> list[_Restart]:
    """Runs all restarts on the same inner products. Keeps the best of each block."""
    best: list[_Restart] = []
    for distances in starts:
        restarts = _restart(space, distances, settings)
        best = [min(pair, key=lambda restart: restart.inertia) for pair in zip(best or restarts, restarts, strict=True)]
    return best


def _seeded_distances(
    space: InnerProducts, uniforms: Float[Tensor, "blocks clusters candidates"]
) -> Float[Tensor, "blocks clusters neurons"]:
    return distances_to_points(space, greedy_kmeans_plusplus(space, uniforms))


def _assign(
    distances: Float[Tensor, "blocks clusters neurons"], squared_norms: Float[Tensor, "blocks neurons"]
) -> Int[Tensor, "blocks neurons"]:
    """Assigns every point to its nearest cluster, numbered through all blocks. None is empty."""
    num_blocks, num_clusters, _ = distances.shape
    offsets = torch.arange(num_blocks, device=distances.device)[:, None] * num_clusters
    nearest, labels = distances.min(1)
    farness = (nearest + squared_norms).flatten()
    return fill_empty_clusters((labels + offsets).flatten(), farness, num_clusters, num_blocks).view_as(labels)


def _restart(
    space: InnerProducts, distances: Float[Tensor, "blocks clusters neurons"], settings: _Settings
) -> list[_Restart]:
    """Runs Lloyd and the refinement from the nearest of the starting centres."""
    partition = Partition(space, _assign(distances, space.squared_norms), settings.num_clusters)
    num_iter, converged = lloyd(partition, settings.max_iter)
    rounds = torch.zeros_like(num_iter)
    if settings.refine:
        rounds, refined = refine(partition, settings.tol)
        converged &= refined
    ends = zip(num_iter.tolist(), rounds.tolist(), converged.tolist(), strict=True)
    outcomes = zip(partition.inertia().tolist(), partition.local_labels(), ends, strict=True)
    return [_Restart(inertia, labels, Convergence(*end)) for inertia, labels, end in outcomes]
