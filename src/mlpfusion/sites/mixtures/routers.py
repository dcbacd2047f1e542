"""Routers of mixtures of experts: what chooses the experts of a token."""

from torch import nn

from mlpfusion.errors import InputError
from mlpfusion.sites.mixtures.experts import expert_modules, expert_parameters, num_experts
from mlpfusion.sites.sites import is_beside_mlp


def router_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the routers of all mixtures in `model`, by name; none where there is no mixture.

    The router is the part of the block around the experts, outside attention and of no shared expert, that holds a
    tensor with a place for every expert. Raises `InputError`, naming `freeze_router`, for a mixture without one.
    """
    no_router = {id(parameter) for parameter in expert_parameters(model)}
    found: dict[str, nn.Parameter] = {}
    for path, experts in expert_modules(model).items():
        around = path.rpartition(".")[0]
        parts: dict[str, dict[str, nn.Parameter]] = {}
        for name, parameter in model.get_submodule(around).named_parameters():
            part = name.partition(".")[0]
            if not (id(parameter) in no_router or "shared" in part or is_beside_mlp(part)):
                parts.setdefault(part, {})[f"{around}.{name}".removeprefix(".")] = parameter
        routers = [part for part in parts.values() if _has_places(part, num_experts(experts))]
        if not routers:
            raise InputError(f"`freeze_router` must be left out: no router is found beside the experts at {path}")
        for part in routers:
            found |= part
    return found


def _has_places(part: dict[str, nn.Parameter], number: int) -> bool:
    """Whether an axis has a place for every expert, and a few more where shared experts or none can be chosen too."""
    return any(number <= size < 2 * number for parameter in part.values() for size in parameter.shape)
