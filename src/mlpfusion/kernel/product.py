"""The products G sign(G)^T and G G^T for one slab of gradients G, one row a sample.

For the Adam kernel in fp32 on a CPU with AVX-512 the product is computed in whole numbers. A sign
is a whole number, and a gradient is a whole number to 23 bits after division by the largest of its
row, written as three digits of base 254. Products and sums of int8 are then exact in any order, and
their GEMM takes an eighth of the time of one in fp32. Two digits do where the rest cannot be seen:
on layer 0 of MiniLM they change the kernel by 2e-6 of its norm, while the signs of gradients that
fp32 cannot tell from zero change it by 1e-5 (benchmarks/ntk.py).
"""

from collections.abc import Callable
from typing import Protocol

import torch
from jaxtyping import Float, Float64, Int8, Num
from torch import Tensor

from mlpfusion.cluster.gram import gram_matrix

# Digits between -127 and 127 fit int8, so the base is 2 * 127; three digits hold 23 bits.
_NUM_DIGITS, _BASE, _TOP = 3, 254, 127
_SMALLEST = 1e-36  # least divisor of a row: _TOP / _SMALLEST is finite in fp32
_FEW_COLUMNS = 64
# Error of two digits, as a share of the norm of a slab's kernel. Slabs err independently, so their
# sum is several times better.
_TOLERANCE = 5e-5


class Contraction(Protocol):
    """Buffers for one slab: rows of gradients go in, the product of all rows comes out."""

    def put(self, first: int, gradients: Float[Tensor, "rows columns"]) -> None:
        """Stores the gradients of samples `first` and following."""
        ...

    def product(self, num_columns: int) -> Float64[Tensor, "samples samples"]:
        """Multiplies the rows stored last, all with `num_columns` columns."""
        ...


# (number of samples, largest number of columns, a tensor with the dtype and device of the
# gradients) -> buffers
MakeContraction = Callable[[int, int, Tensor], Contraction]


class PlainProduct:
    """G G^T in the dtype of the gradients: the plain (SGD) kernel of a slab (paper, Eq. 2).

    >>> buffers = PlainProduct(2, 1, torch.zeros(1))
    >>> buffers.put(0, torch.tensor([[3.0], [-2.0]]))
    >>> buffers.product(1).tolist()
    [[9.0, -6.0], [-6.0, 4.0]]
    """

    def __init__(self, num_samples: int, max_columns: int, like: Tensor):
        self._gradients = like.new_empty(max_columns * num_samples)
        self._num_samples = num_samples

    def put(self, first: int, gradients: Float[Tensor, "rows columns"]) -> None:
        _matrix(self._gradients, self._num_samples, gradients.shape[1])[first : first + len(gradients)] = gradients

    def product(self, num_columns: int) -> Float64[Tensor, "samples samples"]:
        return gram_matrix(_matrix(self._gradients, self._num_samples, num_columns)).double()


class FloatSignProduct:
    """G sign(G)^T in the dtype of the gradients: the Adam kernel of a slab (paper, Eq. 3).

    sign(0) = 0.

    >>> buffers = FloatSignProduct(2, 1, torch.zeros(1))
    >>> buffers.put(0, torch.tensor([[3.0], [-2.0]]))
    >>> buffers.product(1).tolist()
    [[3.0, -3.0], [-2.0, 2.0]]
    """

    def __init__(self, num_samples: int, max_columns: int, like: Tensor):
        self._gradients, self._signs = like.new_empty(2, max_columns * num_samples)
        self._num_samples = num_samples

    def put(self, first: int, gradients: Float[Tensor, "rows columns"]) -> None:
        stored, signs = self._matrices(gradients.shape[1])
        stored[first : first + len(gradients)] = gradients
        torch.sign(gradients, out=signs[first : first + len(gradients)])

    def product(self, num_columns: int) -> Float64[Tensor, "samples samples"]:
        stored, signs = self._matrices(num_columns)
        return (stored @ signs.T).double()

    def _matrices(self, num_columns: int) -> tuple[Tensor, Tensor]:
        size = self._num_samples, num_columns
        return _matrix(self._gradients, *size), _matrix(self._signs, *size)


