"""Refit of `down` by ridge regression, and refinement of all weights, on calibration data."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlpfusion.cluster.gram import gram_matrix
from mlpfusion.methods.calibrated.calibration import Calibration
from mlpfusion.mlp import MLP, clone, forward, hidden_activations, in_compute_dtype, map_tensors, select_neurons

_CHUNK_TOKENS = 4096  # activations of 3,072 neurons in fp32: 50 MB; not tuned
_HELD_OUT = 0.1  # share of the samples; not tuned
_MIN_HELD_OUT = 128  # tokens: of eight sentences, or one window; fewer judge by noise; not tuned
_NUM_CHECKS = 10  # evaluations on the held-out samples during refinement; not tuned


def refit_down(
    mlp: MLP,
    inputs: Float[Tensor, "tokens hidden"],
    targets: Float[Tensor, "tokens hidden"],
    ridge: float,
    weights: Float[Tensor, " tokens"] | None = None,
) -> MLP:
    """Refits `down` and `down_bias` to bring the outputs nearest to `targets`.

    Minimises sum_t weight_t^2 |output_t - target_t|^2 + ridge |down - down_old|^2, `ridge` in units
    of the mean squared activation. A block without `down_bias` gets none. Sums and solution are in
    float64, the result in the dtype of `mlp`.

    >>> mlp = MLP(torch.eye(1), torch.eye(1), torch.relu)
    >>> x = torch.tensor([[1.0], [2.0]])
    >>> round(refit_down(mlp, x, 3 * x, ridge=1e-9).down.item(), 4)
    3.0
    """
    found = moments(mlp, inputs, weights, targets)
    assert found.missing is not None
    return _with_change(mlp, found.gram, found.missing, ridge)


@dataclass(frozen=True)
class Moments:
    """Means over the (weighted) tokens of the activations times each other and times what the outputs lack.

    The last row is that of a 1, if the block has `down_bias`. `missing` is None if the outputs lack nothing.
    """

    gram: Float[Tensor, "columns columns"]
    missing: Float[Tensor, "columns hidden"] | None


def refit_part(mlp: MLP, chosen: Int[Tensor, " chosen"], found: Moments, ridge: float) -> MLP:
    """Returns the neurons `chosen` of `mlp`, refitted as by `refit_down`, from the moments of the whole block.

    What the chosen neurons lack is what the others add to the output, down_rest a_rest, so A^T (target - output) is
    made of columns of A^T A: no token is looked at again.

    >>> mlp = MLP(torch.ones(2, 1), torch.ones(1, 2), torch.relu)
    >>> refit_part(mlp, torch.tensor([0]), moments(mlp, torch.ones(1, 1)), ridge=1e-9).down
    tensor([[2.]])
    """
    rest = torch.ones(mlp.num_neurons, dtype=torch.bool, device=chosen.device).index_fill(0, chosen, value=False)
    kept = torch.cat([chosen, torch.arange(mlp.num_neurons, len(found.gram), device=chosen.device)])
    rows = found.gram[kept]
    right = rows[:, : mlp.num_neurons][:, rest] @ mlp.down.double()[:, rest].T
    if found.missing is not None:
        right += found.missing[kept]
    return _with_change(select_neurons(mlp, chosen), rows[:, kept], right, ridge)


def _with_change(mlp: MLP, gram: Tensor, right: Tensor, ridge: float) -> MLP:
    """`mlp` with its `down` and `down_bias` changed by (gram + ridge)^-1 right. Overwrites `gram`."""
    weight = ridge * float(gram.diagonal()[: mlp.num_neurons].mean())
    gram.diagonal()[: mlp.num_neurons] += max(weight, torch.finfo(torch.float64).tiny)
    # 1e-12 of the mean diagonal, far below the ridge and above float64's rounding, keeps Cholesky
    # from failing when neurons or the bias column are collinear
    gram.diagonal().add_(1e-12 * gram.diagonal().mean())
    change = torch.cholesky_solve(right, torch.linalg.cholesky(gram))
    fields = {"down": (mlp.down.double() + change[: mlp.num_neurons].T).to(mlp.down.dtype)}
    if mlp.down_bias is not None:
        fields["down_bias"] = (mlp.down_bias.double() + change[-1]).to(mlp.down_bias.dtype)
    return replace(mlp, **fields)


def moments(
    mlp: MLP,
    inputs: Float[Tensor, "tokens hidden"],
    weights: Float[Tensor, " tokens"] | None = None,
    targets: Float[Tensor, "tokens hidden"] | None = None,
) -> Moments:
    """Computes the moments of a block, in float64 from sums of some thousand tokens in fp32 or better."""
    block, size = in_compute_dtype(mlp), mlp.num_neurons + (mlp.down_bias is not None)
    gram = torch.zeros(size, size, dtype=torch.float64, device=mlp.up.device)
    missing = None if targets is None else gram.new_zeros(size, mlp.hidden_size)
    chunks = activation_chunks(mlp, inputs), chunks_like(inputs, targets), chunks_like(inputs, weights)
    for activations, target, weight in zip(*chunks, strict=True):
        ones = activations.new_ones(len(activations), size - mlp.num_neurons)
        columns = weighted(torch.cat([activations, ones], dim=1), weight)
        gram += gram_matrix(columns.T)
        if missing is not None and target is not None:
            outputs = torch.nn.functional.linear(activations, block.down, block.down_bias)
            residual = (target.double() - outputs.double()).to(outputs)
            missing += columns.T @ weighted(residual, weight)
    return Moments(gram / len(inputs), None if missing is None else missing / len(inputs))


def activation_chunks(
    mlp: MLP, inputs: Float[Tensor, "tokens hidden"], weights: Float[Tensor, " tokens"] | None = None
) -> Iterator[Float[Tensor, "chunk neurons"]]:
    """Yields the inputs of `down` for some thousand tokens at a time, in fp32 or better.

    With `weights`, each row is multiplied by the weight of its token.
    """
    block = in_compute_dtype(mlp)
    for x, weight in zip(inputs.split(_CHUNK_TOKENS), chunks_like(inputs, weights), strict=True):
        yield weighted(hidden_activations(block, x.to(block.up)), weight)


def weighted(rows: Float[Tensor, "tokens features"], weights: Float[Tensor, " tokens"] | None) -> Tensor:
    """Multiplies each row by its weight. Without weights, returns the rows.

    >>> weighted(torch.ones(2, 1), torch.tensor([1.0, 3.0])).tolist()
    [[1.0], [3.0]]
    """
    return rows if weights is None else rows * weights.to(rows)[:, None]


def chunks_like(inputs: Tensor, of_tokens: Tensor | None) -> Sequence[Tensor | None]:
    """Splits what belongs to the tokens of `inputs` like them; as many Nones for None."""
    return [None] * -(-len(inputs) // _CHUNK_TOKENS) if of_tokens is None else of_tokens.split(_CHUNK_TOKENS)


@dataclass(frozen=True)
class Refinement:
    """Options of the refinement: Adam on all weights, with a rising and falling rate.

    `num_epochs` passes over the tokens are made (0: no refinement), in steps of `batch_tokens`
    tokens, but at most `max_steps` steps. `learning_rate` is in units of the root mean square of
    each matrix; a bias uses the unit of its matrix. Raises `ValueError` for a bad option.
    """

    num_epochs: int
    learning_rate: float = 0.04
    max_steps: int = 512  # on 21,000 tokens 740 gain 0.7 %, 259 lose 1.6 % (LOG, 2026-11-29)
    batch_tokens: int = 512  # not tuned

    def __post_init__(self) -> None:
        if self.num_epochs < 0:
            raise ValueError(f"`num_epochs` must be at least 0, got {self.num_epochs}")
        if not self.learning_rate > 0:
            raise ValueError(f"`learning_rate` must be above 0, got {self.learning_rate}")
        for name in ("max_steps", "batch_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")

    def num_steps(self, num_tokens: int) -> int:
        """Number of steps on `num_tokens` tokens.

        >>> Refinement(20).num_steps(4096), Refinement(20).num_steps(32768)
        (160, 512)
        """
        return min(self.num_epochs * -(-num_tokens // self.batch_tokens), self.max_steps)


def split_samples(calibration: Calibration, generator: torch.Generator) -> tuple[Calibration, Calibration]:
    """Returns (fit, held_out). A tenth of the samples is held out.

    If that is less than 128 tokens none is held out, and both are the whole calibration: selection on
    a handful of sentences would be noise.
    """
    order = torch.randperm(calibration.trace.num_samples, generator=generator)
    num_held = int(_HELD_OUT * len(order))
    if int(calibration.trace.lengths.cpu()[order[:num_held]].sum()) < _MIN_HELD_OUT:
        return calibration, calibration
    return calibration.select(order[num_held:].sort().values), calibration.select(order[:num_held].sort().values)


def refine_weights(
    mlp: MLP, fit: Calibration, held_out: Calibration, refinement: Refinement, generator: torch.Generator
) -> MLP:
    """Trains all weights on the mean length of the output error on `fit`.

    Returns the state with the smallest error on `held_out`, which can be the start, in the dtype of
    `mlp`. No argument is changed.
    """
    compute = in_compute_dtype(mlp).up.dtype
    fit, held_out = (part.to(mlp.up.device, compute) for part in (fit, held_out))
    steps = refinement.num_steps(fit.trace.num_tokens)
    best, best_error = mlp, output_error(mlp, held_out)
    for step, state in enumerate(_states(mlp, fit, refinement, steps, generator), start=1):
        if step == steps or step % -(-steps // _NUM_CHECKS) == 0:
            error = output_error(state, held_out)
            if error < best_error:
                best, best_error = clone(state), error
    return map_tensors(best, lambda tensor: tensor.to(mlp.up.dtype))


@torch.no_grad()
def output_error(mlp: MLP, calibration: Calibration) -> float:
    """Mean length of the output error over the mean length of the targets, both weighted.

    0 if targets and error are 0. `measure.output_error` is the same without weights and without a
    model.
    """
    block = in_compute_dtype(mlp)
    outputs = forward(block, calibration.trace.inputs.to(block.up))
    targets, weights = calibration.targets, calibration.weights
    assert targets is not None
    error = weighted((outputs - targets).double(), weights).norm(dim=1).mean()
    size = weighted(targets.double(), weights).norm(dim=1).mean()
    return float(error / size) if size > 0 else float(error)


def _states(
    mlp: MLP, calibration: Calibration, refinement: Refinement, steps: int, generator: torch.Generator
) -> Iterator[MLP]:
    """Yields the block after every step. The next step changes its tensors."""
    if not steps:
        return
    block = in_compute_dtype(mlp)
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in block.tensors().items()}
    rates = {name: refinement.learning_rate * _size(block, name) for name in leaves}
    groups = [{"params": [leaf], "lr": rates[name]} for name, leaf in leaves.items()]
    # beta2 = 0.99 averages over 100 of the few hundred steps of a refinement; not compared with
    # 0.999. The rate rises over a tenth of the steps and falls to zero over the rest (not tuned);
    # `steps + 1`, as the schedule is advanced once more after the last step.
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in groups], total_steps=steps + 1, pct_start=0.1, cycle_momentum=False
    )
    inputs, targets, weights = calibration.trace.inputs, calibration.targets, calibration.weights
    assert targets is not None
    size = float(weighted(targets.double(), weights).norm(dim=1).mean()) or 1.0
    for drawn in islice(_token_batches(len(inputs), refinement, generator), steps):
        tokens = drawn.to(inputs.device)
        with torch.enable_grad():
            error = forward(replace(block, **leaves), inputs[tokens]) - targets[tokens]
            error = weighted(error, None if weights is None else weights[tokens])
            # the mean length, not its square: a few tokens have outputs a hundred times as long
            # as the rest
            gradients = torch.autograd.grad(error.norm(dim=1).mean() / size, list(leaves.values()))
        for leaf, gradient in zip(leaves.values(), gradients, strict=True):
            leaf.grad = gradient
        optimizer.step()
        schedule.step()
        yield replace(block, **{name: leaf.detach() for name, leaf in leaves.items()})


def _token_batches(
    num_tokens: int, refinement: Refinement, generator: torch.Generator
) -> Iterator[Int[Tensor, " batch"]]:
    """Yields the tokens of every step, in a new order each epoch."""
    for _ in range(refinement.num_epochs):
        yield from torch.randperm(num_tokens, generator=generator).split(refinement.batch_tokens)


def _size(block: MLP, name: str) -> float:
    """Root mean square of a matrix, or of the matrix of a bias; 1 for a matrix of zeros."""
    return float(block.matrices()[name.removesuffix("_bias")].double().square().mean().sqrt()) or 1.0
