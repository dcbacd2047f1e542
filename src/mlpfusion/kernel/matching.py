"""Two diagonals matched to a kernel: positive least squares in the kernels of the neurons.

The forward pass depends on the effective weights only, and the Adam kernel is linear in the scales
(`kernel.neurons`). So the scales can be chosen for the kernel alone, at no cost to the output.
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
    parts = [_side(target, name) for name in (("up", "down") if mlp.gate is None else ("gate", "up", "down"))]
    targets = torch.stack([*parts, target.total - down_bias_kernel(mlp, trace)])
    scales = positive_scales(neuron_products(mlp, trace, targets), matching)
    sides = [scale.to(mlp.up.device, torch.float32) for scale in scales]
    return with_scales(mlp, sides[0], sides[-1], sides[1] if len(sides) == 3 else None)


def positive_scales(products: NeuronProducts, matching: Matching) -> tuple[Float64[Tensor, " neurons"], ...]:
    """Minimises |sum_j s_j kappa_j - total|^2 plus the ridge over s > 0; one vector a side.

    The targets of `products` are the kernel of each side (the matrices in order, with their
    biases), then the total. The scale of a layer is least squares on its own side: the kernels of
    the sides are so alike that the total cannot tell them apart. A side without a kernel gets ones.

    >>> with_target = torch.tensor([[2.0, 0.0, 2.0], [0.0, 3.0, 3.0]]).double()
    >>> scales = positive_scales(NeuronProducts(torch.eye(2).double(), with_target), Matching("layer"))
    >>> [side.tolist() for side in scales]
    [[2.0], [3.0]]
    """
    gram, with_targets = products.gram.cpu().numpy(), products.with_target.cpu().numpy()
    num_sides = with_targets.shape[1] - 1
    sides = np.arange(len(gram)) // (len(gram) // num_sides)
    side_scales = [_side_scale(gram, with_targets[:, side], sides == side) for side in range(num_sides)]
    scales = np.array(side_scales)[sides]
    if matching.per == "neuron":
        scales = _neuron_scales(gram, with_targets[:, -1], scales, matching.ridge)
    return tuple(torch.from_numpy(scales).chunk(num_sides))


def _side(target: BlockKernels, name: str) -> Tensor:
    """Kernel of a matrix and its bias. `down` without, since no scale changes `down_bias`."""
    bias = target.blocks.get(f"{name}_bias")
    return target.blocks[name] if bias is None or name == "down" else target.blocks[name] + bias


def _side_scale(gram: np.ndarray, with_target: np.ndarray, side: np.ndarray) -> float:
    """Least squares in one unknown for one side."""
    size, product = gram[np.ix_(side, side)].sum(), with_target[side].sum()
    return product / size if size > 0 and product > 0 else 1.0


def _neuron_scales(gram: np.ndarray, with_target: np.ndarray, layer_scales: np.ndarray, ridge: float) -> np.ndarray:
    """One scale per neuron by bounded ridge regression, pulled towards `layer_scales`.

    Solved in units of `layer_scales`, so that `up` and `down` count alike.
    """
    scaled, right = gram * np.outer(layer_scales, layer_scales), with_target * layer_scales
    weight = ridge * np.trace(scaled) / len(scaled)
    if weight == 0:  # all kernels are zero
        return layer_scales

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        away, product = x - 1, scaled @ x
        value = x @ product / 2 - right @ x + weight * (away @ away) / 2
        return value / weight, (product - right + weight * away) / weight

    # The loss is over `weight`, so that the tolerances are relative; far below what fp32 scales
    # keep. Not tuned.
    options = {"maxiter": _MAX_ITERATIONS, "ftol": 1e-12, "gtol": 1e-9}
    bounds = [(_SMALLEST, None)] * len(gram)
    start = np.ones_like(layer_scales)
    solution = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return layer_scales * solution.x
