"""Finds the MLPs of a model by its row of the table, and reads them into one layout."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Protocol, cast, runtime_checkable

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mlpfusion.errors import InputError, shown
from mlpfusion.mlp import MLP
from mlpfusion.modules.low_rank import LowRankLinear
from mlpfusion.modules.masked import MaskedConv1D, MaskedLinear
from mlpfusion.modules.routed import RoutedLinear
from mlpfusion.sites.table import Architecture, Stack

_PLAIN = (nn.Linear, Conv1D, MaskedLinear, MaskedConv1D)


@runtime_checkable
class LinearShape(Protocol):
    """What `nn.Linear` and the linear maps of all quantisers and adapters have."""

    in_features: int
    out_features: int


@dataclass(frozen=True)
class Site:
    """One MLP of one layer. `path` is the layer's path from the base model, so it is the same under every head."""

    path: str
    layer: int
    stack: Stack
    hidden_size: int
    intermediate_size: int

    def module_path(self, part: str) -> str:
        """Path of `up`, `gate`, `down` or `activation` from the base model."""
        return f"{self.path}.{getattr(self.stack, part)}"


def base_model(model: PreTrainedModel) -> PreTrainedModel:
    """The model without its head; site paths start there."""
    return cast(PreTrainedModel, model.base_model)


def find_sites(model: PreTrainedModel, architecture: Architecture) -> list[Site]:
    """All MLPs of the model, stack by stack, in the order of the layers.

    Raises `InputError` if a layer has no MLP of the shapes of the row, or if there is none at all.
    """
    base = base_model(model)
    templates = list(dict.fromkeys(stack.layer for stack in architecture.stacks))
    sites = [site for template in templates for site in _stack_sites(base, architecture, template)]
    if not sites:
        raise InputError(f"`architecture` must name layers of {type(base).__name__}, got {', '.join(templates)}")
    return sites


def read_mlp(model: PreTrainedModel, site: Site) -> MLP:
    """The MLP at `site`; its tensors share memory with the model (transposed where the model keeps a `Conv1D`).

    Scales that the model keeps in the activation are part of `activation`.
    """
    base = base_model(model)
    up, up_bias = linear_tensors(base.get_submodule(site.module_path("up")))
    down, down_bias = linear_tensors(base.get_submodule(site.module_path("down")))
    gate, gate_bias = None, None
    if site.stack.gate == site.stack.up:
        gate, up = up.chunk(2)
        gate_bias, up_bias = up_bias.chunk(2) if up_bias is not None else (None, None)
    elif site.stack.gate is not None:
        gate, gate_bias = linear_tensors(base.get_submodule(site.module_path("gate")))
    activation = base.get_submodule(site.module_path("activation"))
    return MLP(up, down, activation, gate, up_bias, gate_bias, down_bias)


