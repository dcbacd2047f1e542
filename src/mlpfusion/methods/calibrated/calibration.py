"""Data for a calibrated method: inputs, cotangents and target outputs of one block."""

from dataclasses import dataclass, replace

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

    `targets` are in fp32 or better, `down` bias included; None stands for the outputs of the block itself. They are
    others when blocks are compressed one after the other: then the inputs come from the compressed blocks before,
    targets and cotangents from the original model. `weights`, if any, multiply the error of each token. `num_samples`
    are all samples, where the trace of an expert has only those with a token that reaches it. Raises `InputError` if
    the shapes differ.
    """

    trace: BlockTrace
    targets: Float[Tensor, "tokens hidden"] | None = None
    weights: Float[Tensor, " tokens"] | None = None
    num_samples: int | None = None

    def __post_init__(self) -> None:
        if self.targets is not None and self.targets.shape != self.trace.inputs.shape:
            shapes = f"{tuple(self.trace.inputs.shape)} and {tuple(self.targets.shape)}"
            raise InputError(f"`trace` and `targets` must be of one shape (tokens, hidden), got {shapes}")
        if self.weights is not None and self.weights.shape != self.trace.inputs.shape[:1]:
            raise InputError(f"`weights` must be of {self.trace.num_tokens} tokens, got {tuple(self.weights.shape)}")

    def targets_of(self, mlp: MLP) -> Float[Tensor, "tokens hidden"]:
        """Returns the targets, by default the outputs of `mlp` at the inputs.

        >>> trace = BlockTrace(torch.ones(2, 3), torch.ones(2, 3), torch.tensor([2]))
        >>> Calibration(trace).targets_of(MLP(torch.eye(3), torch.eye(3), torch.relu)).shape
        torch.Size([2, 3])
        """
        if self.targets is not None:
            return self.targets
        block = in_compute_dtype(mlp)
        return forward(block, self.trace.inputs.to(block.up))

    def with_targets(self, mlp: MLP) -> "Calibration":
        """Returns the calibration with `targets_of(mlp)` in memory."""
        return replace(self, targets=self.targets_of(mlp))

    def select(self, samples: Int[Tensor, " chosen"]) -> "Calibration":
        """Copies the samples with the given indices.

        Raises `InputError` for an index out of range.
        """
        tokens = self.trace.token_indices(samples)
        targets, weights = (None if one is None else one[tokens.to(one.device)] for one in (self.targets, self.weights))
        return Calibration(self.trace.select(samples), targets, weights)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Calibration":
        """Moves all tensors to `device` and casts to `dtype`. Shares memory if possible."""
        targets, weights = (
            None if one is None else one.to(device=device, dtype=dtype) for one in (self.targets, self.weights)
        )
        return Calibration(self.trace.to(device, dtype), targets, weights, self.num_samples)

    def check(self, mlp: MLP) -> None:
        """Raises `InputError` for another hidden size than the block's, or NaN or Inf."""
        if self.trace.hidden_size != mlp.hidden_size:
            raise InputError(f"`calibration` must have hidden size {mlp.hidden_size}, got {self.trace.hidden_size}")
        values = {"inputs": self.trace.inputs, "cotangents": self.trace.cotangents}
        values |= {"targets": self.targets, "weights": self.weights}
        for name, tensor in values.items():
            if tensor is not None:
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
