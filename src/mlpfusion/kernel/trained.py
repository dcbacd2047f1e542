"""Trained parameters of a block: matrices, two factors of each, or the unmasked entries of each.

Every gradient follows from that of the dense matrix W in rows of neurons (`up`, `gate`, the
transpose of `down`): sum_t s_t v_t^T over the tokens t (`WeightGradient`). For W = A B, A with a
row for each neuron:

    grad A = sum_t s_t (B v_t)^T        grad B = sum_t (A^T s_t) v_t^T

A is known for a slab of neurons at a time; A^T s_t is summed over the slabs, one value a token and
rank.
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


@dataclass(frozen=True)
class FactoredMLP:
    """A block with every matrix a product of two trained factors; biases train as usual.

    `factors` maps the names of the matrices to (left, right), of shapes (out, rank) and (rank, in);
    the matrices of `mlp` are their products. Raises `InputError` if a matrix has no factors, or
    factors do not fit.

    >>> mlp = MLP(torch.ones(4, 3), torch.ones(3, 4), torch.relu)
    >>> up, down = (torch.ones(4, 1), torch.ones(1, 3)), (torch.ones(3, 1), torch.ones(1, 4))
    >>> list(FactoredMLP(mlp, {"up": up, "down": down}).tensors())
    ['up_left', 'up_right', 'down_left', 'down_right']
    """

    mlp: MLP
    factors: Mapping[str, tuple[Tensor, Tensor]]

    def __post_init__(self) -> None:
        if set(self.factors) != set(self.mlp.matrices()):
            names = ", ".join(self.mlp.matrices())
            raise InputError(f"`factors` must be of {names}, got those of {', '.join(self.factors) or 'nothing'}")
        for name, matrix in self.mlp.matrices().items():
            left, right = self.factors[name]
            shapes = tuple(left.shape), tuple(right.shape)
            if left.ndim != 2 or shapes != ((matrix.shape[0], left.shape[1]), (left.shape[1], matrix.shape[1])):
                raise InputError(f"the factors of `{name}` must fit its shape {tuple(matrix.shape)}, got {shapes}")

    def tensors(self) -> dict[str, Tensor]:
        """Returns the trained tensors: factors as `up_left`, `up_right` and so on, and biases."""
        trained: dict[str, Tensor] = {}
        for name, tensor in self.mlp.tensors().items():
            if name in self.factors:
                trained[f"{name}_left"], trained[f"{name}_right"] = self.factors[name]
            else:
                trained[name] = tensor
        return trained

    @property
    def num_parameters(self) -> int:
        """Number of trained values."""
        return sum(tensor.numel() for tensor in self.tensors().values())


@dataclass(frozen=True)
class MaskedMLP:
    """A block with trained non-zero matrix entries and biases; zeros stay.

    >>> MaskedMLP(MLP(torch.eye(3), torch.eye(3), torch.relu)).num_parameters
    6
    """

    mlp: MLP

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors with trained entries, zeros included."""
        return self.mlp.tensors()

    @property
    def num_parameters(self) -> int:
        """Number of trained values: non-zero entries of the matrices, and biases."""
        matrices = self.mlp.matrices()
        return sum(int(t.count_nonzero()) if name in matrices else t.numel() for name, t in self.tensors().items())


# All that has a kernel. The parameters of an `MLP` are all its tensors.
Block = MLP | FactoredMLP | MaskedMLP


class TrainedParameters(Protocol):
    """Turns gradients of dense matrices, slab by slab, into gradients of trained parameters."""

    def extra_values(self) -> int:
        """Number of values held beside the slabs."""
        ...

    def of_slab(self, gradient: WeightGradient, slab: slice) -> WeightGradient:
        """Gradient of the trained parameters of a slab of neurons."""
        ...

    def rest(self, max_rows: int) -> Iterator[WeightGradient]:
        """Yields the gradients of parameters of no neuron, after the last slab.

        At most `max_rows` rows each.
        """
        ...


def trained_parameters(block: Block, trace: BlockTrace) -> TrainedParameters:
    """Returns the trained parameters of `block`. `trace` must be in the dtype of the gradients."""
    if isinstance(block, FactoredMLP):
        return _Factored(block, trace)
    return _Masked(block.mlp) if isinstance(block, MaskedMLP) else _Dense()


def dense_mlp(block: Block) -> MLP:
    """Returns the block as dense matrices.

    >>> mlp = MLP(torch.eye(3), torch.eye(3), torch.relu)
    >>> dense_mlp(MaskedMLP(mlp)) is mlp
    True
    """
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
        rows = matrix.T[slab] if gradient.name == "down" else matrix[slab]
        return replace(gradient, entries=(rows != 0).flatten().nonzero()[:, 0])

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
    """W = outer inner for W in rows of neurons.

    `low` = inner v_t for all tokens, `signals` = the sum of A^T s_t so far.
    """

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