def linear_tensors(linear: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight with shape (out, in), and bias; the product, where the map is one of two factors.

    Raises `InputError` for anything but a plain linear map or one of ours.
    """
    if is_plain(linear) and isinstance(linear, Conv1D):
        return linear.weight.detach().T, linear.bias.detach()
    if is_plain(linear) and isinstance(linear, nn.Linear):
        return linear.weight.detach(), None if linear.bias is None else linear.bias.detach()
    if isinstance(linear, LowRankLinear):
        return linear.dense()
    if isinstance(linear, RoutedLinear):
        raise InputError(
            "an MLP must compute all its neurons to be read as one, got one whose experts a router chooses"
        )
    kind = type(linear)
    where = "" if kind.__module__.startswith("torch.") else f" of {kind.__module__.partition('.')[0]}"
    if isinstance(linear, nn.Linear | Conv1D) and kind in _PLAIN:
        where = f" with a weight of type {type(linear.weight).__name__}"
    raise InputError(
        f"the linear maps of an MLP must be nn.Linear or Conv1D, got {kind.__name__}{where}; "
        "merge adapters, and start from the model before it was quantised or sharded"
    )


def linear_shape(linear: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear map of any make. Reads no weight, which a quantiser may have packed."""
    if isinstance(linear, LowRankLinear):
        return linear.shape()
    if isinstance(linear, RoutedLinear):
        return linear_shape(linear.linear)
    if isinstance(linear, Conv1D):
        return linear.nf, linear.nx
    if isinstance(linear, LinearShape):
        return linear.out_features, linear.in_features
    raise InputError(f"the linear maps of an MLP must be nn.Linear or Conv1D, got {type(linear).__name__}")


def is_plain(linear: nn.Module) -> bool:
    """Whether `linear` is a stock linear map, or one that keeps its zeros, with a weight that is a plain tensor."""
    weight = linear.weight if isinstance(linear, nn.Linear | Conv1D) else None
    return type(linear) in _PLAIN and type(weight) in (nn.Parameter, Tensor)


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
            linear = base.get_submodule(path)
            parts = [linear]
            if isinstance(linear, LowRankLinear):  # without multiplying the factors
                parts = [part for pair in linear.pairs() for part in pair]
            for part in parts:
                linear_tensors(part)


def linear_maps(site: Site) -> dict[str, tuple[str, ...]]:
    """Path of every linear map from the base model -> the matrices in it; gate before up where it holds both."""
    if site.stack.gate == site.stack.up:
        return {site.module_path("up"): ("gate", "up"), site.module_path("down"): ("down",)}
    return {site.module_path(part): (part,) for part in ("up", "gate", "down") if getattr(site.stack, part)}


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
    one of an expert, whatever its shape.
    """
    base = base_model(model)
    visited = {id(parameter) for site in sites for parameter in site_parameters(base, site)}
    wanted = {id(p): p for site in sites for p in _mlp_shaped_parameters(base, site)}
    wanted |= {id(p): p for site in sites for p in expert_parameters(base.get_submodule(site.path))}
    total = sum(parameter.numel() for parameter in wanted.values())
    return sum(p.numel() for key, p in wanted.items() if key in visited) / total


def expert_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of the experts in `module`, each once: of all modules outside attention called experts.

    A shared expert, which every token goes through, is an ordinary MLP and not among them.
    """
    experts = [
        one
        for path, one in module.named_modules()
        if "att" not in path.lower() and ("Experts" in type(one).__name__ or path.rpartition(".")[2] == "experts")
    ]
    return list({id(parameter): parameter for one in experts for parameter in one.parameters()}.values())


def site_parameters(base: nn.Module, site: Site) -> list[nn.Parameter]:
    """The parameters of the linear maps of a site, each once."""
    return [parameter for path in linear_maps(site) for parameter in base.get_submodule(path).parameters()]


def _stack_sites(base: PreTrainedModel, architecture: Architecture, template: str) -> list[Site]:
    stacks = [stack for stack in architecture.stacks if stack.layer == template]
    sites = []
    while has_module(base, path := layer_path(template, len(sites))):
        fitting = [stack for stack in stacks if all(has_module(base, f"{path}.{part}") for part in _paths(stack))]
        if not fitting:
            raise InputError(f"layer {path} must have {' or '.join(stack.up for stack in stacks)} as `up`, got none")
        sites.append(_make_site(base, fitting[0], path, len(sites)))
    return sites


def _make_site(base: PreTrainedModel, stack: Stack, path: str, layer: int) -> Site:
    hidden_size, width = linear_shape(base.get_submodule(f"{path}.{stack.down}"))
    if not width or not hidden_size:
        raise InputError(f"the MLP at {path} must have neurons, its {stack.down} has shape {(hidden_size, width)}")
    rows = {part: linear_shape(base.get_submodule(f"{path}.{part}")) for part in {stack.up, stack.gate} - {None}}
    expected = (2 * width if stack.gate == stack.up else width, hidden_size)
    for part, shape in rows.items():
        if tuple(shape) != expected:
            raise InputError(f"{path}.{part} must have shape {expected} to fit {stack.down}, got {tuple(shape)}")
    activation = base.get_submodule(f"{path}.{stack.activation}")
    if any(parameter.ndim > 1 for parameter in activation.parameters()):
        raise InputError(f"{path}.{stack.activation} must be an activation, got {type(activation).__name__}")
    return Site(path, layer, stack, hidden_size, width)


def _paths(stack: Stack) -> list[str]:
    return [path for path in (stack.up, stack.gate, stack.down, stack.activation) if path]


def has_module(base: nn.Module, path: str) -> bool:
    """Whether `path` leads to a module of `base`."""
    try:
        base.get_submodule(path)
    except AttributeError:
        return False
    return True


def _mlp_shaped_parameters(base: nn.Module, site: Site) -> list[nn.Parameter]:
    lengths = {site.intermediate_size} | ({2 * site.intermediate_size} if site.stack.gate == site.stack.up else set())
    axes = 2 if site.hidden_size in lengths else 1
    return [
        parameter
        for name, parameter in base.get_submodule(site.path).named_parameters()
        if "att" not in name.lower() and parameter.ndim >= axes and lengths & set(parameter.shape)
    ]
