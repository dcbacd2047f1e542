"""The second map of a narrower block by ridge regression on calibration inputs, and a refinement of all its weights."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from mlpfusion.methods.calibrated.calibration import Calibration
from mlpfusion.mlp import MLP, forward, hidden_activations, in_compute_dtype

_CHUNK_TOKENS = 4096
_HELD_OUT = 0.1  # of the samples
_MIN_HELD_OUT = 8
_CHECKS = 10  # of the held-out samples while refining


def refit_down(
    mlp: MLP,
    inputs: Float[Tensor, "tokens hidden"],
    targets: Float[Tensor, "tokens hidden"],
    ridge: float,
    weights: Float[Tensor, " tokens"] | None = None,
) -> MLP:
    """`mlp` with the `down` (and `down_bias`, where it has one) that brings its outputs nearest to `targets`.

    Least squares over the tokens, whose errors `weights` multiply; the ridge, in units of the mean squared activation,
    draws `down` to what it was, not to zero. Sums and solution are in float64, the dtype of `mlp` is restored.
    """
    gram, right = _normal_equations(mlp, inputs, targets, weights)
    weight = ridge * float(gram.diagonal()[: mlp.num_neurons].mean())
    gram.diagonal()[: mlp.num_neurons] += max(weight, torch.finfo(torch.float64).tiny)
    factor = torch.linalg.cholesky(gram + 1e-12 * gram.diagonal().mean() * torch.eye(len(gram)).to(gram))
    change = torch.cholesky_solve(right, factor)
    fields = {"down": (mlp.down.double() + change[: mlp.num_neurons].T).to(mlp.down.dtype)}
    if mlp.down_bias is not None:
        fields["down_bias"] = (mlp.down_bias.double() + change[-1]).to(mlp.down_bias.dtype)
    return replace(mlp, **fields)


def activation_chunks(
    mlp: MLP, inputs: Float[Tensor, "tokens hidden"], weights: Float[Tensor, " tokens"] | None = None
) -> Iterator[Float[Tensor, "chunk neurons"]]:
    """What enters `down`, some thousand tokens at a time, in fp32 or better; times the weight of its token, if any."""
    block = in_compute_dtype(mlp)
    for x, weight in zip(inputs.split(_CHUNK_TOKENS), _weight_chunks(inputs, weights), strict=True):
        yield weigh(hidden_activations(block, x.to(block.up)), weight)


def weigh(rows: Float[Tensor, "tokens features"], weights: Float[Tensor, " tokens"] | None) -> Tensor:
    """The rows, each times its weight; as they are without weights."""
    return rows if weights is None else rows * weights.to(rows)[:, None]


def _weight_chunks(inputs: Tensor, weights: Tensor | None) -> Sequence[Tensor | None]:
    """The weights of the chunks that `inputs` is split into."""
    return [None] * -(-len(inputs) // _CHUNK_TOKENS) if weights is None else weights.split(_CHUNK_TOKENS)


@dataclass(frozen=True)
class Refinement:
    """Adam on all weights of a block: `num_epochs` over the tokens in steps of `batch_tokens`, rising and falling rate.

    `learning_rate` is in units of the root mean square of each matrix, which also sets that of its bias. Raises
    `ValueError` for a bad one; no epochs, no refinement.
    """

    num_epochs: int
    learning_rate: float = 0.04
    batch_tokens: int = 512

    def __post_init__(self) -> None:
        if self.num_epochs < 0:
            raise ValueError(f"`num_epochs` must be at least 0, got {self.num_epochs}")
        if not self.learning_rate > 0:
            raise ValueError(f"`learning_rate` must be above 0, got {self.learning_rate}")
        if self.batch_tokens < 1:
            raise ValueError(f"`batch_tokens` must be at least 1, got {self.batch_tokens}")


def split_samples(calibration: Calibration, generator: torch.Generator) -> tuple[Calibration, Calibration]:
    """The samples to fit on, and the tenth that is held out to judge by; all for both where that were less than eight.

    Of a handful of samples none can be spared, and a choice by them would be noise.
    """
    order = torch.randperm(calibration.trace.num_samples, generator=generator)
    num_held = int(_HELD_OUT * len(order))
    if num_held < _MIN_HELD_OUT:
        return calibration, calibration
    return calibration.select(order[num_held:].sort().values), calibration.select(order[:num_held].sort().values)


def refine(mlp: MLP, used: Calibration, held: Calibration, refinement: Refinement, generator: torch.Generator) -> MLP:
    """`mlp` after training on the mean length of its output error on `used`, at the step with the least on `held`.

    That can be the start. In the dtype of `mlp`; no argument is changed.
    """
    compute = in_compute_dtype(mlp).up.dtype
    used, held = (part.to(mlp.up.device, compute) for part in (used, held))
    steps = refinement.num_epochs * -(-used.trace.num_tokens // refinement.batch_tokens)
    best, best_error = mlp, output_error(mlp, held)
    for step, state in enumerate(_states(mlp, used, refinement, steps, generator), start=1):
        if step == steps or step % -(-steps // _CHECKS) == 0:
            error = output_error(state, held)
            if error < best_error:
                best, best_error = replace(state, **{n: t.clone() for n, t in state.tensors().items()}), error
    return replace(best, **{name: tensor.to(mlp.up.dtype) for name, tensor in best.tensors().items()})


@torch.no_grad()
def output_error(mlp: MLP, calibration: Calibration) -> float:
    """Mean length of the output error over the mean length of the targets; 0 if these are 0 and met. Both weighed."""
    block = in_compute_dtype(mlp)
    outputs = forward(block, calibration.trace.inputs.to(block.up))
    error = weigh((outputs - calibration.targets).double(), calibration.weights).norm(dim=1).mean()
    size = weigh(calibration.targets.double(), calibration.weights).norm(dim=1).mean()
    return float(error / size) if size > 0 else float(error)


def _states(
    mlp: MLP, calibration: Calibration, refinement: Refinement, steps: int, generator: torch.Generator
) -> Iterator[MLP]:
    """The block after every step; its tensors are those that the next step changes."""
    if not steps:
        return
    block = in_compute_dtype(mlp)
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in block.tensors().items()}
    rates = {name: refinement.learning_rate * _size(block, name) for name in leaves}
    groups = [{"params": [leaf], "lr": rates[name]} for name, leaf in leaves.items()]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in groups], total_steps=steps + 1, pct_start=0.1, cycle_momentum=False
    )
    inputs, targets, weights = calibration.trace.inputs, calibration.targets, calibration.weights
    size = float(weigh(targets.double(), weights).norm(dim=1).mean()) or 1.0
    for _ in range(refinement.num_epochs):
        order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
        for tokens in order.split(refinement.batch_tokens):
            with torch.enable_grad():
                error = forward(replace(block, **leaves), inputs[tokens]) - targets[tokens]
                error = weigh(error, None if weights is None else weights[tokens])
                gradients = torch.autograd.grad(error.norm(dim=1).mean() / size, list(leaves.values()))
            for leaf, gradient in zip(leaves.values(), gradients, strict=True):
                leaf.grad = gradient
            optimizer.step()
            schedule.step()
            yield replace(block, **{name: leaf.detach() for name, leaf in leaves.items()})


def _size(block: MLP, name: str) -> float:
    """Root mean square of a matrix, or of that to which a bias belongs; 1 for a matrix of zeros."""
    return float(getattr(block, name.removesuffix("_bias")).double().square().mean().sqrt()) or 1.0


def _normal_equations(
    mlp: MLP,
    inputs: Float[Tensor, "tokens hidden"],
    targets: Float[Tensor, "tokens hidden"],
    weights: Float[Tensor, " tokens"] | None,
) -> tuple[Tensor, Tensor]:
    """A^T A and A^T (targets - outputs), means over the tokens, A the activations and a column of ones for a bias.

    With weights, the rows of both are weighed.
    """
    block, size = in_compute_dtype(mlp), mlp.num_neurons + (mlp.down_bias is not None)
    gram = torch.zeros(size, size, dtype=torch.float64, device=mlp.up.device)
    right = gram.new_zeros(size, mlp.hidden_size)
    chunks = activation_chunks(mlp, inputs), targets.split(_CHUNK_TOKENS), _weight_chunks(inputs, weights)
    for activations, wanted, weight in zip(*chunks, strict=True):
        outputs = torch.nn.functional.linear(activations, block.down, block.down_bias)
        residual = (wanted.double() - outputs.double()).to(outputs)
        ones = activations.new_ones(len(activations), size - mlp.num_neurons)
        columns, residual = weigh(torch.cat([activations, ones], dim=1), weight), weigh(residual, weight)
        gram += (columns.T @ columns).double() / len(inputs)
        right += (columns.T @ residual).double() / len(inputs)
    return gram, right
