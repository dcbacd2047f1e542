"""The rounding of another processor on this one: matrix products whose terms are added in another order.

`python tests/sum_order.py N COMMAND ...` is `mlpfusion COMMAND ...` under order N; 0 is the usual order.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
# The axis of the second matrix along which the terms of a product are added; of the first it is the last.
_PRODUCTS: dict[Callable[..., Tensor], int] = {
    _aten.mm.default: -2,
    _aten.bmm.default: -2,
    _aten.addmm.default: -2,
    _aten.baddbmm.default: -2,
    _aten.mv.default: -1,
    _aten.dot.default: -1,
}


class SumOrder(TorchDispatchMode):
    """While active, the terms of every matrix product on the CPU are added in an order drawn from `seed`.

    The order depends on the number of terms alone, so equal calls still give equal bytes.
    """

    def __init__(self, seed: int):
        super().__init__()
        self.seed = seed

    def __torch_dispatch__(
        self, func: Callable[..., Tensor], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _PRODUCTS and args[-1].device.type == "cpu":
            *others, left, right = args
            order = torch.randperm(left.shape[-1], generator=torch.Generator().manual_seed(self.seed))
            args = (*others, left.index_select(-1, order), right.index_select(_PRODUCTS[func], order))
        return func(*args, **(kwargs or {}))


def sum_order(seed: int) -> AbstractContextManager[object]:
    """Order `seed` of the terms, or for 0 the usual one."""
    return SumOrder(seed) if seed else nullcontext()


if __name__ == "__main__":
    from mlpfusion.cli import main

    with sum_order(int(sys.argv.pop(1))):
        main()
