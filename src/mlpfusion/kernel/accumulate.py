"""Kernels by block of parameters, and the sum over slabs of gradients that makes them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from mlpfusion.checks import num_not_finite
from mlpfusion.errors import InputError
from mlpfusion.kernel.product import Contraction, MakeContraction, sign_product

_MAX_COLUMNS = 32_768
MAX_CHUNK = 1 << 20  # values of a slab that are worked on at once, small enough for the cache of a core


@dataclass(frozen=True)
class BlockKernels:
    """The kernel of a model restricted to blocks of parameters: `total` is their sum (paper, Eq. 2 and 3).

    `blocks[name][i, j]` is <grad f(x_i), sign grad f(x_j)> of that block for the Adam kernel, without the sign for the
    plain one, in float64. The names are those of `tensors()` of an `MLP`, `FactoredMLP` or `MaskedMLP`. Raises
    `InputError` if there is no block.
    """

    blocks: Mapping[str, Float64[Tensor, "samples samples"]]

    def __post_init__(self) -> None:
        if not self.blocks:
            raise InputError("`blocks` must hold at least one kernel, got none")

    @property
    def total(self) -> Float64[Tensor, "samples samples"]:
        return self.without()

    def without(self, *endings: str) -> Float64[Tensor, "samples samples"]:
        """The sum of all blocks but those of these names (in a joined kernel: last parts of names).

        The authors' total holds `down_bias`, which hardly depends on how the block was compressed.
        """
        kept = [kernel for name, kernel in self.blocks.items() if name.rpartition(".")[2] not in endings]
        return torch.stack(kept).sum(0) if kept else torch.zeros_like(next(iter(self.blocks.values())))

    def by_matrix(self) -> "BlockKernels":
        """The same with the blocks `up_left` and `up_right` of a matrix that is two factors added up to one, `up`."""
        summed: dict[str, Tensor] = {}
        for name, kernel in self.blocks.items():
            whole = name.removesuffix("_left").removesuffix("_right")
            summed[whole] = summed[whole] + kernel if whole in summed else kernel
        return BlockKernels(summed)


def join_kernels(kernels: Mapping[str, BlockKernels]) -> BlockKernels:
    """The kernel of several MLPs together; `join_kernels({"layers.0": k})` names its blocks `layers.0.up` and so on.

    Raises `InputError` if the kernels are of different numbers of samples, or there is none.
    """
    sizes = {len(kernel.total) for kernel in kernels.values()}
    if len(sizes) > 1:
        raise InputError(f"`kernels` must be of the same samples, got {sorted(sizes)} samples")
    return BlockKernels({f"{path}.{name}": k for path, one in kernels.items() for name, k in one.blocks.items()})


class KernelAccumulator:
    """Sums the kernels of slabs of per-sample gradients; holds the buffers of one slab.

    For any parametrisation: a slab is any set of entries of a block of parameters, each entry in one slab only. The
    product is that of the Adam kernel unless `make` says otherwise.
    """

    def __init__(self, make: MakeContraction = sign_product):
        self._make = make
        self._blocks: dict[str, Tensor] = {}
        self._contraction: Contraction | None = None
        self._max_columns = 0

    def add(self, name: str, slab: Float[Tensor, "samples columns"]) -> None:
        """Adds these entries of the gradients to the kernel of the block `name`; fp16 and bf16 are taken as fp32.

        Raises `InputError` if the slab has another number of samples than those before.
        """
        slab = slab.detach().to(torch.promote_types(slab.dtype, torch.float32))
        for part in slab.split(_MAX_COLUMNS, dim=1):
            add_rows([self], name, slab.shape[0], part.shape[1], slab, _chunks(part))

    def buffers(self, num_samples: int, num_columns: int, like: Tensor) -> Contraction:
        """The buffers for one slab, made anew for a wider one; `add_product` takes their product in.

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
        """Adds the kernel of one slab to that of the block `name`; `product` may be changed later."""
        if name in self._blocks:
            self._blocks[name] += product
        else:
            self._blocks[name] = product

    def kernels(self, order: Int[Tensor, " samples"] | None = None) -> BlockKernels:
        """The kernels so far; sample i of the result is sample `order[i]` of the slabs.

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
    """`KernelAccumulator.add` for a slab that comes as (first sample, rows), to all of these in one pass.

    The slab never stands in memory; a chunk may be used anew for the next one. `like` has the dtype and the device of
    the rows. Raises `InputError` as `add` does.
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
    """<grad f(x_i), sign grad f(x_j)> of any parameters (paper, Eq. 3), from slabs (name of the block, gradients).

    For what is no MLP: attention, adapters. Hand the slabs over by a generator, and no more than one of
    them is in memory. Raises `InputError` as `KernelAccumulator` does.
    """
    accumulator = KernelAccumulator()
    for name, slab in gradients:
        accumulator.add(name, slab)
    return accumulator.kernels()


def chunk_rows(num_columns: int) -> int:
    """How many samples of a slab of so many columns to work on at once."""
    return max(1, MAX_CHUNK // num_columns)


def _chunks(slab: Float[Tensor, "samples columns"]) -> Iterator[tuple[int, Tensor]]:
    step = chunk_rows(slab.shape[1])
    for first in range(0, len(slab), step):
        yield first, slab[first : first + step]
