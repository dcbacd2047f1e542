"""Two diagonals matched to a kernel: positive least squares in the kernels of the neurons.

The forward pass depends on the effective weights only, and the Adam kernel is linear in the scales
(`kernel.neurons`). So the scales can be chosen for the kernel alone, at no cost to the output.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy.optimize import minimize
from torch import Tensor

from mlpfusion.errors import InputError
from mlpfusion.kernel.accumulate import BlockKernels
from mlpfusion.kernel.neurons import (
    down_bias_kernel,
    inner_products,
    neuron_kernels,
    squared_norms,
    weighted_sum,
    with_scales,
)
from mlpfusion.kernel.trace import BlockTrace
from mlpfusion.mlp import MLP

# Lower bound of a scale, as a share of the scale of its layer: weights are divided by the scale,
# and would grow without bound. Not tuned.
_SMALLEST = 1e-2
_MAX_ITERATIONS = 500  # a cap for L-BFGS-B; not tuned


@dataclass(frozen=True)
class Matching:
    """Options of the match: one scale for each `layer` (and side), or for each `neuron`.

    `ridge` pulls the scales of the neurons towards the scale of their layer, in units of the mean
    diagonal of the neurons' Gram matrix. 0.1 to 0.3 give the same error on MiniLM. Raises
    `ValueError` for a bad value.
    """

    per: str = "neuron"
    ridge: float = 0.3

    def __post_init__(self) -> None:
        if self.per not in ("layer", "neuron"):
            raise ValueError(f"`per` must be layer or neuron, got {self.per!r}")
        if not self.ridge > 0:
            raise ValueError(f"`ridge` must be above 0, got {self.ridge}")


@torch.no_grad()
def match_kernel(mlp: MLP, trace: BlockTrace, target: BlockKernels, matching: Matching) -> MLP:
    """Rescales `mlp` to bring its Adam kernel near `target`. Outputs stay, up to rounding.

    `trace` is that of `mlp`, `target` the Adam kernel of another block of the same layout on the
    same samples. In a gated block `up` gets a scale too, so all three matrices are matched. Raises
    `InputError` if the numbers of samples differ.

    >>> mlp = MLP(torch.ones(1, 1), torch.ones(1, 1), torch.relu)
    >>> trace = BlockTrace(torch.tensor([[3.0]]), torch.tensor([[2.0]]), torch.tensor([1]))
    >>> target = BlockKernels({"up": torch.tensor([[12.0]]), "down": torch.tensor([[6.0]])})
    >>> round(match_kernel(mlp, trace, target, Matching("layer")).input_scale.item(), 4)
    2.0
    """
    if len(target.total) != trace.num_samples:
        raise InputError(f"`target` must be of {trace.num_samples} samples, got {len(target.total)}")
    targets = [_side(target, name) for name in (("up", "down") if mlp.gate is None else ("gate", "up", "down"))]
    total = target.total - down_bias_kernel(mlp, trace)
    found = positive_scales(neuron_kernels(mlp, trace).sides, targets, total, matching)
    scales = [scale.float() for scale in found]
    return with_scales(mlp, scales[0], scales[-1], scales[1] if len(scales) == 3 else None)


def positive_scales(
    sides: Sequence[Float[Tensor, "neurons samples samples"]],
    targets: Sequence[Float64[Tensor, "samples samples"]],
    total: Float64[Tensor, "samples samples"],
    matching: Matching,
) -> list[Float64[Tensor, " neurons"]]:
    """Minimises |sum_j s_j kappa_j - total|^2 plus the ridge over s > 0; one vector a side.

    `sides` are the kernels of all neurons on each side, `targets` the kernel that each side is to have. The scale of a
    layer is least squares on its own side: the kernels of the sides are so alike that the total cannot tell them apart.
    A side without a kernel gets ones.

    >>> up, down = torch.tensor([[[1.0]]]), torch.tensor([[[2.0]]])
    >>> targets = [torch.tensor([[2.0]]).double(), torch.tensor([[6.0]]).double()]
    >>> scales = positive_scales([up, down], targets, sum(targets), Matching("layer"))
    >>> [side.tolist() for side in scales]
    [[2.0], [3.0]]
    """
    layer = [_side_scale(side, target) for side, target in zip(sides, targets, strict=True)]
    return layer if matching.per == "layer" else _neuron_scales(sides, total, layer, matching.ridge)


def _side(target: BlockKernels, name: str) -> Tensor:
    """Kernel of a matrix and its bias. `down` without, since no scale changes `down_bias`."""
    bias = target.blocks.get(f"{name}_bias")
    return target.blocks[name] if bias is None or name == "down" else target.blocks[name] + bias


def _side_scale(kernels: Tensor, target: Tensor) -> Float64[Tensor, " neurons"]:
    """Least squares in one unknown for one side, for each of its neurons."""
    ones = torch.ones(len(kernels), dtype=torch.float64, device=kernels.device)
    kernel = weighted_sum(kernels, ones)
    size, product = float((kernel * kernel).sum()), float((kernel * target).sum())
    return ones * (product / size) if size > 0 and product > 0 else ones


def _neuron_scales(
    sides: Sequence[Tensor], total: Tensor, layer_scales: Sequence[Tensor], ridge: float
) -> list[Float64[Tensor, " neurons"]]:
    """One scale per neuron by bounded ridge regression, pulled towards `layer_scales`.

    Solved in units of `layer_scales`, so that all sides count alike. The Gram matrix of the kernels is never made: with
    thousands of neurons it is larger than the kernels, and takes longer than the solution.
    """
    lengths, scale = [len(side) for side in sides], torch.cat(list(layer_scales))

    def products(kernel: Tensor) -> Tensor:
        return torch.cat([inner_products(side, kernel) for side in sides]) * scale

    right = products(total)
    weight = ridge * float((torch.cat([squared_norms(side) for side in sides]) * scale.square()).mean())
    if weight == 0:  # all kernels are zero
        return list(layer_scales)

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.from_numpy(at).to(scale)
        parts = zip(sides, (x * scale).split(lengths), strict=True)
        product = products(torch.stack([weighted_sum(side, part) for side, part in parts]).sum(0))
        away = x - 1
        value = x @ product / 2 - right @ x + weight * (away @ away) / 2
        return float(value) / weight, ((product - right + weight * away) / weight).cpu().numpy()

    # The loss is over `weight`, so that the tolerances are relative; far below what fp32 scales
    # keep. Not tuned.
    options = {"maxiter": _MAX_ITERATIONS, "ftol": 1e-12, "gtol": 1e-9}
    bounds, start = [(_SMALLEST, None)] * len(scale), np.ones(len(scale))
    solution = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return list((torch.from_numpy(solution.x).to(scale) * scale).split(lengths))
