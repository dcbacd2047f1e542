"""Memory stays within the workspace, however many neurons there are: every allocation of a run is counted."""

import weakref
from typing import Any

import pytest
import torch
from random_mlp import make_mlp
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from mlpfusion.kernel import (
    BlockTrace,
    FactoredMLP,
    MaskedMLP,
    adam_and_plain_kernel,
    adam_kernel,
    plain_kernel,
)
from mlpfusion.kernel.matching import Matching, match_kernel
from mlpfusion.methods.data_free.svd import truncated_svd

MIB = 1 << 20


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operators made and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak, self._known = 0, 0, set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {self._key(x) for x in tree_iter((args, kwargs or {})) if isinstance(x, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor) and self._key(tensor) not in known | self._known:
                self._count(tensor)
        return result

    @staticmethod
    def _key(tensor: torch.Tensor) -> int:
        return tensor.untyped_storage()._cdata

    def _count(self, tensor: torch.Tensor) -> None:
        key, size = self._key(tensor), tensor.untyped_storage().nbytes()
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(tensor.untyped_storage(), self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def make_trace(num_samples: int, hidden_size: int) -> BlockTrace:
    lengths = torch.arange(1, num_samples + 1) % 9 + 1
    x, cotangents = torch.randn(2, int(lengths.sum()), hidden_size, generator=torch.Generator().manual_seed(0))
    return BlockTrace(x, cotangents, lengths)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("kernel", [adam_kernel, plain_kernel, adam_and_plain_kernel])
def test_the_peak_stays_within_the_workspace(kernel, gated):
    mlp = make_mlp(1500, 96, gated=gated, dtype=torch.float32)
    trace = make_trace(60, 96)
    with LiveBytes() as memory:
        kernel(mlp, trace, workspace_bytes=22 * MIB)
    assert 2 * MIB < memory.peak < 22 * MIB + 2 * trace.inputs.nbytes + 16 * 60**2 * 6
    assert memory.peak < 4 * trace.num_samples * mlp.num_parameters / 3  # all gradients


@pytest.mark.parametrize("kind", ["factored", pytest.param("masked", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kernel", [adam_kernel, plain_kernel, adam_and_plain_kernel])
def test_factors_and_masks_need_no_more(kernel, kind):
    mlp = make_mlp(1500, 96, gated=True, dtype=torch.float32)
    pair = {name: truncated_svd(matrix, 20)[:2] for name, matrix in mlp.matrices().items()}
    block = FactoredMLP(mlp, pair) if kind == "factored" else MaskedMLP(mlp)
    trace = make_trace(60, 96)
    with LiveBytes() as memory:
        kernel(block, trace, workspace_bytes=22 * MIB)
    assert MIB < memory.peak < 22 * MIB + 2 * trace.inputs.nbytes + 16 * 60**2 * 9


@pytest.mark.parametrize("gated", [False, True])
def test_the_match_needs_the_kernels_of_the_neurons_and_no_gram_matrix(gated):
    mlp = make_mlp(1000, 16, gated=gated, dtype=torch.float32)
    trace, num_factors = make_trace(40, 16), (3 if gated else 2) * 1000
    target, kernels, slab = adam_kernel(mlp, trace), 4 * num_factors * 40**2, 4 * 40 * mlp.up.numel()
    with LiveBytes() as memory:
        match_kernel(mlp, trace, target, Matching())
    assert kernels < memory.peak < kernels + 7 * slab < 8 * num_factors**2
