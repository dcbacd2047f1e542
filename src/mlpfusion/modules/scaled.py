"""Activations between two constant diagonals: the stand-alone P of MLP Fusion, or two diagonals of any numbers."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mlpfusion.mlp import scale_neurons


def local_part(scale: Tensor, local: slice | None) -> Tensor:
    """The scales of the neurons in `local`, all without one."""
    return scale if local is None else scale[local]


class ScaledActivation(nn.Module):
    """`activation(x) * output_scale`: the stand-alone P of MLP Fusion (paper, Eq. 5).

    The linear maps around it stay plain, so everything that looks for linear layers (PEFT, bitsandbytes) keeps
    working. The scale is an int32 buffer: never trained, and exact under any dtype that the model is loaded in.
    `local` are the neurons that this process computes, None for all: the buffer is whole under tensor parallelism too.
    """

    output_scale: Int[Tensor, " neurons"]
    local: slice | None = None

    def __init__(self, activation: nn.Module, num_neurons: int, device: torch.device | None = None):
        super().__init__()
        self.activation = activation
        self.register_buffer("output_scale", torch.ones(num_neurons, dtype=torch.int32, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return scale_neurons(self.activation(x), local_part(self.output_scale, self.local))

    def extra_repr(self) -> str:
        return f"num_neurons={self.output_scale.numel()}"


class MatchedActivation(nn.Module):
    """`activation(x * input_scale) * output_scale` with two diagonals of positive fp32 numbers, never trained.

    The buffers hold the bits of the numbers as int32, which no change of dtype touches: the numbers are exact in a
    model that is loaded in bf16. `local` is that of `ScaledActivation`.
    """

    input_scale_bits: Int[Tensor, " neurons"]
    output_scale_bits: Int[Tensor, " neurons"]
    local: slice | None = None

    def __init__(self, activation: nn.Module, num_neurons: int, device: torch.device | None = None):
        super().__init__()
        self.activation = activation
        for name in ("input_scale_bits", "output_scale_bits"):
            ones = torch.ones(num_neurons, dtype=torch.float32, device=device)
            self.register_buffer(name, ones.view(torch.int32))

    @property
    def input_scale(self) -> Float[Tensor, " neurons"]:
        return self.input_scale_bits.view(torch.float32)

    @property
    def output_scale(self) -> Float[Tensor, " neurons"]:
        return self.output_scale_bits.view(torch.float32)

    def set_scales(self, input_scale: Float[Tensor, " neurons"], output_scale: Float[Tensor, " neurons"]) -> None:
        """Copies the two diagonals, rounded to fp32."""
        for bits, scale in ((self.input_scale_bits, input_scale), (self.output_scale_bits, output_scale)):
            bits.copy_(scale.to(torch.float32).contiguous().view(torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        input_scale, output_scale = (local_part(scale, self.local) for scale in (self.input_scale, self.output_scale))
        return scale_neurons(self.activation(scale_neurons(x, input_scale)), output_scale)

    def extra_repr(self) -> str:
        return f"num_neurons={self.output_scale_bits.numel()}"


SCALED_ACTIVATIONS = (ScaledActivation, MatchedActivation)


def unscaled(activation: nn.Module) -> nn.Module:
    """The activation without the scales around it, if there are any."""
    return activation.activation if isinstance(activation, SCALED_ACTIVATIONS) else activation


def activation_scales(activation: nn.Module) -> dict[str, Tensor]:
    """The scales around an activation by their field names in `MLP`; empty for a plain one."""
    if isinstance(activation, MatchedActivation):
        return {"input_scale": activation.input_scale, "output_scale": activation.output_scale}
    return {"output_scale": activation.output_scale} if isinstance(activation, ScaledActivation) else {}
