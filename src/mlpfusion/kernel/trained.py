"""What trains in a block: its matrices, two factors of each, or the entries of each that no mask holds at zero.

Every gradient follows from that of the dense matrix, W in rows of neurons (`up`, `gate`, the transpose of `down`): the
sum over the tokens of s_t v_t^T (`WeightGradient`). For W = A B, A with a row for each neuron:

    grad A = sum_t s_t (B v_t)^T        grad B = sum_t (A^T s_t) v_t^T

A is known for a slab of neurons at a time; A^T s_t is summed over the slabs, one value a token and rank.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from mlpfusion.errors import InputError
from mlpfusion.kernel.gradient import WeightGradient, compute_dtype
from mlpfusion.kernel.trace import BlockTrace
from mlpfusion.mlp import MLP

FACTORS = ("left", "right")


@dataclass(frozen=True)
class FactoredMLP:
    """A block whose matrices are products of two trained factors; biases train as they are.

    `factors` maps the names of the matrices to (left, right), shapes (out, rank) and (rank, in); the matrices of `mlp`
    are their products. Raises `InputError` if a matrix has no factors, or they do not fit it.
    """

    mlp: MLP
    factors: Mapping[str, tuple[Tensor, Tensor]]

    def __post_init__(self) -> None:
        if set(self.factors) != set(self.mlp.matrices()):
            wanted = ", ".join(self.mlp.matrices())
            raise InputError(f"`factors` must be of {wanted}, got those of {', '.join(self.factors) or 'nothing'}")
        for name, matrix in self.mlp.matrices().items():
            left, right = self.factors[name]
            found = tuple(left.shape), tuple(right.shape)
            if left.ndim != 2 or found != ((matrix.shape[0], left.shape[1]), (left.shape[1], matrix.shape[1])):
                raise InputError(f"the factors of `{name}` must fit its shape {tuple(matrix.shape)}, got {found}")

    def tensors(self) -> dict[str, Tensor]:
        """The trained tensors: the factors as `up_left`, `up_right` and so on, and the biases."""
        found = {}
        for name, tensor in self.mlp.tensors().items():
            pairs = zip(FACTORS, self.factors[name], strict=True) if name in self.factors else [("", tensor)]
            found |= {f"{name}_{side}" if side else name: part for side, part in pairs}
        return found

    @property
    def num_parameters(self) -> int:
        """Number of trained values."""
        return sum(tensor.numel() for tensor in self.tensors().values())


@dataclass(frozen=True)
class MaskedMLP:
    """A block whose matrices train where they are not zero, and nowhere else; biases train in full."""

    mlp: MLP

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that hold what trains, zeros and all."""
        return self.mlp.tensors()

    @property
    def num_parameters(self) -> int:
        """Number of trained values: entries of the matrices that are not zero, and biases."""
        matrices = self.mlp.matrices()
        return sum(int(t.count_nonzero()) if name in matrices else t.numel() for name, t in self.tensors().items())


# What has a kernel. The parameters of an `MLP` are all its tensors.
Block = MLP | FactoredMLP | MaskedMLP


class Trained(Protocol):
    """From the gradients of the dense matrices, slab by slab, to those of what trains."""

    def extra_values(self) -> int:
        """How many values it holds beside the slabs."""
        ...

    def of_slab(self, gradient: WeightGradient, slab: slice) -> WeightGradient:
        """The gradient of what trains in these neurons."""
        ...

    def rest(self, max_rows: int) -> Iterator[WeightGradient]:
        """After the last slab: the gradients of what belongs to no neuron, at most so many rows at a time."""
        ...


def trained(block: Block, trace: BlockTrace) -> Trained:
    """What trains in `block`. `trace` must be in the dtype of the gradients."""
    if isinstance(block, FactoredMLP):
        return _Factored(block, trace)
    return _Masked(block.mlp) if isinstance(block, MaskedMLP) else _Dense()


def dense_mlp(block: Block) -> MLP:
    """What `block` computes, as dense matrices."""
    return block if isinstance(block, MLP) else block.mlp


class _Dense:
    def extra_values(self) -> int:
        return 0

    def of_slab(self, gradient: WeightGradient, slab: slice) -> WeightGradient:
        return gradient

    def rest(self, max_rows: int) -> Iterator[WeightGradient]:
        return iter(())


class _Masked:
    def __init__(self, mlp: MLP):
        self._matrices = mlp.matrices()

    def extra_values(self) -> int:
        return 0

    def of_slab(self, gradient: WeightGradient, slab: slice) -> WeightGradient:
        matrix = self._matrices[gradient.name]
        own = matrix.T[slab] if gradient.name == "down" else matrix[slab]
        return replace(gradient, entries=(own != 0).flatten().nonzero()[:, 0])

    def rest(self, max_rows: int) -> Iterator[WeightGradient]:
        return iter(())


class _Factored:
    def __init__(self, block: FactoredMLP, trace: BlockTrace):
        dtype = compute_dtype(block.mlp)
        self._pairs: dict[str, _Pair] = {}
        for name, factors in block.factors.items():
            left, right = (factor.to(dtype) for factor in factors)
            if name == "down":
                pair = _Pair(right.T, left.T, ("down_right", "down_left"), trace.cotangents)
            else:
                pair = _Pair(left, right, (f"{name}_left", f"{name}_right"), trace.inputs)
            self._pairs[name] = pair

    def extra_values(self) -> int:
        return sum(2 * len(pair.vectors) * pair.inner.shape[0] for pair in self._pairs.values())

    def of_slab(self, gradient: WeightGradient, slab: slice) -> WeightGradient:
        pair = self._pairs[gradient.name]
        pair.signals.addmm_(gradient.signals, pair.outer[slab])
        return replace(gradient, name=pair.names[0], vectors=pair.low)

    def rest(self, max_rows: int) -> Iterator[WeightGradient]:
        for pair in self._pairs.values():
            for signals in pair.signals.split(max_rows, dim=1):
                yield WeightGradient(pair.names[1], signals, pair.vectors)


class _Pair:
    """W = outer inner for W in rows of neurons; `low` are the vectors seen through `inner`, `signals` a sum so far."""

    def __init__(
        self,
        outer: Float[Tensor, "neurons rank"],
        inner: Float[Tensor, "rank hidden"],
        names: tuple[str, str],
        vectors: Float[Tensor, "tokens hidden"],
    ):
        self.outer, self.inner, self.names, self.vectors = outer, inner, names, vectors
        self.low = vectors @ inner.T
        self.signals = torch.zeros_like(self.low)
