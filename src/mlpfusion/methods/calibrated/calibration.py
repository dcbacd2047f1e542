"""Data for a calibrated method: inputs, cotangents and target outputs of one block."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlpfusion.checks import check_finite
from mlpfusion.errors import InputError
from mlpfusion.kernel import BlockTrace
from mlpfusion.mlp import MLP, forward, in_compute_dtype

# Share of a squared token weight that follows the gradient; the rest is even. With 0.98 only a few
# tokens count, and the model is farther from the original after 100 steps (0.207 for 0.184); 0.5 is
# worse throughout (LOG, 2026-11-21).
FOCUS = 0.9


@dataclass(frozen=True)
class Calibration:
    """Unlabelled trace of one block, with the target outputs at its tokens.

    `targets` are the outputs of the original block, `down` bias included, in fp32 or better. They
    belong to the inputs of the trace, except when blocks are compressed one after the other: then
    the inputs come from the compressed blocks before, targets and cotangents from the original
    model. `weights`, if any, multiply the error of each token. Raises `InputError` if the shapes
    differ.
    """

    trace: BlockTrace
    targets: Float[Tensor, "tokens hidden"]
    weights: Float[Tensor, " tokens"] | None = None

    def __post_init__(self) -> None:
        if self.targets.shape != self.trace.inputs.shape:
            shapes = f"{tuple(self.trace.inputs.shape)} and {tuple(self.targets.shape)}"
            raise InputError(f"`trace` and `targets` must be of one shape (tokens, hidden), got {shapes}")
        if self.weights is not None and self.weights.shape != self.targets.shape[:1]:
            raise InputError(f"`weights` must be of {len(self.targets)} tokens, got {tuple(self.weights.shape)}")

    @classmethod
    def of(cls, mlp: MLP, trace: BlockTrace, weights: Float[Tensor, " tokens"] | None = None) -> "Calibration":
        """Takes the outputs of `mlp` at the inputs of `trace` as targets.

        >>> trace = BlockTrace(torch.ones(2, 3), torch.ones(2, 3), torch.tensor([2]))
        >>> Calibration.of(MLP(torch.eye(3), torch.eye(3), torch.relu), trace).targets.shape
        torch.Size([2, 3])
        """
        block = in_compute_dtype(mlp)
        return cls(trace, forward(block, trace.inputs.to(block.up)), weights)

    def select(self, samples: Int[Tensor, " chosen"]) -> "Calibration":
        """Copies the samples with the given indices.

        Raises `InputError` for an index out of range.
        """
        tokens = self.trace.token_indices(samples).to(self.targets.device)
        weights = None if self.weights is None else self.weights[tokens]
        return Calibration(self.trace.select(samples), self.targets[tokens], weights)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Calibration":
        """Moves all tensors to `device` and casts to `dtype`. Shares memory if possible."""
        weights = None if self.weights is None else self.weights.to(device=device, dtype=dtype)
        return Calibration(self.trace.to(device, dtype), self.targets.to(device=device, dtype=dtype), weights)

    def check(self, mlp: MLP) -> None:
        """Raises `InputError` for another hidden size than the block's, or NaN or Inf."""
        if self.trace.hidden_size != mlp.hidden_size:
            raise InputError(f"`calibration` must have hidden size {mlp.hidden_size}, got {self.trace.hidden_size}")
        values = {"inputs": self.trace.inputs, "cotangents": self.trace.cotangents, "targets": self.targets}
        values |= {} if self.weights is None else {"weights": self.weights}
        for name, tensor in values.items():
            check_finite(tensor, "`calibration`", f" in its {name}")


def token_weights(cotangents: Float[Tensor, "tokens hidden"], focus: float = FOCUS) -> Float[Tensor, " tokens"]:
    """Weights the errors of tokens by their effect on f, in fp32 or better.

    To first order f changes at token t by <d_t, error_t>, d_t the cotangent. So

        weight_t^2 = focus |d_t|^2 / mean_u |d_u|^2 + (1 - focus),

    with mean 1. All weights are 1 if no token has a gradient.

    >>> token_weights(torch.ones(3, 4)).tolist()
    [1.0, 1.0, 1.0]
    """
    squares = cotangents.double().square().sum(1)
    mean = squares.mean()
    relative = squares / mean if mean > 0 else torch.ones_like(squares)
    weights = (1 - focus + focus * relative).sqrt()
    return weights.to(torch.promote_types(cotangents.dtype, torch.float32))
