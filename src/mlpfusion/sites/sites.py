"""Finds the MLPs of a model by its row of the table, and reads them into one layout."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from inspect import signature
from itertools import count, takewhile
from os import PathLike
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mlpfusion.errors import InputError, shown
from mlpfusion.mlp import MLP
from mlpfusion.sites.bits import from_bits
from mlpfusion.sites.table import Architecture, Stack
from mlpfusion.sites.weights import (
    ModelTensors,
    Tensors,
    Weight,
    check_linear,
    linear_shape,
    mlp_weights,
    read_all,
)

# What a row of the table names in a layer.
Part = Literal["up", "gate", "down", "activation"]


@dataclass(frozen=True)
class Site:
    """One MLP of one layer, or of one expert in it.

    `path` is that of the layer or the expert from the base model, so it is the same under every head.
    """

    path: str
    layer: int
    stack: Stack
    hidden_size: int
    intermediate_size: int
    weights: tuple[Weight, ...]
    expert: int | None = None

    @property
    def holder(self) -> str:
        """Path of the module that holds the numbers: `path`, or that of all experts where one tensor has them."""
        return _holder(self.stack, self.path)

    @property
    def mixture(self) -> str | None:
        """Path of the module of all experts, None for what is none."""
        if self.expert is None:
            return None
        return ".".join(self.path.split(".")[: len(self.stack.mixture.split("."))])

    @property
    def block_path(self) -> str:
        """Path of what tokens enter at once: of the layer, or of the mixture."""
        return self.mixture or self.path

    @property
    def layer_path(self) -> str:
        """Path of the layer that the MLP, or the mixture, is in."""
        return ".".join(self.path.split(".")[: self.stack.layer.split(".").index("{}") + 1])

    def module_path(self, part: Part) -> str:
        """Path of `up`, `gate`, `down` or `activation` from the base model."""
        stack = self.stack
        names = {"up": stack.up, "gate": stack.gate, "down": stack.down, "activation": stack.activation}
        return f"{self.holder}.{names[part]}"


def by_holder(sites: Sequence[Site]) -> dict[str, list[Site]]:
    """The sites by what holds their numbers: one each, or all experts of one module, in their order."""
    return _grouped(sites, lambda site: site.holder)


def by_block(sites: Sequence[Site]) -> dict[str, list[Site]]:
    """The sites by the path of what tokens enter at once: one MLP each, or all experts of a mixture, in their order."""
    return _grouped(sites, lambda site: site.block_path)


def _grouped(sites: Sequence[Site], place: Callable[[Site], str]) -> dict[str, list[Site]]:
    found: dict[str, list[Site]] = {}
    for site in sites:
        found.setdefault(place(site), []).append(site)
    return found


def _holder(stack: Stack, path: str) -> str:
    return path if stack.layout is None else path.rpartition(".")[0]


def base_model(model: PreTrainedModel) -> PreTrainedModel:
    """The model without its head; site paths start there.

    It takes what the whole model does: where `base_model` of transformers is an encoder of hidden states inside a model
    of images, it is the model itself. So it is where `base_model` is a module of another library, as timm's. A
    Llama4ForCausalLM names as its base what it is itself in a model of images; its base is the model of its config.
    """
    base = model.base_model
    if base is model:
        base = next((one for name, one in model.named_children() if _is_base(model, name, one)), model)
    if not isinstance(base, PreTrainedModel):
        return model
    is_inside = not _takes_main_input(type(base)) and _takes_main_input(type(model))
    return model if is_inside else base


def base_prefix(model: PreTrainedModel) -> str:
    """What stands in the names of `model` before those from its base model."""
    base = base_model(model)
    return next(f"{path}." if path else "" for path, module in model.named_modules() if module is base)


def _is_base(model: PreTrainedModel, name: str, child: nn.Module) -> bool:
    """Whether `child` is the whole model of the config of `model`, under the name that its class gives a base model."""
    return isinstance(child, PreTrainedModel) and child.config is model.config and child.base_model_prefix == name


@cache
def _takes_main_input(kind: type[PreTrainedModel]) -> bool:
    names, parameters = kind.main_input_name, signature(kind.forward).parameters
    passes_on = any(one.kind is one.VAR_POSITIONAL for one in parameters.values())  # a wrapper: Bart's decoder
    return passes_on or (names if isinstance(names, str) else names[0]) in parameters


def find_sites(model: PreTrainedModel, architecture: Architecture) -> list[Site]:
    """All MLPs of the model, stack by stack, in the order of the layers.

    A layer without the modules of the row, such as a convolution in a hybrid, has no site. Raises `InputError` if no
    layer of a stack has them, for other shapes than those of the row, and if there is no layer at all.
    """
    base = base_model(model)
    templates = list(dict.fromkeys(stack.layer for stack in architecture.stacks))
    sites = [site for template in templates for site in _stack_sites(base, architecture, template)]
    if not sites:
        raise InputError(f"`architecture` must name layers of {type(base).__name__}, got {', '.join(templates)}")
    return sites


def site_module(model: PreTrainedModel, site: Site, part: Part) -> nn.Module:
    """The module that is `up`, `gate`, `down` or `activation` at `site`."""
    return base_model(model).get_submodule(site.module_path(part))


def read_mlp(model: PreTrainedModel, site: Site) -> MLP:
    """The MLP at `site`; its tensors share memory with the model (transposed where the model keeps a `Conv1D`).

    Scales that the model keeps in the activation are part of `activation`, those beside experts are scales here too.
    Raises `InputError` for anything but plain linear maps or parameters and those that a kind of outcome put in place.
    """
    if site.stack.layout is None:
        return mlp_in(ModelTensors(base_model(model)), site, site_module(model, site, "activation"))
    holder = base_model(model).get_submodule(site.holder)
    activation = getattr(holder, site.stack.activation)
    mlp = mlp_in(ModelTensors(base_model(model)), site, activation)
    buffers = dict(holder.named_buffers(recurse=False))
    if has_gating(model, site):
        mlp = replace(mlp, gating=partial(_gated, activation, interleaved=site.stack.layout == "interleaved"))
    if "cluster_sizes" in buffers:
        return replace(mlp, output_scale=buffers["cluster_sizes"][site.expert])
    if "input_scale_bits" in buffers:
        names = ("input_scale_bits", "output_scale_bits")
        input_scale, output_scale = (from_bits(buffers[name][site.expert]) for name in names)
        return replace(mlp, input_scale=input_scale, output_scale=output_scale)
    return mlp


def has_gating(model: PreTrainedModel, site: Site) -> bool:
    """Whether the experts in the module of `site` make their hidden activations by a method of gate and up together."""
    if site.stack.layout is None:
        return False
    return not isinstance(getattr(base_model(model).get_submodule(site.holder), site.stack.activation), nn.Module)


def _gated(method: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor, *, interleaved: bool) -> Tensor:
    """What a method of a module of experts makes of gate and up, which it takes as one tensor."""
    both = torch.stack((gate, up), dim=-1).flatten(-2) if interleaved else torch.cat((gate, up), dim=-1)
    return method(both)


def mlp_in(state: Tensors, site: Site, activation: Callable[[Tensor], Tensor]) -> MLP:
    """The MLP at `site` out of the tensors of its model: those in memory, or in an open file.

    Names in `state` start at the base model. The tensors share memory with those of `state`.
    """
    found = read_all(state, site.weights)
    return MLP(
        up=found["up"],
        down=found["down"],
        activation=activation,
        gate=found.get("gate"),
        up_bias=found.get("up_bias"),
        gate_bias=found.get("gate_bias"),
        down_bias=found.get("down_bias"),
    )


def has_stack(base: nn.Module, stack: Stack) -> bool:
    """Whether the layers of the stack are in `base`, which may be one of several stacks alone."""
    return has_module(base, f"{stack.layer.partition('{}')[0]}0")


def check_readable(model: PreTrainedModel, sites: Sequence[Site]) -> None:
    """Raises `InputError` for a linear map or experts with an adapter, or with a quantised or sharded weight."""
    base = base_model(model)
    for site in sites:
        if site.stack.layout is not None:
            read_all(ModelTensors(base), site.weights)
            continue
        for path in linear_maps(site):
            check_linear(base.get_submodule(path))


def linear_maps(site: Site) -> dict[str, tuple[str, ...]]:
    """Path of every linear map from the base model -> the matrices in it; gate before up where it holds both.

    Experts without modules of their own are one map, which holds all matrices.
    """
    maps: dict[str, tuple[str, ...]] = {}
    for weight in site.weights:
        if not weight.is_bias:
            maps[weight.path] = (*maps.get(weight.path, ()), weight.field)
    return maps


def module_paths(site: Site) -> list[str]:
    """Paths from the base model of the modules with the numbers of a site: its linear maps, and its activation.

    Of experts that share their tensors the module of all of them.
    """
    return [*linear_maps(site), *([site.module_path("activation")] if site.stack.layout is None else [])]


def check_transformers_model(model: object) -> None:
    """Raises `InputError` unless `model` is a whole model of transformers, without a PEFT wrapper around it."""
    if isinstance(model, PreTrainedModel):
        return
    if hasattr(model, "get_base_model"):
        cure = "merge its adapter first (`merge_and_unload()`), or hand over `get_base_model()` if no MLP is adapted"
    elif isinstance(model, str | PathLike):
        cure = "load it first, as by AutoModel.from_pretrained; the command line takes a path"
    else:
        cure = "hand over the whole model that AutoModel.from_pretrained gave"
    what = shown(str(model)) if isinstance(model, str | PathLike) else f"a {type(model).__name__}"
    raise InputError(f"`model` must be a model of transformers, got {what}: {cure}")


def check_in_memory(model: nn.Module) -> None:
    """Raises `InputError` if a weight or a buffer is on the meta device: never made, or offloaded by accelerate."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise InputError(
                f"`model` must hold its weights in memory, got {name} on the meta device: load it without offloading"
            )


