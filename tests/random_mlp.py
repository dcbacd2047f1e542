"""One MLP of random weights."""

from collections.abc import Callable

import torch

from mlpfusion.mlp import MLP

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": torch.nn.functional.gelu,
    "relu": torch.nn.functional.relu,
    "silu": torch.nn.functional.silu,
}


def make_mlp(
    num_neurons: int = 12,
    hidden_size: int = 5,
    *,
    gated: bool = False,
    biased: bool = True,
    activation: str = "gelu",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> MLP:
    """An MLP of random weights; `biased` gives it all its biases."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return MLP(
        up=draw(num_neurons, hidden_size),
        down=draw(hidden_size, num_neurons),
        activation=ACTIVATIONS[activation],
        gate=draw(num_neurons, hidden_size) if gated else None,
        up_bias=draw(num_neurons) if biased else None,
        gate_bias=draw(num_neurons) if biased and gated else None,
        down_bias=draw(hidden_size) if biased else None,
    )
