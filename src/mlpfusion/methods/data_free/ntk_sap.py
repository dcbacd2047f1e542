"""NTK-SAP (Wang et al., ICLR 2023) block by block, without data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mlpfusion.checks import check_above_zero, check_fields, check_range
from mlpfusion.kinds.outcome import Masked
from mlpfusion.methods.block import Block
from mlpfusion.methods.masking import apply_mask, best_masks
from mlpfusion.mlp import MLP, canonical_order, forward, in_compute_dtype, select_neurons

Matrices = dict[str, Float[Tensor, "out in"]]
Mask = dict[str, Bool[Tensor, "out in"]]
# A draw is in memory as a whole.
MAX_TOKENS = 2**20


@dataclass(frozen=True)
class NTKSAP:
    """Zeroes the weights with the least effect on the trace of the neural tangent kernel.

    Inputs are `num_tokens` Gaussian tokens of `mean` and `std` a draw, nearly the output of a
    LayerNorm without scale and shift. Each of `num_rounds` rounds prunes a little further, by
    scores from `num_draws` draws. `epsilon` is the length of the step of the weights in the finite
    difference of the trace.

    >>> NTKSAP(num_rounds=5).num_draws
    5
    """

    num_rounds: int = 20  # rounds, draws, tokens and epsilon are not tuned here
    num_draws: int = 5
    num_tokens: int = 64
    epsilon: float = 0.01
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_range("num_rounds", self.num_rounds, 1)
        check_range("num_draws", self.num_draws, 1)
        check_range("num_tokens", self.num_tokens, 1, MAX_TOKENS)
        check_above_zero("epsilon", self.epsilon)
        check_above_zero("std", self.std)


def compress(block: Block, config: NTKSAP) -> Masked:
    """Zeroes the weights with the lowest scores, ranked block by block: none is emptied."""
    order = canonical_order(block.mlp)
    ordered = in_compute_dtype(select_neurons(block.mlp, order))
    mask = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in ordered.matrices().items()}
    for step in range(1, config.num_rounds + 1):
        scores = saliency(ordered, mask, config, block.generator)
        # saliencies are at least 0, so masked weights rank last and never come back
        scores = {name: score.masked_fill(~mask[name], -1.0) for name, score in scores.items()}
        mask = best_masks([scores], block.keep_ratio ** (step / config.num_rounds))[0]
    back = order.argsort()
    return apply_mask(block.mlp, {name: part[:, back] if name == "down" else part[back] for name, part in mask.items()})


def saliency(mlp: MLP, mask: Mask, config: NTKSAP, generator: torch.Generator) -> Matrices:
    """|d/dm_j of the sum of |f(x; m o w) - f(x; m o (w + epsilon z))|^2| for each entry j.

    f is the output of the block, w its matrices (biases are not moved), m the mask shared by both
    copies. z ~ N(0, I) and x are drawn anew for each of `num_draws` draws; the gradients are added
    before the absolute value.
    """
    weights = mlp.matrices()
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for _ in range(config.num_draws):
        x = config.mean + config.std * _gaussian((config.num_tokens, mlp.hidden_size), weights["up"], generator)
        noise = {name: _gaussian(weight.shape, weight, generator) for name, weight in weights.items()}
        with torch.enable_grad():
            leaves = {name: part.to(weights[name].dtype).requires_grad_() for name, part in mask.items()}
            change = output_change(mlp, leaves, x, noise, config.epsilon)
            gradients = torch.autograd.grad(change, list(leaves.values()))
        for name, gradient in zip(leaves, gradients, strict=True):
            total[name] += gradient
    return {name: score.abs() for name, score in total.items()}


def output_change(
    mlp: MLP, mask: Matrices, x: Float[Tensor, "tokens hidden"], noise: Matrices, epsilon: float
) -> Float[Tensor, ""]:
    """Sum over tokens of |f(x; m o w) - f(x; m o (w + epsilon z))|^2 (NTK-SAP, Eq. 7).

    Divided by epsilon^2, its mean over z tends to the trace of the neural tangent kernel of the
    matrices.
    """
    weights = mlp.matrices()
    at_rest = replace(mlp, **{name: weights[name] * part for name, part in mask.items()})
    moved = replace(mlp, **{name: (weights[name] + epsilon * noise[name]) * part for name, part in mask.items()})
    return (forward(at_rest, x) - forward(moved, x)).square().sum()


def _gaussian(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=like.dtype).to(like.device)
