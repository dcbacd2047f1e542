"""The narrow kind: a narrower MLP in the place of a model's own, plain linear maps, scales in the activation."""

from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel

from mlpfusion.errors import InputError
from mlpfusion.kinds.key import NarrowSite
from mlpfusion.kinds.linear import linear_copy, replace_module, resized
from mlpfusion.kinds.outcome import Narrowed
from mlpfusion.mlp import MLP
from mlpfusion.mlp import fold as fold_mlp
from mlpfusion.modules.scaled import MatchedActivation, ScaledActivation, activation_scales, unscaled
from mlpfusion.sites.sites import Site, base_model, read_mlp

# What the key of a saved model calls the scales of a block -> the module that holds them.
ACTIVATIONS: dict[str, type[nn.Module] | None] = {
    "none": None,
    "cluster-sizes": ScaledActivation,
    "matched": MatchedActivation,
}


def make_room(model: PreTrainedModel, site: Site, num_neurons: int, *, scale: str) -> None:
    """Replaces the linear maps of `site` by new ones of `num_neurons`, uninitialised, and scales its activation.

    Changes the model. Device, dtype and `requires_grad` of every parameter are kept.
    """
    base = base_model(model)
    fused_factor = 2 if site.stack.gate == site.stack.up else 1
    for path in dict.fromkeys(site.module_path(part) for part in ("up", "gate") if getattr(site.stack, part)):
        replace_module(base, path, resized(base.get_submodule(path), out_features=fused_factor * num_neurons))
    down = site.module_path("down")
    replace_module(base, down, resized(base.get_submodule(down), in_features=num_neurons))
    scaled = ACTIVATIONS[scale]
    if scaled is not None:
        path = site.module_path("activation")
        device = next(base.get_submodule(down).parameters()).device
        replace_module(base, path, scaled(base.get_submodule(path), num_neurons, device))


def install(model: PreTrainedModel, site: Site, outcome: Narrowed) -> NarrowSite:
    """Puts the block in the place of the one at `site`. Changes the model; the values are copied."""
    mlp = outcome.mlp
    base = base_model(model)
    entry = NarrowSite(mlp.num_neurons, site.intermediate_size, _scale_of(mlp), mlp.num_parameters)
    make_room(model, site, mlp.num_neurons, scale=entry.scale)
    copy_weights(model, site, mlp)
    activation = base.get_submodule(site.module_path("activation"))
    if isinstance(activation, MatchedActivation):
        ones = mlp.up.new_ones(mlp.num_neurons, dtype=torch.float32)
        activation.set_scales(*(ones if s is None else s for s in (mlp.input_scale, mlp.output_scale)))
    elif isinstance(activation, ScaledActivation):
        assert mlp.output_scale is not None
        activation.output_scale.copy_(mlp.output_scale)
    return entry


def rebuild(model: PreTrainedModel, site: Site, entry: NarrowSite) -> None:
    """Makes room for the narrow block, uninitialised. Changes the model; idempotent.

    Raises `InputError` where the key and the config disagree on the original width, or for an unknown scale.
    """
    if entry.scale not in ACTIVATIONS:
        raise InputError(
            f"`mlp_fusion.sites[{site.path}].scale` must be one of {', '.join(ACTIVATIONS)}, got {entry.scale!r}"
        )
    installed = _installed_scale(model, site)
    if (site.intermediate_size, installed) == (entry.intermediate_size, entry.scale):
        return
    if site.intermediate_size != entry.original_size or installed != "none":
        raise InputError(
            f"`mlp_fusion` wants {entry.intermediate_size} of {entry.original_size} neurons at {site.path}, "
            f"the config gives that layer {site.intermediate_size}"
        )
    make_room(model, site, entry.intermediate_size, scale=entry.scale)


def check(model: PreTrainedModel, site: Site, entry: NarrowSite) -> None:
    """Raises `InputError` unless loaded cluster sizes are a partition of the original neurons, diagonals positive."""
    activation = base_model(model).get_submodule(site.module_path("activation"))
    if any(buffer.is_meta for buffer in activation.buffers()):
        return
    if isinstance(activation, MatchedActivation):
        for name, scale in activation_scales(activation).items():
            if not bool(((scale > 0) & torch.isfinite(scale)).all()):
                raise InputError(f"the `{name}` at {site.path} must be positive and finite, got {float(scale.min())}")
    elif isinstance(activation, ScaledActivation):
        smallest, total = int(activation.output_scale.min()), int(activation.output_scale.sum())
        if smallest < 1 or total != entry.original_size:
            raise InputError(
                f"the `output_scale` at {site.path} must be at least 1 and sum up to "
                f"{entry.original_size}, got a minimum of {smallest} and a sum of {total}"
            )


def fold(model: PreTrainedModel, site: Site) -> None:
    """Multiplies the scales into the linear maps around them. Changes the model."""
    base, path = base_model(model), site.module_path("activation")
    activation = base.get_submodule(path)
    scales = activation_scales(activation)
    if scales:
        folded = fold_mlp(replace(read_mlp(model, site), **scales))
        make_room(model, site, site.intermediate_size, scale="none")
        replace_module(base, path, unscaled(activation))
        copy_weights(model, site, folded)


def copy_weights(model: PreTrainedModel, site: Site, mlp: MLP) -> None:
    """Copies matrices and biases of `mlp` into the plain linear maps of its width at `site`. Changes the model."""
    base, up, up_bias = base_model(model), mlp.up, mlp.up_bias
    if site.stack.gate == site.stack.up:
        assert mlp.gate is not None
        up = torch.cat([mlp.gate, mlp.up])
        up_bias = None if mlp.up_bias is None or mlp.gate_bias is None else torch.cat([mlp.gate_bias, mlp.up_bias])
    elif site.stack.gate is not None:
        assert mlp.gate is not None
        linear_copy(base.get_submodule(site.module_path("gate")), mlp.gate, mlp.gate_bias)
    linear_copy(base.get_submodule(site.module_path("up")), up, up_bias)
    linear_copy(base.get_submodule(site.module_path("down")), mlp.down, mlp.down_bias)


def _scale_of(mlp: MLP) -> str:
    """The name in `ACTIVATIONS` for the scales of a block."""
    if mlp.input_scale is None and mlp.output_scale is None:
        return "none"
    whole = mlp.output_scale is not None and not mlp.output_scale.is_floating_point()
    return "cluster-sizes" if mlp.input_scale is None and whole else "matched"


def _installed_scale(model: PreTrainedModel, site: Site) -> str:
    activation = base_model(model).get_submodule(site.module_path("activation"))
    names = {module: name for name, module in ACTIVATIONS.items() if module is not None}
    return names.get(type(activation), "none")
