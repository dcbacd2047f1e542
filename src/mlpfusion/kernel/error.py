"""How far one kernel is from another: matrices, and the blocks of parameters of two models."""

from dataclasses import dataclass

from jaxtyping import Float, Float64
from torch import Tensor

from mlpfusion.errors import InputError
from mlpfusion.kernel.accumulate import BlockKernels


@dataclass(frozen=True)
class KernelError:
    """Measures of a kernel `after` against `before`, all without unit but `absolute`, which has that of the kernel.

    `relative` and `absolute` are |after - before|_F, over |before|_F or as it is (the authors' number); `cosine` is
    that of the angle between the two matrices, `alignment` the same after centring, `trace_ratio` is tr after / tr
    before. Against a kernel that is zero they are NaN or infinite.
    """

    relative: float
    absolute: float
    cosine: float
    trace_ratio: float
    alignment: float


@dataclass(frozen=True)
class KernelComparison:
    """`KernelError` by block of parameters, for the blocks that both kernels have, and of the totals.

    The two factors of a low-rank matrix are one block, that of the matrix. Blocks that only one kernel has count in
    the totals only. `without_down_bias` leaves b2 out of both totals: the authors count it, but it hardly depends on
    the method and hides differences.
    """

    blocks: dict[str, KernelError]
    total: KernelError
    without_down_bias: KernelError


def compare_kernels(before: BlockKernels, after: BlockKernels) -> KernelComparison:
    """How far the kernel of a compressed model is from the original's (paper, Table 1 gives `absolute` of the total).

    Both must be of the same samples and the same f. Raises `InputError` for different numbers of samples.
    """
    before, after = before.by_matrix(), after.by_matrix()
    shared = [name for name in before.blocks if name in after.blocks]
    return KernelComparison(
        {name: kernel_error(before.blocks[name], after.blocks[name]) for name in shared},
        kernel_error(before.total, after.total),
        kernel_error(before.without("down_bias"), after.without("down_bias")),
    )


def kernel_error(before: Float[Tensor, "samples samples"], after: Float[Tensor, "samples samples"]) -> KernelError:
    """All measures of one pair of kernels, in float64. Raises `InputError` if they are not square and of one size."""
    if before.shape != after.shape or before.ndim != 2 or before.shape[0] != before.shape[1]:
        found = f"{tuple(before.shape)} and {tuple(after.shape)}"
        raise InputError(f"`before` and `after` must be square matrices of one size, got {found}")
    before, after = before.double(), after.double()
    difference = (after - before).norm()
    return KernelError(
        relative=float(difference / before.norm()),
        absolute=float(difference),
        cosine=cosine(before, after),
        trace_ratio=float(after.trace() / before.trace()),
        alignment=centered_kernel_alignment(before, after),
    )


def cosine(first: Float64[Tensor, "rows columns"], second: Float64[Tensor, "rows columns"]) -> float:
    """<A, B>_F / (|A|_F |B|_F); NaN if one of them is zero."""
    return float((first * second).sum() / (first.norm() * second.norm()))


def centered_kernel_alignment(
    first: Float64[Tensor, "samples samples"], second: Float64[Tensor, "samples samples"]
) -> float:
    """The cosine of H A H and H B H with H = I - 1/n (Cortes et al. 2012); NaN if one of them is constant.

    A and B need not be symmetric: the Adam kernel is not.
    """
    return cosine(_centered(first), _centered(second))


def _centered(kernel: Float64[Tensor, "samples samples"]) -> Float64[Tensor, "samples samples"]:
    kernel = kernel - kernel.mean(0, keepdim=True)
    return kernel - kernel.mean(1, keepdim=True)
