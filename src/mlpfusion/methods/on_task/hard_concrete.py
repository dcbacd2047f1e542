"""Hard-concrete gates (Louizos et al., ICLR 2018): differentiable, in [0, 1], often exactly 0."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

# The interval that s is stretched to, and the temperature, as in FLOP's code.
LOW, HIGH, BETA = -0.1, 1.1, 1.0
_EPSILON = 1e-6  # keeps log u and log(1 - u) finite


class HardConcrete(nn.Module):
    """Multiplies the last axis of x by gates z, drawn anew in each forward pass in training mode.

    z = clamp(1.2 s - 0.1, 0, 1) with s = sigmoid((log u - log(1 - u) + log_alpha) / beta) and u
    uniform from the global generator. In eval mode z = `settled()`.

    >>> gate = HardConcrete(torch.tensor([-torch.inf, torch.inf])).eval()
    >>> gate(torch.ones(2)).tolist()
    [0.0, 1.0]
    """

    def __init__(self, log_alpha: Float[Tensor, " gates"]):
        super().__init__()
        self.log_alpha = nn.Parameter(log_alpha)

    def sample(self) -> Float[Tensor, " gates"]:
        """Draws gates, differentiable in `log_alpha`."""
        u = torch.rand_like(self.log_alpha).clamp(_EPSILON, 1 - _EPSILON)
        s = torch.sigmoid((u.log() - (1 - u).log() + self.log_alpha) / BETA)
        return (s * (HIGH - LOW) + LOW).clamp(0, 1)

    def open_probability(self) -> Float[Tensor, " gates"]:
        """Probability of a gate above 0, differentiable."""
        return torch.sigmoid(self.log_alpha - BETA * math.log(-LOW / HIGH))

    def settled(self) -> Float[Tensor, " gates"]:
        """Value of a gate kept after training: sigmoid(0.8 log_alpha / beta), as in FLOP's code."""
        return torch.sigmoid(0.8 * self.log_alpha / BETA)

    def forward(self, x: Float[Tensor, "*batch gates"]) -> Float[Tensor, "*batch gates"]:
        return x * (self.sample() if self.training else self.settled())
