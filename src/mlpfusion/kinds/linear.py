"""Puts modules and weights into the place of a model's linear maps."""

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def replace_module(base: nn.Module, path: str, module: nn.Module) -> None:
    """Puts `module` at `path`, whatever stood there. Changes `base`."""
    parent, _, name = path.rpartition(".")
    setattr(base.get_submodule(parent), name, module)


@torch.no_grad()
def linear_copy(linear: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """Copies `weight`, shape (out, in), and `bias` into a linear map. Changes `linear`."""
    assert isinstance(linear, nn.Linear | Conv1D)
    linear.weight.copy_(weight.T if isinstance(linear, Conv1D) else weight)
    if bias is not None:
        assert linear.bias is not None
        linear.bias.copy_(bias)


def new_linear(kind: type[nn.Module], out_features: int, in_features: int, *, bias: bool) -> nn.Module:
    """A linear map of `kind` (`nn.Linear`, or `Conv1D`, which has a bias always) without memory, on the meta device."""
    with torch.device("meta"):
        if kind is Conv1D:
            return Conv1D(out_features, in_features)
        assert kind is nn.Linear
        return nn.Linear(in_features, out_features, bias=bias)


def resized(linear: nn.Module, *, in_features: int | None = None, out_features: int | None = None) -> nn.Module:
    """A linear map of the same kind, device, dtype and `requires_grad` with another width, uninitialised."""
    assert isinstance(linear, nn.Linear | Conv1D)
    weight = linear.weight
    columns, rows = weight.shape if isinstance(linear, Conv1D) else reversed(weight.shape)
    columns, rows = in_features or columns, out_features or rows
    new = new_linear(type(linear), rows, columns, bias=linear.bias is not None)
    new = new.to(weight.dtype).to_empty(device=weight.device)
    for name, parameter in linear.named_parameters():
        new.get_parameter(name).requires_grad_(parameter.requires_grad)
    return new.train(linear.training)