class IntegerSignProduct:
    """`FloatSignProduct` in whole numbers.

    Each row is rounded to 2^-15 of its largest value, or to 2^-23 with the third digit.
    """

    def __init__(self, num_samples: int, max_columns: int, like: Tensor):
        self._digits = like.new_empty((_NUM_DIGITS + 1) * num_samples * max_columns, dtype=torch.int8)
        self._largest = like.new_zeros(num_samples, 1)

    def put(self, first: int, gradients: Float[Tensor, "rows columns"]) -> None:
        here = slice(first, first + len(gradients))
        *digits, signs = self._matrices(gradients.shape[1])
        work = gradients.abs()
        largest = work.amax(1, keepdim=True).clamp_min(_SMALLEST)
        self._largest[here] = largest
        signs[here] = torch.sign(gradients, out=work)
        rest = gradients * (_TOP / largest)
        # digit by digit: round, subtract, and scale what is left up to the next digit
        for index, digit in enumerate(digits):
            digit[here] = torch.round(rest, out=work)
            if index < _NUM_DIGITS - 1:
                rest.sub_(work).mul_(_BASE)

    def product(self, num_columns: int) -> Float64[Tensor, "samples samples"]:
        matrices = self._matrices(num_columns)
        signs, unit = matrices[-1], self._largest.double() / _TOP
        leading, second = _whole_product(matrices[:2].flatten(0, 1), signs).double().chunk(2)
        kernel = leading.add_(second, alpha=1 / _BASE).mul_(unit)
        if not self._is_exact_enough(kernel, unit / _BASE, num_columns):
            kernel.add_(_whole_product(matrices[2], signs) * (unit / _BASE**2))
        return kernel

    @staticmethod
    def _is_exact_enough(kernel: Tensor, unit: Tensor, num_columns: int) -> bool:
        """Whether the third digit is lost in the norm of the kernel.

        The numbers left out are uniform between -unit / 2 and unit / 2, of variance unit^2 / 12.
        """
        left_out = (unit.square().sum() * len(unit) * num_columns / 12).sqrt()
        return bool(left_out <= _TOLERANCE * kernel.norm())

    def _matrices(self, num_columns: int) -> Tensor:
        return _matrix(self._digits, (_NUM_DIGITS + 1) * len(self._largest), num_columns).unflatten(
            0, (_NUM_DIGITS + 1, -1)
        )


def sign_product(num_samples: int, max_columns: int, like: Tensor) -> Contraction:
    """Makes buffers for G sign(G)^T, in whole numbers where faster.

    >>> buffers = sign_product(2, 1, torch.zeros(1, dtype=torch.float64))
    >>> buffers.put(0, torch.tensor([[3.0], [-2.0]]).double())
    >>> buffers.product(1).tolist()
    [[3.0, -3.0], [-2.0, 2.0]]
    """
    make = IntegerSignProduct if _has_fast_int8(like) else FloatSignProduct
    return make(num_samples, max_columns, like)


def bytes_per_column(num_samples: int, like: Tensor) -> int:
    """Bytes of either product for one column of the slab, without the rows on the way in.

    >>> bytes_per_column(10, torch.zeros(1))
    80
    """
    return num_samples * max(2 * like.element_size(), _NUM_DIGITS + 1)


def _has_fast_int8(like: Tensor) -> bool:
    on_cpu = like.device.type == "cpu" and like.dtype == torch.float32
    fast = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return on_cpu and fast and _is_exact()


def _is_exact() -> bool:
    """Whether this machine's int8 GEMM is exact for the largest digits. Some add in 16 bits."""
    digits = torch.full((8, 256), -_TOP, dtype=torch.int8)
    signs = torch.ones(8, 256, dtype=torch.int8)
    return all(bool((_whole_product(sign * digits, signs) == -_TOP * 256 * sign).all()) for sign in (1, -1))


def _whole_product(
    digits: Int8[Tensor, "rows columns"], signs: Int8[Tensor, "samples columns"]
) -> Num[Tensor, "rows samples"]:
    """digits signs^T, exactly."""
    # The int8 GEMM adds pairs of products in 16 bits; a pair, even with an operand moved by 128, is
    # below 2^15. Few columns go by float64, at no cost: for a single one the int8 GEMM takes
    # strides of a dimension of size one at their word and returns what was in memory (pytorch issue
    # 195066).
    if digits.shape[1] < _FEW_COLUMNS:
        return digits.double() @ signs.double().T
    return torch.ops.aten._int_mm(digits, signs.T)


def _matrix(values: Float[Tensor, " values"], num_rows: int, num_columns: int) -> Float[Tensor, "rows columns"]:
    """Views the first values as a matrix without gaps."""
    return values[: num_rows * num_columns].view(num_rows, num_columns)
