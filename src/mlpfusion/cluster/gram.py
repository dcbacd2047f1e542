"""Inner products of the points of a block: from their Gram matrix, or from the points themselves.

Lloyd, k-means++ and single-point moves need nothing but inner products. With as many clusters as a quarter of the
points, building the Gram matrix once (2 n^2 d operations, half of that by symmetry) costs about as much as one or two
Lloyd iterations by GEMM, and afterwards nothing depends on the number of features any more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

_SYMMETRIC_PARTS = 8


@runtime_checkable
class InnerProducts(Protocol):
    """What k-means asks of a batch of blocks of centred points.

    `rows` is what is summed over a cluster: rows of the Gram matrix, or the points. Clusters are numbered through all
    blocks (cluster j of block b is `b * clusters + j`), and so are points in `labels`.
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
        """Inner products of every point with cluster sums (added `rows`), each of the block it names; ascending."""
        ...

    def norms_of_sums(
        self, sums: Float[Tensor, "clusters width"], labels: Int[Tensor, " points"]
    ) -> Float[Tensor, " clusters"]:
        """Squared norms of the cluster sums of all blocks."""
        ...


@dataclass(frozen=True)
class GramSpace:
    """Blocks of points known by their Gram matrices X X^T; a row of one costs no arithmetic."""

    rows: Float[Tensor, "blocks neurons neurons"]
    squared_norms: Float[Tensor, "blocks neurons"]

    @classmethod
    def from_points(cls, points: Sequence[Float[Tensor, "neurons features"]]) -> "GramSpace":
        """The Gram matrices, one GEMM a block, so that a block's rounding does not depend on its companions."""
        rows = torch.stack([gram_matrix(block) for block in points])
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
        own = sums[labels, columns].double()
        return segment_sums(own, labels, len(sums)).to(sums.dtype)


@dataclass(frozen=True)
class PointSpace:
    """Blocks of points kept as they are: every inner product is a GEMM, no Gram matrix is stored."""

    rows: Float[Tensor, "blocks neurons features"]
    squared_norms: Float[Tensor, "blocks neurons"]

    @classmethod
    def from_points(cls, points: Sequence[Float[Tensor, "neurons features"]]) -> "PointSpace":
        rows = torch.stack(list(points))
        return cls(rows, rows.square().sum(-1))

    def with_points(self, indices: Int[Tensor, "blocks chosen"]) -> Float[Tensor, "blocks chosen neurons"]:
        return torch.stack([block[chosen] @ block.T for block, chosen in zip(self.rows, indices, strict=True)])

    def with_sums(
        self, sums: Float[Tensor, "chosen width"], blocks: Int[Tensor, " chosen"]
    ) -> Float[Tensor, "chosen neurons"]:
        sizes = torch.bincount(blocks, minlength=len(self.rows)).tolist()
        return torch.cat([part @ block.T for part, block in zip(sums.split(sizes), self.rows, strict=True)])

    def norms_of_sums(
        self, sums: Float[Tensor, "clusters width"], labels: Int[Tensor, " points"]
    ) -> Float[Tensor, " clusters"]:
        return sums.square().sum(-1)


def gram_matrix(points: Float[Tensor, "neurons features"]) -> Float[Tensor, "neurons neurons"]:
    """X X^T: the lower part by GEMMs over strips of columns, the upper part copied."""
    size = len(points)
    gram = points.new_empty(size, size)
    step = -(-size // _SYMMETRIC_PARTS)
    for start in range(0, size, step):
        stop = min(start + step, size)
        gram[start:, start:stop] = points[start:] @ points[start:stop].T
        gram[start:stop, stop:] = gram[stop:, start:stop].T
    return gram


def segment_sums(
    values: Float[Tensor, "points *width"], segments: Int[Tensor, " points"], num_segments: int
) -> Float[Tensor, "segments *width"]:
    """The sums of the values that share a segment, always added in the order of the points."""
    return add_to_segments(values.new_zeros(num_segments, *values.shape[1:]), segments, values)


def add_to_segments(
    sums: Float[Tensor, "segments *width"], segments: Int[Tensor, " points"], values: Float[Tensor, "points *width"]
) -> Float[Tensor, "segments *width"]:
    """Adds each value to its segment of `sums`, in place, and returns `sums`.

    On a GPU `index_add_` adds by atomics, in any order; the accumulating `index_put_` sorts first and is repeatable.
    On a CPU it is the other way round (and four times slower).
    """
    if sums.is_cuda:
        return sums.index_put_((segments,), values, accumulate=True)
    return sums.index_add_(0, segments, values)