def site_parameters(base: nn.Module, site: Site) -> list[nn.Parameter]:
    """The parameters of the linear maps of a site, each once."""
    return [parameter for path in linear_maps(site) for parameter in base.get_submodule(path).parameters()]


def _stack_sites(base: PreTrainedModel, architecture: Architecture, template: str) -> list[Site]:
    stacks = [stack for stack in architecture.stacks if stack.layer == template]
    sites, number, inside = [], 0, template.partition("{}")[0]
    while has_module(base, f"{inside}{number}"):
        for path, expert in _paths_in_layer(base, stacks[0], template.replace("{}", str(number), 1)):
            fitting = [stack for stack in stacks if _fits(base, stack, path)]
            if fitting:
                sites.append(_make_site(base, fitting[0], path, number, expert))
        number += 1
    if number and not sites:
        _check_activation(base, stacks[0], f"{inside}0")
        raise InputError(
            f"a layer of {template} must have {' or '.join(stack.up for stack in stacks)} as `up`, none of {number} has"
        )
    return sites


def _paths_in_layer(base: nn.Module, stack: Stack, layer: str) -> Iterator[tuple[str, int | None]]:
    """Path of the MLP of one layer, or the paths of its experts with their numbers; none where it has no mixture."""
    before, placeholder, after = layer.partition("{}")
    if not placeholder:
        yield layer, None
        return
    if stack.layout is None:
        numbers = takewhile(lambda number: has_module(base, f"{before}{number}{after}"), count())
    else:
        holder = before.removesuffix(".")
        down = getattr(base.get_submodule(holder), stack.down, None) if has_module(base, holder) else None
        numbers = range(len(down) if isinstance(down, Tensor) else 0)
    yield from ((f"{before}{number}{after}", number) for number in numbers)


