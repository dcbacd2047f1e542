"""The two diagonals matched to a kernel: positive least squares in the kernels of the neurons.

The forward pass depends on the effective weights only, the Adam kernel is linear in the scales (`kernel.neurons`). So
the scales can be chosen for the kernel alone, at no cost to the output.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from scipy.optimize import minimize
from torch import Tensor

from mlpfusion.errors import InputError
from mlpfusion.kernel.accumulate import BlockKernels
from mlpfusion.kernel.neurons import NeuronProducts, down_bias_kernel, neuron_products, with_scales
from mlpfusion.kernel.trace import BlockTrace
from mlpfusion.mlp import MLP

# No scale is below this share of the mean of its side: the weights that belong to it are divided by it.
_SMALLEST = 1e-2
_MAX_ITERATIONS = 500


@dataclass(frozen=True)
class Matching:
    """How to choose the scales: one number for each `layer` (and side), or for each `neuron`.

    `ridge` draws the numbers of the neurons to that of their layer, in units of the mean diagonal of their Gram matrix.
    Raises `ValueError` for a bad one.
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
    """`mlp` with other scales: it computes the same, up to rounding, and its Adam kernel is as near `target` as can be.

    `trace` is that of `mlp`, `target` the Adam kernel of another block of its layout on the same samples. In a gated
    block `up` gets a scale of its own, so all three matrices are matched. Raises `InputError` if the samples differ in
    number.
    """
    if len(target.total) != trace.num_samples:
        raise InputError(f"`target` must be of {trace.num_samples} samples, got {len(target.total)}")
    parts = [_side(target, name) for name in (("up", "down") if mlp.gate is None else ("gate", "up", "down"))]
    wanted = torch.stack([*parts, target.total - down_bias_kernel(mlp, trace)])
    scales = positive_scales(neuron_products(mlp, trace, wanted), matching)
    sides = [scale.to(mlp.up.device, torch.float32) for scale in scales]
    return with_scales(mlp, sides[0], sides[-1], sides[1] if len(sides) == 3 else None)


def positive_scales(products: NeuronProducts, matching: Matching) -> tuple[Float64[Tensor, " neurons"], ...]:
    """Positive s that minimise |sum_j s_j kappa_j - total|^2, plus the ridge, one vector a side.

    The targets of `products` are the kernel of each side (the matrices in order, with their biases), then the total.
    The number of a layer is that of least squares on its own side: the kernels of the sides are so alike that the total
    alone cannot tell them apart. Ones for a side without a kernel.
    """
    gram, wanted = products.gram.cpu().numpy(), products.with_target.cpu().numpy()
    num_sides = wanted.shape[1] - 1
    sides = np.arange(len(gram)) // (len(gram) // num_sides)
    numbers = np.array([_number(gram, wanted[:, side], sides == side) for side in range(num_sides)])[sides]
    if matching.per == "neuron":
        numbers = _per_neuron(gram, wanted[:, -1], numbers, matching.ridge)
    return tuple(torch.from_numpy(numbers).chunk(num_sides))


def _side(target: BlockKernels, name: str) -> Tensor:
    """The kernel of a matrix and its bias; `down` without, which no scale changes."""
    bias = target.blocks.get(f"{name}_bias")
    return target.blocks[name] if bias is None or name == "down" else target.blocks[name] + bias


def _number(gram: np.ndarray, wanted: np.ndarray, side: np.ndarray) -> float:
    """Least squares in one unknown for one side."""
    size, product = gram[np.ix_(side, side)].sum(), wanted[side].sum()
    return product / size if size > 0 and product > 0 else 1.0


def _per_neuron(gram: np.ndarray, wanted: np.ndarray, numbers: np.ndarray, ridge: float) -> np.ndarray:
    """One number a neuron, near `numbers`; in units of these, so that no side dominates."""
    scaled, right = gram * np.outer(numbers, numbers), wanted * numbers
    weight = ridge * np.trace(scaled) / len(scaled)
    if weight == 0:
        return numbers

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        away, product = x - 1, scaled @ x
        value = x @ product / 2 - right @ x + weight * (away @ away) / 2
        return value / weight, (product - right + weight * away) / weight

    options = {"maxiter": _MAX_ITERATIONS, "ftol": 1e-12, "gtol": 1e-9}
    bounds = [(_SMALLEST, None)] * len(gram)
    found = minimize(loss, np.ones_like(numbers), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return numbers * found.x
