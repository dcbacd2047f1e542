"""Finds the MLPs of a model by its row of the table, and reads them into one layout."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import signature
from os import PathLike
from typing import Literal

from torch import Tensor, nn
from transformers import PreTrainedModel

from mlpfusion.errors import InputError, shown
from mlpfusion.mlp import MLP
from mlpfusion.sites.table import Architecture, Stack
from mlpfusion.sites.weights import ModelTensors, Tensors, Weight, check_linear, linear_shape, mlp_weights, read_all

# What a row of the table names in a layer.
Part = Literal["up", "gate", "down", "activation"]


@dataclass(frozen=True)
class Site:
    """One MLP of one layer. `path` is the layer's path from the base model, so it is the same under every head."""

    path: str
    layer: int
    stack: Stack
    hidden_size: int
    intermediate_size: int
    weights: tuple[Weight, ...]

    def module_path(self, part: Part) -> str:
        """Path of `up`, `gate`, `down` or `activation` from the base model."""
        stack = self.stack
        names = {"up": stack.up, "gate": stack.gate, "down": stack.down, "activation": stack.activation}
        return f"{self.path}.{names[part]}"


def base_model(model: PreTrainedModel) -> PreTrainedModel:
    """The model without its head; site paths start there.

    It takes what the whole model does: where `base_model` of transformers is an encoder of hidden states inside a model
    of images, it is the model itself. So it is where `base_model` is a module of another library, as timm's.
    """
    base = model.base_model
    if not isinstance(base, PreTrainedModel):
        return model
    is_inside = not _takes_main_input(type(base)) and _takes_main_input(type(model))
    return model if is_inside else base


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

    Scales that the model keeps in the activation are part of `activation`. Raises `InputError` for anything but plain
    linear maps and those that a kind of outcome put in place.
    """
    return mlp_in(ModelTensors(base_model(model)), site, site_module(model, site, "activation"))


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


def layer_path(template: str, layer: int) -> str:
    """Path of one layer of a stack from the base model."""
    return template.replace("{}", str(layer))


def layer_number(template: str, path: str) -> int | None:
    """Number of the layer at `path`, the inverse of `layer_path`; None if it is no layer of this stack."""
    before, _, after = template.partition("{}")
    digits = path.removeprefix(before).removesuffix(after)
    number = int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 10 else -1
    return number if layer_path(template, number) == path else None


def check_readable(model: PreTrainedModel, sites: Sequence[Site]) -> None:
    """Raises `InputError` for a linear map of a site with an adapter, or with a quantised or sharded weight."""
    base = base_model(model)
    for site in sites:
        for path in linear_maps(site):
            check_linear(base.get_submodule(path))


def linear_maps(site: Site) -> dict[str, tuple[str, ...]]:
    """Path of every linear map from the base model -> the matrices in it; gate before up where it holds both."""
    maps: dict[str, tuple[str, ...]] = {}
    for weight in site.weights:
        if not weight.is_bias:
            maps[weight.path] = (*maps.get(weight.path, ()), weight.field)
    return maps


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


def visited_share(model: PreTrainedModel, sites: Sequence[Site]) -> float:
    """Share of the MLP parameters of the sites' layers that belong to a site; 1.0 when nothing was overlooked.

    What counts as an MLP parameter is decided by shape, not by the row: every parameter of the layer outside
    attention with an axis as long as the intermediate size (twice as long where gate and up are one map), and every
    one of an expert in any layer, whatever its shape.
    """
    base = base_model(model)
    visited = {id(parameter) for site in sites for parameter in site_parameters(base, site)}
    wanted = {id(p): p for site in sites for p in _mlp_shaped_parameters(base, site)}
    wanted |= {id(p): p for p in expert_parameters(base)}
    total = sum(parameter.numel() for parameter in wanted.values())
    return sum(p.numel() for key, p in wanted.items() if key in visited) / total


def expert_modules(module: nn.Module) -> dict[str, nn.Module]:
    """The modules outside attention called experts, by path, the outermost of those inside one another.

    A shared expert, which every token goes through, is an ordinary MLP and not among them.
    """
    found: dict[str, nn.Module] = {}
    for path, one in module.named_modules():
        name = path.rpartition(".")[2]
        is_mixture = name == "experts" or ("Experts" in type(one).__name__ and "shared" not in name)
        if is_mixture and "att" not in path.lower() and not any(path.startswith(f"{outer}.") for outer in found):
            found[path] = one
    return found


def expert_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of the experts in `module`, each once."""
    experts = expert_modules(module).values()
    return list({id(parameter): parameter for one in experts for parameter in one.parameters()}.values())


def site_parameters(base: nn.Module, site: Site) -> list[nn.Parameter]:
    """The parameters of the linear maps of a site, each once."""
    return [parameter for path in linear_maps(site) for parameter in base.get_submodule(path).parameters()]


def _stack_sites(base: PreTrainedModel, architecture: Architecture, template: str) -> list[Site]:
    stacks = [stack for stack in architecture.stacks if stack.layer == template]
    sites, number, inside = [], 0, template.partition("{}")[0]
    while has_module(base, f"{inside}{number}"):
        path = layer_path(template, number)
        fitting = [stack for stack in stacks if all(has_module(base, f"{path}.{part}") for part in _paths(stack))]
        if fitting:
            sites.append(_make_site(base, fitting[0], path, number))
        number += 1
    if number and not sites:
        raise InputError(
            f"a layer of {template} must have {' or '.join(stack.up for stack in stacks)} as `up`, none of {number} has"
        )
    return sites


def _make_site(base: PreTrainedModel, stack: Stack, path: str, layer: int) -> Site:
    hidden_size, width = linear_shape(base.get_submodule(f"{path}.{stack.down}"))
    if not width or not hidden_size:
        raise InputError(f"the MLP at {path} must have neurons, its {stack.down} has shape {(hidden_size, width)}")
    site = Site(path, layer, stack, hidden_size, width, mlp_weights(base, path, stack))
    for weight in site.weights:
        if weight.field in ("up", "gate"):
            shape, expected = linear_shape(base.get_submodule(weight.path)), (width * weight.num_parts, hidden_size)
            if tuple(shape) != expected:
                raise InputError(f"{weight.path} must have shape {expected} to fit {stack.down}, got {tuple(shape)}")
    activation = base.get_submodule(f"{path}.{stack.activation}")
    if any(parameter.ndim > 1 for parameter in activation.parameters()):
        raise InputError(f"{path}.{stack.activation} must be an activation, got {type(activation).__name__}")
    return site


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


def _mlp_shaped_parameters(base: nn.Module, site: Site) -> list[nn.Parameter]:
    lengths = {site.intermediate_size * len(names) for names in linear_maps(site).values()}
    axes = 2 if site.hidden_size in lengths else 1
    return [
        parameter
        for name, parameter in base.get_submodule(site.path).named_parameters()
        if not is_beside_mlp(name) and parameter.ndim >= axes and lengths & set(parameter.shape)
    ]
