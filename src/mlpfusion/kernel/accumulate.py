"""Kernels by block of parameters, summed over slabs of gradients."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from mlpfusion.checks import num_not_finite
from mlpfusion.errors import InputError
from mlpfusion.kernel.product import Contraction, MakeContraction, sign_product

# Columns of a slab given to `add` at once; the buffers of 872 samples then take 0.2 GB. Not tuned.
_MAX_COLUMNS = 32_768
MAX_CHUNK = 1 << 20  # values of a slab processed at once: 4 MB in fp32, within the cache of a core


@dataclass(frozen=True)
class BlockKernels:
    """Kernel of a model by block of parameters; `total` is the sum (paper, Eq. 2 and 3).

    `blocks[name][i, j]` is <grad f(x_i), sign grad f(x_j)> over that block for the Adam kernel,
    without the sign for the plain kernel, in float64. The names are those of `tensors()` of an
    `MLP`, `FactoredMLP` or `MaskedMLP`. Raises `InputError` if there is no block.

    >>> BlockKernels({"up": torch.eye(2), "down": torch.eye(2)}).total.tolist()
    [[2.0, 0.0], [0.0, 2.0]]
    """

    blocks: Mapping[str, Float64[Tensor, "samples samples"]]

    def __post_init__(self) -> None:
        if not self.blocks:
            raise InputError("`blocks` must hold at least one kernel, got none")

    @property
    def total(self) -> Float64[Tensor, "samples samples"]:
        return self.without()

    def without(self, *endings: str) -> Float64[Tensor, "samples samples"]:
        """Sums all blocks except the named ones (in a joined kernel: last parts of names).

        The authors' total includes `down_bias`, which hardly depends on the compression.

        >>> kernels = BlockKernels({"up": torch.ones(1, 1), "down_bias": torch.ones(1, 1)})
        >>> kernels.without("down_bias").tolist()
        [[1.0]]
        """
        rest = [kernel for name, kernel in self.blocks.items() if name.rpartition(".")[2] not in endings]
        return torch.stack(rest).sum(0) if rest else torch.zeros_like(next(iter(self.blocks.values())))

    def by_matrix(self) -> "BlockKernels":
        """Adds up the blocks of the two factors of a matrix: `up_left` + `up_right` = `up`."""
        summed: dict[str, Tensor] = {}
        for name, kernel in self.blocks.items():
            whole = name.removesuffix("_left").removesuffix("_right")
            summed[whole] = summed[whole] + kernel if whole in summed else kernel
        return BlockKernels(summed)


def join_kernels(kernels: Mapping[str, BlockKernels]) -> BlockKernels:
    """Joins the kernels of several MLPs. Block `up` of MLP `layers.0` becomes `layers.0.up`.

    Raises `InputError` if the kernels have different numbers of samples, or there is none.

    >>> list(join_kernels({"layers.0": BlockKernels({"up": torch.eye(2)})}).blocks)
    ['layers.0.up']
    """
    sizes = {len(kernel.total) for kernel in kernels.values()}
    if len(sizes) > 1:
        raise InputError(f"`kernels` must be of the same samples, got {sorted(sizes)} samples")
    return BlockKernels({f"{path}.{name}": k for path, mlp in kernels.items() for name, k in mlp.blocks.items()})


class KernelAccumulator:
    """Sums the kernels of slabs of per-sample gradients; holds the buffers of one slab.

    Works for any parametrisation: a slab is any set of entries of a block of parameters, each entry
    in one slab only. Computes the Adam kernel unless `make` builds another product.

    >>> accumulator = KernelAccumulator()
    >>> accumulator.add("weight", torch.tensor([[1.0, -2.0], [3.0, 0.0]]))
    >>> accumulator.kernels().total.tolist()
    [[3.0, 1.0], [3.0, 3.0]]
    """

    def __init__(self, make: MakeContraction = sign_product):
        self._make = make
        self._blocks: dict[str, Tensor] = {}
        self._contraction: Contraction | None = None
        self._max_columns = 0

    def add(self, name: str, slab: Float[Tensor, "samples columns"]) -> None:
        """Adds a slab of gradients to the kernel of the block `name`; fp16 and bf16 become fp32.

        Raises `InputError` if the number of samples differs from earlier slabs.
        """
        slab = slab.detach().to(torch.promote_types(slab.dtype, torch.float32))
        for part in slab.split(_MAX_COLUMNS, dim=1):
            add_rows([self], name, slab.shape[0], part.shape[1], slab, _chunks(part))

    def buffers(self, num_samples: int, num_columns: int, like: Tensor) -> Contraction:
        """Returns buffers for one slab, allocated anew for a wider slab. See `add_product`.

        `like` has the dtype and the device of the gradients. Raises `InputError` as `add` does.
        """
        known = next((len(kernel) for kernel in self._blocks.values()), num_samples)
        if num_samples != known:
            raise InputError(f"`slab` must have {known} samples as those before, got {num_samples}")
        if self._contraction is None or num_columns > self._max_columns:
            self._contraction = None  # frees the old buffers before there are new ones
            self._contraction, self._max_columns = self._make(num_samples, num_columns, like), num_columns
        return self._contraction

    def add_product(self, name: str, product: Float64[Tensor, "samples samples"]) -> None:
        """Adds the kernel of one slab to the block `name`. `product` may be changed later."""
        if name in self._blocks:
            self._blocks[name] += product
        else:
            self._blocks[name] = product

    def kernels(self, order: Int[Tensor, " samples"] | None = None) -> BlockKernels:
        """Returns the kernels so far. Sample i of the result is sample `order[i]` of the slabs.

        Raises `InputError` if nothing was added, or a gradient was NaN or infinite.
        """
        for name, kernel in self._blocks.items():
            if num_not_finite(kernel):
                raise InputError(f"the gradients must be finite, got NaN or Inf in those of `{name}`")
        if order is None:
            return BlockKernels({name: kernel.clone() for name, kernel in self._blocks.items()})
        return BlockKernels({name: kernel[order][:, order] for name, kernel in self._blocks.items()})


def add_rows(
    accumulators: Sequence[KernelAccumulator],
    name: str,
    num_samples: int,
    num_columns: int,
    like: Tensor,
    chunks: Iterable[tuple[int, Float[Tensor, "rows columns"]]],
) -> None:
    """Adds a slab given as chunks (first sample, rows) to every accumulator, in one pass.

    The slab is never in memory as a whole; a chunk may be reused for the next. `like` has the dtype
    and the device of the rows. Raises `InputError` as `KernelAccumulator.add` does.

    >>> accumulator, rows = KernelAccumulator(), torch.tensor([[1.0], [-2.0]])
    >>> add_rows([accumulator], "up", 2, 1, rows, [(0, rows[:1]), (1, rows[1:])])
    >>> accumulator.kernels().total.tolist()
    [[1.0, -1.0], [-2.0, 2.0]]
    """
    contractions = [accumulator.buffers(num_samples, num_columns, like) for accumulator in accumulators]
    for first, gradients in chunks:
        for contraction in contractions:
            contraction.put(first, gradients)
    for accumulator, contraction in zip(accumulators, contractions, strict=True):
        accumulator.add_product(name, contraction.product(num_columns))


def adam_kernel_of_parameters(
    gradients: Iterable[tuple[str, Float[Tensor, "samples columns"]]],
) -> BlockKernels:
    """Computes <grad f(x_i), sign grad f(x_j)> over any parameters (paper, Eq. 3).

    `gradients` yields slabs (name of the block, gradients), for parameters outside MLPs: attention,
    adapters. From a generator, one slab at a time is in memory. Raises `InputError` as
    `KernelAccumulator` does.

    >>> adam_kernel_of_parameters([("lora", torch.tensor([[1.0, -2.0]]))]).total.tolist()
    [[3.0]]
    """
    accumulator = KernelAccumulator()
    for name, slab in gradients:
        accumulator.add(name, slab)
    return accumulator.kernels()


def chunk_rows(num_columns: int) -> int:
    """Number of samples of a slab with `num_columns` columns to process at once.

    >>> chunk_rows(1000)
    1048
    """
    return max(1, MAX_CHUNK // num_columns)


def _chunks(slab: Float[Tensor, "samples columns"]) -> Iterator[tuple[int, Tensor]]:
    step = chunk_rows(slab.shape[1])
    for first in range(0, len(slab), step):
        yield first, slab[first : first + step]
