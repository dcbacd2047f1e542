"""Inner products of the points of a block: from the Gram matrix, or from the points.

Lloyd, k-means++ and single-point moves need nothing but inner products. With n / 4 clusters,
building the Gram matrix once (2 n^2 d operations, half by symmetry) costs about as much as one or
two Lloyd iterations by GEMM; afterwards no step depends on the number of features d.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Strips of columns of the Gram matrix: 8 leave 9/16 of the full product's work, in GEMMs that stay
# large. Not tuned.
_SYMMETRIC_PARTS = 8

# Features taken at once. All points of a slab stay in a cache, and of a block only a slab is ever
# copied. MKL sums over 192 features at a time on AVX2, so there the result is that of one GEMM.
SLAB_WIDTH = 192


@runtime_checkable
class InnerProducts(Protocol):
    """Inner products of the centred points of a batch of blocks, for k-means.

    A cluster sum adds up `rows`: rows of the Gram matrix, or points. Clusters are numbered through
    all blocks (cluster j of block b is `b * clusters + j`), and so are points in `labels`.
    """

    @property
    def rows(self) -> Float[Tensor, "blocks neurons width"]: ...

    @property
    def squared_norms(self) -> Float[Tensor, "blocks neurons"]: ...

    def with_points(self, indices: Int[Tensor, "blocks chosen"]) -> Float[Tensor, "blocks chosen neurons"]:
        """Inner products of every point with the points of the same block at `indices`."""
        ...

    def with_sums(
        self, sums: Float[Tensor, "chosen width"], blocks: Int[Tensor, " chosen"]
    ) -> Float[Tensor, "chosen neurons"]:
        """Inner products of cluster sums with every point of their block; `blocks` ascend."""
        ...

    def norms_of_sums(
        self, sums: Float[Tensor, "clusters width"], labels: Int[Tensor, " points"]
    ) -> Float[Tensor, " clusters"]:
        """Squared norms of the cluster sums of all blocks."""
        ...


@dataclass(frozen=True)
class GramSpace:
    """Blocks stored as Gram matrices X X^T: an inner product is a lookup.

    >>> points = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    >>> GramSpace.from_points([points]).with_points(torch.tensor([[1]])).tolist()
    [[[3.0, 25.0]]]
    """

    rows: Float[Tensor, "blocks neurons neurons"]
    squared_norms: Float[Tensor, "blocks neurons"]

    @classmethod
    def from_points(cls, points: Iterable[Float[Tensor, "neurons features"]]) -> "GramSpace":
        """Computes the Gram matrices of blocks held in memory."""
        return cls.from_slabs([block] for block in points)

    @classmethod
    def from_slabs(cls, blocks: Iterable[Iterable[Float[Tensor, "neurons slab"]]]) -> "GramSpace":
        """Computes the Gram matrices of blocks that come a few features at a time.

        The rounding of a block does not depend on the other blocks.
        """
        rows = _stacked([gram_of_slabs(slabs) for slabs in blocks])
        return cls(rows, rows.diagonal(dim1=1, dim2=2).contiguous())

    def with_points(self, indices: Int[Tensor, "blocks chosen"]) -> Float[Tensor, "blocks chosen neurons"]:
        size = self.rows.shape[1]
        offsets = torch.arange(len(indices), device=indices.device)[:, None] * size
        rows = self.rows.flatten(0, 1).index_select(0, (indices + offsets).flatten())
        return rows.view(*indices.shape, size)

    def with_sums(
        self, sums: Float[Tensor, "chosen width"], blocks: Int[Tensor, " chosen"]
    ) -> Float[Tensor, "chosen neurons"]:
        return sums

    def norms_of_sums(
        self, sums: Float[Tensor, "clusters width"], labels: Int[Tensor, " points"]
    ) -> Float[Tensor, " clusters"]:
        columns = torch.arange(self.rows.shape[1], device=sums.device).repeat(len(self.rows))
        # |s_j|^2 is the sum of <s_j, x_i> over the members i, entries of `sums`, added in float64
        products = sums[labels, columns].double()
        return segment_sums(products, labels, len(sums)).to(sums.dtype)


@dataclass(frozen=True)
class PointSpace:
    """Blocks stored as points: an inner product is a GEMM, no Gram matrix is built.

    >>> points = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    >>> PointSpace.from_points([points]).with_points(torch.tensor([[1]])).tolist()
    [[[3.0, 25.0]]]
    """

    rows: Float[Tensor, "blocks neurons features"]
    squared_norms: Float[Tensor, "blocks neurons"]

    @classmethod
    def from_points(cls, points: Iterable[Float[Tensor, "neurons features"]]) -> "PointSpace":
        return cls.from_slabs([block] for block in points)

    @classmethod
    def from_slabs(cls, blocks: Iterable[Iterable[Float[Tensor, "neurons slab"]]]) -> "PointSpace":
        rows = _stacked([torch.cat(list(slabs), 1) for slabs in blocks])
        return cls(rows, rows.square().sum(-1))

    def with_points(self, indices: Int[Tensor, "blocks chosen"]) -> Float[Tensor, "blocks chosen neurons"]:
        return torch.stack([block[points] @ block.T for block, points in zip(self.rows, indices, strict=True)])

    def with_sums(
        self, sums: Float[Tensor, "chosen width"], blocks: Int[Tensor, " chosen"]
    ) -> Float[Tensor, "chosen neurons"]:
        sizes = torch.bincount(blocks, minlength=len(self.rows)).tolist()
        return torch.cat([part @ block.T for part, block in zip(sums.split(sizes), self.rows, strict=True)])

    def norms_of_sums(
        self, sums: Float[Tensor, "clusters width"], labels: Int[Tensor, " points"]
    ) -> Float[Tensor, " clusters"]:
        return sums.square().sum(-1)


def _stacked(blocks: Sequence[Float[Tensor, "neurons width"]]) -> Float[Tensor, "blocks neurons width"]:
    return blocks[0][None] if len(blocks) == 1 else torch.stack(list(blocks))


def gram_matrix(points: Float[Tensor, "neurons features"]) -> Float[Tensor, "neurons neurons"]:
    """Computes X X^T: the lower part by GEMMs over strips, the upper part by copying.

    >>> gram_matrix(torch.tensor([[1.0, 0.0], [3.0, 4.0]])).tolist()
    [[1.0, 3.0], [3.0, 25.0]]
    """
    return gram_of_slabs([points])


def gram_of_slabs(slabs: Iterable[Float[Tensor, "neurons slab"]]) -> Float[Tensor, "neurons neurons"]:
    """Computes X X^T from slabs of the columns of X, each needed only once.

    >>> gram_of_slabs([torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [4.0]])]).tolist()
    [[1.0, 3.0], [3.0, 25.0]]
    """
    remaining = iter(slabs)
    first = next(remaining)
    size = len(first)
    gram = first.new_zeros(size, size)
    step = -(-size // _SYMMETRIC_PARTS)
    strips = [slice(start, start + step) for start in range(0, size, step)]
    for slab in chain([first], remaining):
        for strip in strips:
            gram[strip.start :, strip].addmm_(slab[strip.start :], slab[strip].T)
    for strip in strips:
        gram[strip, strip.stop :] = gram[strip.stop :, strip].T
    return gram


def segment_sums(
    values: Float[Tensor, "points *width"], segments: Int[Tensor, " points"], num_segments: int
) -> Float[Tensor, "segments *width"]:
    """Sums the values of each segment, in the order of the points.

    >>> segment_sums(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 1, 0]), 2).tolist()
    [5.0, 2.0]
    """
    return add_to_segments(values.new_zeros(num_segments, *values.shape[1:]), segments, values)


def add_to_segments(
    sums: Float[Tensor, "segments *width"], segments: Int[Tensor, " points"], values: Float[Tensor, "points *width"]
) -> Float[Tensor, "segments *width"]:
    """Adds each value to its segment of `sums`, in place. Returns `sums`.

    The order of the additions is fixed, so results repeat bit by bit.

    >>> add_to_segments(torch.ones(2), torch.tensor([1, 1]), torch.tensor([2.0, 4.0])).tolist()
    [1.0, 7.0]
    """
    # On a GPU `index_add_` adds by atomics, in any order; the accumulating `index_put_` sorts
    # first. On a CPU it is the other way round, and `index_put_` is four times slower.
    if sums.is_cuda:
        return sums.index_put_((segments,), values, accumulate=True)
    return sums.index_add_(0, segments, values)
