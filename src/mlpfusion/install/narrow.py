"""The narrow kind: a narrower MLP in the place of a model's own, plain linear maps, P in the activation."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mlpfusion.architectures.sites import Site, base_model, read_mlp
from mlpfusion.errors import InputError
from mlpfusion.install.key import NarrowSite
from mlpfusion.install.linear import linear_copy, new_linear, replace_module
from mlpfusion.methods import Narrowed
from mlpfusion.mlp import fold as fold_mlp
from mlpfusion.mlp import scale_neurons


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
        replace_module(base, path, _resized(base.get_submodule(path), out_features=fused_factor * num_neurons))
    down = site.module_path("down")
    replace_module(base, down, _resized(base.get_submodule(down), in_features=num_neurons))
    if scaled:
        path = site.module_path("activation")
        device = next(base.get_submodule(down).parameters()).device
        replace_module(base, path, ScaledActivation(base.get_submodule(path), num_neurons, device))


def install(model: PreTrainedModel, site: Site, outcome: Narrowed) -> NarrowSite:
    """Puts the block in the place of the one at `site`. Changes the model; the values are copied."""
    mlp = outcome.mlp
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
    return NarrowSite(mlp.num_neurons, site.intermediate_size, mlp.output_scale is not None, mlp.num_parameters)


def rebuild(model: PreTrainedModel, site: Site, entry: NarrowSite) -> None:
    """Makes room for the narrow block, uninitialised. Changes the model; idempotent.

    Raises `InputError` where the key and the config disagree on the original width.
    """
    scaled = _is_scaled(model, site)
    if (site.intermediate_size, scaled) == (entry.intermediate_size, entry.scaled):
        return
    if site.intermediate_size != entry.original_size or scaled:
        raise InputError(
            f"`mlp_fusion` wants {entry.intermediate_size} of {entry.original_size} neurons at {site.path}, "
            f"the config gives that layer {site.intermediate_size}"
        )
    make_room(model, site, entry.intermediate_size, scaled=entry.scaled)


def check(model: PreTrainedModel, site: Site, entry: NarrowSite) -> None:
    """Raises `InputError` unless a loaded scale is a partition of the original neurons."""
    activation = base_model(model).get_submodule(site.module_path("activation"))
    if not isinstance(activation, ScaledActivation) or activation.output_scale.is_meta:
        return
    smallest, total = int(activation.output_scale.min()), int(activation.output_scale.sum())
    if smallest < 1 or total != entry.original_size:
        raise InputError(
            f"the `output_scale` at {site.path} must be at least 1 and sum up to "
            f"{entry.original_size}, got a minimum of {smallest} and a sum of {total}"
        )


def fold(model: PreTrainedModel, site: Site) -> None:
    """Multiplies the scale into the second linear map. Changes the model."""
    scale = remove_scale(model, site)
    if scale is not None:
        folded = fold_mlp(read_mlp(model, site, output_scale=scale))
        linear_copy(base_model(model).get_submodule(site.module_path("down")), folded.down, folded.down_bias)


def remove_scale(model: PreTrainedModel, site: Site) -> Tensor | None:
    """Puts the plain activation back and hands over the scale that it had; None if it had none. Changes the model."""
    base = base_model(model)
    path = site.module_path("activation")
    activation = base.get_submodule(path)
    if not isinstance(activation, ScaledActivation):
        return None
    replace_module(base, path, activation.activation)
    return activation.output_scale


def _resized(linear: nn.Module, *, in_features: int | None = None, out_features: int | None = None) -> nn.Module:
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


def _is_scaled(model: PreTrainedModel, site: Site) -> bool:
    return isinstance(base_model(model).get_submodule(site.module_path("activation")), ScaledActivation)
