"""Mixtures of experts in a model: which modules they are, and how those keep their experts."""

import inspect

import torch
from torch import nn

from mlpfusion.errors import InputError
from mlpfusion.sites.table import Layout, Stack


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


def num_experts(experts: nn.Module) -> int:
    """The first axis of the tensors that hold all experts, or how many modules there are."""
    together = [len(parameter) for parameter in experts.parameters() if parameter.ndim == 3]
    return together[0] if together else sum(any(True for _ in one.parameters()) for one in experts.children())


def takes_tokens_alone(experts: nn.Module) -> bool:
    """Whether the router weighs the tokens before they enter: Llama 4's, which calls its experts with nothing else."""
    return len(inspect.signature(experts.forward).parameters) == 1


def check_kernel(name: str, experts: nn.Module) -> None:
    """Raises `InputError` for experts in a dtype that their kernel refuses; `name` is their path, for the message."""
    kernel = getattr(getattr(experts, "config", None), "_experts_implementation", None)
    doubles = [name for name, tensor in experts.named_parameters() if tensor.dtype == torch.float64]
    if kernel == "grouped_mm" and doubles:
        raise InputError(
            f"`model` must have experts in fp32, bf16 or fp16 for their kernel {kernel}, got float64 in "
            f'{name}.{doubles[0]}: model.set_experts_implementation("batched_mm") runs them, or save them as fp32'
        )


def expert_stacks(base: nn.Module) -> list[Stack]:
    """The stacks of mixtures that keep one tensor a matrix for all experts, as their names and shapes suggest.

    Without a `width_key`. A module that holds anything else, such as a norm, is left out.
    """
    found = {path: _stack_of(path, module) for path, module in expert_modules(base).items()}
    return list(dict.fromkeys(stack for stack in found.values() if stack is not None))


def _stack_of(path: str, module: nn.Module) -> Stack | None:
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    names = path.split(".")
    numbers = [place for place, name in enumerate(names) if name.isdecimal()]
    up = next((name for name in ("gate_up_proj", "up_proj") if name in shapes), None)
    biases = {f"{name}_bias" for name in (up, "down_proj")} & set(shapes)
    if up is None or set(shapes) != {up, "down_proj", *biases} or not numbers:
        return None
    layout = _layout(shapes[up], shapes["down_proj"], num_parts=2 if up == "gate_up_proj" else 1)
    if layout == "columns" and getattr(module, "is_concatenated", True) is False:
        layout = "interleaved"
    activation = _activation(module, is_gated=up == "gate_up_proj")
    if activation is None or layout is None:
        return None
    template = ".".join("{}" if place == numbers[-1] else name for place, name in enumerate(names))
    gate = up if up == "gate_up_proj" else None
    return Stack(f"{template}.{{}}", up, "down_proj", activation, gate=gate, width_key=None, layout=layout)


def _activation(module: nn.Module, *, is_gated: bool) -> str | None:
    """Name of the activation, or of the method of the class that takes gate and up together."""
    own = is_gated and getattr(type(module), "_apply_gate", None)
    if own and ".integrations." not in own.__module__:  # else it is the usual one: activation(gate) * up
        return "_apply_gate"
    return next((name for name, child in module.named_children() if not list(child.parameters())), None)


def _layout(up: tuple[int, ...], down: tuple[int, ...], num_parts: int) -> Layout | None:
    """How tensors of these shapes hold the matrices of the experts, None if they are no such tensors."""
    if len(up) != 3 or len(down) != 3 or up[0] != down[0]:
        return None
    if up[1:] == (num_parts * down[2], down[1]):
        return "rows"
    return "columns" if up[1:] == (down[2], num_parts * down[1]) else None
