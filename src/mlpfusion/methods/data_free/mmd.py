"""Maximum mean discrepancy (paper, A.2): fewer points with the distribution of the neurons."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from mlpfusion.checks import check_fields, check_range
from mlpfusion.errors import shown
from mlpfusion.kinds.outcome import Narrowed
from mlpfusion.methods.block import Block
from mlpfusion.mlp import MLP, canonical_order, neurons, replace_neurons

VARIANTS = ("down", "eq10", "code")
# The paper's code (A.2): AdamW at 1e-2 with decay 1e-2, 100 steps, a sum of five kernels.
_LEARNING_RATE = 1e-2
_WEIGHT_DECAY = 1e-2
_NUM_KERNELS = 5


@dataclass(frozen=True)
class MMD:
    """Moves points by AdamW until they have the distribution of the neurons.

    The distance is the maximum mean discrepancy. `num_steps` steps of AdamW are made. A sum over
    neurons becomes num_neurons / k times a sum over k points. `variant` places the factor
    num_neurons / k: on `down` alone ("down"), on `down` and its bias ("eq10", the paper as
    printed), or its root on the activated map, on `down` and on its bias ("code", the paper's
    code).

    >>> MMD(variant="eq10")
    MMD(num_steps=100, variant='eq10')
    """

    num_steps: int = 100
    variant: str = "down"

    def __post_init__(self) -> None:
        check_fields(self)
        check_range("num_steps", self.num_steps, 1)
        if self.variant not in VARIANTS:
            raise ValueError(f"`variant` must be one of {', '.join(VARIANTS)}, got {shown(self.variant)}")


def compress(block: Block, config: MMD) -> Narrowed:
    """Moves points, started from random neurons, to the distribution of all. Metrics: MMD^2."""
    mlp = block.mlp
    order = canonical_order(mlp)
    rows = neurons(mlp)[order]
    indices = torch.randperm(len(rows), generator=block.generator)[: block.num_neurons]
    start = rows[indices.to(rows.device)]
    points = optimise_points(rows, start, config.num_steps)
    metrics = {"mmd_start": squared_mmd(rows, start), "mmd": squared_mmd(rows, points)}
    return Narrowed(_scaled(replace_neurons(mlp, points), mlp.num_neurons / block.num_neurons, config.variant), metrics)


@torch.no_grad()
def optimise_points(
    rows: Float[Tensor, "neurons features"], start: Float[Tensor, "points features"], num_steps: int
) -> Float[Tensor, "points features"]:
    """Takes `num_steps` full-batch AdamW steps on MMD^2(`rows`, points) from `start`.

    Neither argument is changed.
    """
    points = start.clone()
    center = rows.mean(0)  # distances do not know it, and short rows have smaller rounding errors
    centered = rows - center
    between_rows = float(_distances(centered, centered).sum())
    optimizer = torch.optim.AdamW([points], lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    for _ in range(num_steps):
        points.grad = mmd_gradient(centered, points - center, between_rows)
        optimizer.step()
    return points.detach()


def mmd_gradient(
    rows: Float[Tensor, "neurons features"], points: Float[Tensor, "points features"], between_rows: float
) -> Float[Tensor, "points features"]:
    """Gradient of MMD^2 by `points`, at a fixed bandwidth. Pairs at distance 0 contribute 0.

    `between_rows` is the sum of all distances among `rows`, constant over the steps.
    """
    within, across = _distances(points, points), _distances(points, rows)
    num_points, num_rows = across.shape
    bandwidth = _bandwidth(between_rows + float(within.sum()) + 2 * float(across.sum()), num_rows + num_points)
    # d|x - y| / dx = (x - y) / |x - y|, so a matrix of slopes / distances gives the gradient by one
    # product
    within = _slopes_over_distances(within, bandwidth).mul_(2 / num_points**2)
    across = _slopes_over_distances(across, bandwidth).mul_(-2 / (num_points * num_rows))
    total = within.sum(1) + across.sum(1)
    return total[:, None] * points - within @ points - across @ rows


def squared_mmd(rows: Float[Tensor, "neurons features"], points: Float[Tensor, "points features"]) -> float:
    """mean K(rows, rows) + mean K(points, points) - 2 mean K(rows, points) (paper, Eq. 8).

    Diagonals are included.

    >>> squared_mmd(torch.eye(3), torch.eye(3))
    0.0
    """
    center = rows.mean(0)
    rows, points = rows - center, points - center
    pairs = [_distances(rows, rows), _distances(points, points), _distances(rows, points)]
    sums = [float(pair.sum(dtype=torch.float64)) for pair in pairs]
    bandwidth = _bandwidth(sums[0] + sums[1] + 2 * sums[2], len(rows) + len(points))
    means = [float(_kernel(pair, bandwidth).mean(dtype=torch.float64)) for pair in pairs]
    return means[0] + means[1] - 2 * means[2]


def _kernel(distances: Tensor, bandwidth: float) -> Tensor:
    """Sum over i = 0..4 of exp(-distance / (2^i bandwidth)): one exponential, four squarings."""
    # the widest kernel; each square of an exponential halves the bandwidth
    power = torch.exp(distances / (-bandwidth * 2 ** (_NUM_KERNELS - 1)))
    total = power.clone()
    for _ in range(_NUM_KERNELS - 1):
        power.square_()
        total += power
    return total


def _slopes_over_distances(distances: Tensor, bandwidth: float) -> Tensor:
    """Derivative of the kernel by the distance, over the distance; 0 where the distance is 0."""
    widest = bandwidth * 2 ** (_NUM_KERNELS - 1)
    power = torch.exp(distances / -widest)
    slope = power / -widest
    for i in range(1, _NUM_KERNELS):
        power.square_()
        slope.sub_(power, alpha=2**i / widest)
    return slope.div_(distances).masked_fill_(distances == 0, 0.0)


def _bandwidth(sum_of_distances: float, number: int) -> float:
    """A quarter of the mean distance between two of `number` stacked points; 1 if all are equal."""
    return sum_of_distances / (number * (number - 1)) / 4 or 1.0


def _distances(first: Tensor, second: Tensor) -> Tensor:
    """Euclidean distances (first, second) by one GEMM; exactly 0 below the rounding error."""
    squares = first.square().sum(1)[:, None] + second.square().sum(1)
    # |x|^2 + |y|^2 - 2 <x, y> of equal rows is a few eps off zero; 16 leaves room for long rows.
    # Not tuned.
    rounding = 16 * torch.finfo(first.dtype).eps * squares
    squared = torch.addmm(squares, first, second.T, alpha=-2)
    return squared.masked_fill_(squared <= rounding, 0.0).sqrt_()


def _scaled(mlp: MLP, ratio: float, variant: str) -> MLP:
    """Multiplies tensors by powers of `ratio` = num_neurons / k, placed by `variant`."""
    activated = ("up", "up_bias") if mlp.gate is None else ("gate", "gate_bias")
    factors = {
        "down": {"down": ratio},
        "eq10": {"down": ratio, "down_bias": ratio},
        "code": dict.fromkeys((*activated, "down", "down_bias"), ratio**0.5),
    }[variant]
    tensors = mlp.tensors()
    return replace(mlp, **{name: tensors[name] * factor for name, factor in factors.items() if name in tensors})
