"""Puts a narrower MLP in the place of a model's own: plain linear maps, P in the activation."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mlpfusion.architectures.sites import Site, base_model
from mlpfusion.mlp import MLP, scale_neurons


class ScaledActivation(nn.Module):
    """`activation(x) * output_scale`: the stand-alone P of MLP Fusion (paper, Eq. 5).

    The linear maps around it stay plain, so everything that looks for linear layers (PEFT, bitsandbytes) keeps
    working. The scale is an int32 buffer: never trained, and exact under any dtype that the model is loaded in.
    """

    output_scale: Tensor

    def __init__(self, activation: nn.Module, num_neurons: int, device: torch.device | None = None):
        super().__init__()
        self.activation = activation
        self.register_buffer("output_scale", torch.ones(num_neurons, dtype=torch.int32, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return scale_neurons(self.activation(x), self.output_scale)

    def extra_repr(self) -> str:
        return f"num_neurons={self.output_scale.numel()}"


def make_room(model: PreTrainedModel, site: Site, num_neurons: int, *, scaled: bool) -> None:
    """Replaces the linear maps of `site` by new ones of `num_neurons`, uninitialised, and scales its activation.

    Changes the model. Device, dtype and `requires_grad` of every parameter are kept.
    """
    base = base_model(model)
    fused_factor = 2 if site.stack.gate == site.stack.up else 1
    for path in dict.fromkeys(site.module_path(part) for part in ("up", "gate") if getattr(site.stack, part)):
        _replace(base, path, _resized(base.get_submodule(path), out_features=fused_factor * num_neurons))
    down = site.module_path("down")
    _replace(base, down, _resized(base.get_submodule(down), in_features=num_neurons))
    if scaled:
        path = site.module_path("activation")
        device = next(base.get_submodule(down).parameters()).device
        _replace(base, path, ScaledActivation(base.get_submodule(path), num_neurons, device))


def install(model: PreTrainedModel, site: Site, mlp: MLP) -> None:
    """Puts `mlp` in the place of the block at `site`. Changes the model; the values are copied."""
    assert mlp.input_scale is None
    base = base_model(model)
    make_room(model, site, mlp.num_neurons, scaled=mlp.output_scale is not None)
    up, up_bias = mlp.up, mlp.up_bias
    if site.stack.gate == site.stack.up:
        assert mlp.gate is not None
        up = torch.cat([mlp.gate, mlp.up])
        up_bias = None if mlp.up_bias is None or mlp.gate_bias is None else torch.cat([mlp.gate_bias, mlp.up_bias])
    elif site.stack.gate is not None:
        assert mlp.gate is not None
        linear_copy(base.get_submodule(site.module_path("gate")), mlp.gate, mlp.gate_bias)
    linear_copy(base.get_submodule(site.module_path("up")), up, up_bias)
    linear_copy(base.get_submodule(site.module_path("down")), mlp.down, mlp.down_bias)
    if mlp.output_scale is not None:
        activation = base.get_submodule(site.module_path("activation"))
        assert isinstance(activation, ScaledActivation)
        activation.output_scale.copy_(mlp.output_scale)


def remove_scale(model: PreTrainedModel, site: Site) -> Tensor | None:
    """Puts the plain activation back and hands over the scale that it had; None if it had none. Changes the model."""
    base = base_model(model)
    path = site.module_path("activation")
    activation = base.get_submodule(path)
    if not isinstance(activation, ScaledActivation):
        return None
    _replace(base, path, activation.activation)
    return activation.output_scale


@torch.no_grad()
def linear_copy(linear: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """Copies `weight`, shape (out, in), and `bias` into a linear map. Changes `linear`."""
    assert isinstance(linear, nn.Linear | Conv1D)
    linear.weight.copy_(weight.T if isinstance(linear, Conv1D) else weight)
    if bias is not None:
        assert linear.bias is not None
        linear.bias.copy_(bias)


def _resized(linear: nn.Module, *, in_features: int | None = None, out_features: int | None = None) -> nn.Module:
    """A linear map of the same kind, device, dtype and `requires_grad` with another width, uninitialised."""
    assert isinstance(linear, nn.Linear | Conv1D)
    weight = linear.weight
    columns, rows = weight.shape if isinstance(linear, Conv1D) else reversed(weight.shape)
    columns, rows = in_features or columns, out_features or rows
    if isinstance(linear, Conv1D):
        with torch.device("meta"):
            new = Conv1D(rows, columns)
    else:
        new = nn.Linear(columns, rows, bias=linear.bias is not None, device="meta")
    new = new.to(weight.dtype).to_empty(device=weight.device)
    for name, parameter in linear.named_parameters():
        new.get_parameter(name).requires_grad_(parameter.requires_grad)
    return new.train(linear.training)


def _replace(base: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(base.get_submodule(parent), name, module)
