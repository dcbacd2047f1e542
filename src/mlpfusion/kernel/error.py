"""Distance between two kernels: of matrices, and by block of parameters of two models."""

from dataclasses import dataclass

from jaxtyping import Float, Float64
from torch import Tensor

from mlpfusion.errors import InputError
from mlpfusion.kernel.accumulate import BlockKernels


@dataclass(frozen=True)
class KernelError:
    """Measures of a kernel `after` (A) against `before` (B).

    - `relative`: |A - B|_F / |B|_F - `absolute`: |A - B|_F, the authors' number, in the unit of the
    kernel - `cosine`: <A, B>_F / (|A|_F |B|_F) - `trace_ratio`: tr A / tr B - `alignment`: the
    cosine after centring

    If B is zero they are NaN or infinite.
    """

    relative: float
    absolute: float
    cosine: float
    trace_ratio: float
    alignment: float


@dataclass(frozen=True)
class KernelComparison:
    """`KernelError` by block of parameters, for blocks in both kernels, and of the totals.

    The two factors of a low-rank matrix count as one block, that of the matrix. Blocks in one
    kernel only count in the totals only. `without_down_bias` leaves b2 out of both totals: the
    authors count b2, but b2 hardly depends on the method and hides differences.
    """

    blocks: dict[str, KernelError]
    total: KernelError
    without_down_bias: KernelError


def compare_kernels(before: BlockKernels, after: BlockKernels) -> KernelComparison:
    """Compares the kernel of a compressed model with the original's, on the same samples and f.

    `absolute` of the total is the number in Table 1 of the paper. Raises `InputError` for different
    numbers of samples.

    >>> before, after = BlockKernels({"up": torch.eye(2)}), BlockKernels({"up": 2 * torch.eye(2)})
    >>> compare_kernels(before, after).blocks["up"].relative
    1.0
    """
    before, after = before.by_matrix(), after.by_matrix()
    shared = [name for name in before.blocks if name in after.blocks]
    return KernelComparison(
        {name: kernel_error(before.blocks[name], after.blocks[name]) for name in shared},
        kernel_error(before.total, after.total),
        kernel_error(before.without("down_bias"), after.without("down_bias")),
    )


def kernel_error(before: Float[Tensor, "samples samples"], after: Float[Tensor, "samples samples"]) -> KernelError:
    """Computes all measures for one pair of kernels, in float64.

    Raises `InputError` unless both are square and of one size.

    >>> kernel_error(torch.eye(2), 2 * torch.eye(2)).trace_ratio
    2.0
    """
    if before.shape != after.shape or before.ndim != 2 or before.shape[0] != before.shape[1]:
        shapes = f"{tuple(before.shape)} and {tuple(after.shape)}"
        raise InputError(f"`before` and `after` must be square matrices of one size, got {shapes}")
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
    """<A, B>_F / (|A|_F |B|_F); NaN if A or B is zero.

    >>> cosine(torch.ones(2, 2).double(), torch.ones(2, 2).double())
    1.0
    """
    return float((first * second).sum() / (first.norm() * second.norm()))


def centered_kernel_alignment(
    first: Float64[Tensor, "samples samples"], second: Float64[Tensor, "samples samples"]
) -> float:
    """Cosine of H A H and H B H with H = I - 1/n (Cortes et al. 2012). NaN for constant A or B.

    A and B need not be symmetric: the Adam kernel is not.

    >>> round(centered_kernel_alignment(torch.eye(2).double(), torch.eye(2).double()), 6)
    1.0
    """
    return cosine(_centered(first), _centered(second))


def _centered(kernel: Float64[Tensor, "samples samples"]) -> Float64[Tensor, "samples samples"]:
    kernel = kernel - kernel.mean(0, keepdim=True)
    return kernel - kernel.mean(1, keepdim=True)
