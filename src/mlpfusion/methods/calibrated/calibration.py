"""What a calibrated method gets to see beside the block: real inputs, cotangents and the outputs to keep."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlpfusion.checks import check_finite
from mlpfusion.errors import InputError
from mlpfusion.kernel import BlockTrace
from mlpfusion.mlp import MLP, forward, in_compute_dtype

# The share of the square of a token's weight that its gradient sets; the rest is even.
FOCUS = 0.9


@dataclass(frozen=True)
class Calibration:
    """The trace of one block, unlabelled, and what should leave the block at its tokens.

    `targets` are the outputs of the original block, `down` bias included, in fp32 or better. They belong to the inputs
    of the trace, unless blocks are compressed one after the other: then the inputs are what the compressed blocks
    before this one leave, the targets and the cotangents those of the original model. `weights`, if any, multiply the
    error of each token. Raises `InputError` if the shapes differ.
    """

    trace: BlockTrace
    targets: Float[Tensor, "tokens hidden"]
    weights: Float[Tensor, " tokens"] | None = None

    def __post_init__(self) -> None:
        if self.targets.shape != self.trace.inputs.shape:
            found = f"{tuple(self.trace.inputs.shape)} and {tuple(self.targets.shape)}"
            raise InputError(f"`trace` and `targets` must be of one shape (tokens, hidden), got {found}")
        if self.weights is not None and self.weights.shape != self.targets.shape[:1]:
            raise InputError(f"`weights` must be of {len(self.targets)} tokens, got {tuple(self.weights.shape)}")

    @classmethod
    def of(cls, mlp: MLP, trace: BlockTrace, weights: Float[Tensor, " tokens"] | None = None) -> "Calibration":
        """The calibration with the outputs of `mlp` at the inputs of `trace` for targets."""
        block = in_compute_dtype(mlp)
        return cls(trace, forward(block, trace.inputs.to(block.up)), weights)

    def select(self, samples: Int[Tensor, " chosen"]) -> "Calibration":
        """The calibration on these samples, in this order; a copy. Raises `InputError` as `BlockTrace.select` does."""
        tokens = self.trace.token_indices(samples).to(self.targets.device)
        weights = None if self.weights is None else self.weights[tokens]
        return Calibration(self.trace.select(samples), self.targets[tokens], weights)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Calibration":
        """The calibration on this device and its values in this dtype; shares memory where nothing changes."""
        weights = None if self.weights is None else self.weights.to(device=device, dtype=dtype)
        return Calibration(self.trace.to(device, dtype), self.targets.to(device=device, dtype=dtype), weights)

    def check(self, mlp: MLP) -> None:
        """Raises `InputError` if the block has another hidden size, or if there is NaN or Inf in it."""
        if self.trace.hidden_size != mlp.hidden_size:
            raise InputError(f"`calibration` must have hidden size {mlp.hidden_size}, got {self.trace.hidden_size}")
        values = {"inputs": self.trace.inputs, "cotangents": self.trace.cotangents, "targets": self.targets}
        values |= {} if self.weights is None else {"weights": self.weights}
        for name, tensor in values.items():
            check_finite(tensor, "`calibration`", f" in its {name}")


def token_weights(cotangents: Float[Tensor, "tokens hidden"], focus: float = FOCUS) -> Float[Tensor, " tokens"]:
    """Weights for the errors of tokens by what f makes of them, in fp32 or better.

    To first order f changes by the product of cotangent and error at each token, so the square of a weight is `focus`
    times the squared length of the cotangent over the mean of all, plus 1 - `focus`. The mean of the squares is 1; all
    weights are 1 where no token has a gradient.
    """
    squares = cotangents.double().square().sum(1)
    mean = squares.mean()
    relative = squares / mean if mean > 0 else torch.ones_like(squares)
    weights = (1 - focus + focus * relative).sqrt()
    return weights.to(torch.promote_types(cotangents.dtype, torch.float32))
