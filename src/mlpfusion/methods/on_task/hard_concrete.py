"""Hard-concrete gates (Louizos et al., ICLR 2018): numbers in [0, 1], often exactly 0, through which gradients pass."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

# The stretched interval, and the temperature.
LOW, HIGH, BETA = -0.1, 1.1, 1.0
_EPSILON = 1e-6


class HardConcrete(nn.Module):
    """`x * z`, one gate z for each of the last axis of x, drawn anew in every forward pass in training mode.

    z = clamp(1.2 s - 0.1, 0, 1), s = sigmoid((log u - log(1 - u) + log_alpha) / beta), u uniform from the global
    stream. In eval mode z = `settled()`.
    """

    def __init__(self, log_alpha: Float[Tensor, " gates"]):
        super().__init__()
        self.log_alpha = nn.Parameter(log_alpha)

    def sample(self) -> Float[Tensor, " gates"]:
        """Gates at random, differentiable in `log_alpha`."""
        u = torch.rand_like(self.log_alpha).clamp(_EPSILON, 1 - _EPSILON)
        s = torch.sigmoid((u.log() - (1 - u).log() + self.log_alpha) / BETA)
        return (s * (HIGH - LOW) + LOW).clamp(0, 1)

    def open_probability(self) -> Float[Tensor, " gates"]:
        """The probability that a gate is not 0, differentiable."""
        return torch.sigmoid(self.log_alpha - BETA * math.log(-LOW / HIGH))

    def settled(self) -> Float[Tensor, " gates"]:
        """The value of a gate that stays: sigmoid(0.8 log_alpha / beta), as in FLOP's code."""
        return torch.sigmoid(0.8 * self.log_alpha / BETA)

    def forward(self, x: Float[Tensor, "*batch gates"]) -> Float[Tensor, "*batch gates"]:
        return x * (self.sample() if self.training else self.settled())