def _fits(base: nn.Module, stack: Stack, path: str) -> bool:
    """Whether the parts that `stack` names are there: modules, or the tensors of a module of experts."""
    if stack.layout is None:
        return all(has_module(base, f"{path}.{part}") for part in _paths(stack))
    holder = base.get_submodule(_holder(stack, path))
    parts = [getattr(holder, part, None) for part in _paths(stack)]
    return all(isinstance(part, Tensor) or callable(part) for part in parts)


def _check_activation(base: nn.Module, stack: Stack, path: str) -> None:
    """Raises `InputError` for an MLP that lacks its activation alone, as one by a fused kernel does."""
    paths = _paths(stack)
    if stack.layout is None and [part for part in paths if not has_module(base, f"{path}.{part}")] == [
        stack.activation
    ]:
        block = base.get_submodule(f"{path}.{stack.activation}".rpartition(".")[0])
        name = f"{type(block).__module__.partition('.')[0]}.{type(block).__name__}"
        raise InputError(
            f"`model` must have the MLPs of its class, got {name} without {stack.activation}: compress and fold "
            "without fused kernels, and put them in after it"
        )


def _make_site(base: PreTrainedModel, stack: Stack, path: str, layer: int, expert: int | None) -> Site:
    holder = _holder(stack, path)
    weights = mlp_weights(base, holder, stack, expert)
    shapes = {weight.field: _stored_shape(base, weight) for weight in weights if not weight.is_bias}
    hidden_size, width = shapes["down"]
    if not width or not hidden_size:
        raise InputError(f"the MLP at {path} must have neurons, its {stack.down} has shape {(hidden_size, width)}")
    site = Site(path, layer, stack, hidden_size, width, weights, expert)
    for weight in weights:
        if weight.field in ("up", "gate"):
            shape, expected = shapes[weight.field], (width * weight.num_parts, hidden_size)
            if shape != expected:
                raise InputError(f"{weight.path} must have shape {expected} to fit {stack.down}, got {shape}")
    activation = dict(base.get_submodule(holder).named_modules()).get(stack.activation)  # None for a method
    if activation is not None and any(parameter.ndim > 1 for parameter in activation.parameters()):
        raise InputError(f"{path}.{stack.activation} must be an activation, got {type(activation).__name__}")
    return site


def _stored_shape(base: nn.Module, weight: Weight) -> tuple[int, int]:
    """(out, in) of the matrices in the tensor of `weight`, gate and up together where it holds both."""
    module = base.get_submodule(weight.path)
    if weight.expert is None:
        rows, columns = linear_shape(module)
        return rows, columns
    shape = tuple(getattr(module, weight.name.rpartition(".")[2]).shape)
    if len(shape) != 3:
        raise InputError(f"{weight.name} must have three axes, the first that of the experts, got {shape}")
    return (shape[2], shape[1]) if weight.transposed else (shape[1], shape[2])


def _paths(stack: Stack) -> list[str]:
    return [path for path in (stack.up, stack.gate, stack.down, stack.activation) if path]


def has_module(base: nn.Module, path: str) -> bool:
    """Whether `path` leads to a module of `base`."""
    try:
        base.get_submodule(path)
    except AttributeError:
        return False
    return True


def is_beside_mlp(path: str) -> bool:
    """Whether the module or parameter at `path` belongs to attention, or to a bottleneck around the MLP (MobileBERT).

    >>> is_beside_mlp("attention.output.dense"), is_beside_mlp("output.dense")
    (True, False)
    """
    return any(word in path.lower() for word in ("att", "bottleneck"))
