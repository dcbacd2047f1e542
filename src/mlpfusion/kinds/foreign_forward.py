"""Forward passes of other packages (Liger, Unsloth) in the place of a block's own, which leave its constants out.

Fused kernels compute act(gate) * up at once, by the weights alone, and may come in at any time: before a model is
built, or by the Trainer after it was loaded. So a block with constants is looked at when it is made and when it runs.
"""

import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType

import torch
from torch import nn

from mlpfusion.errors import InputError

_SCALES = {"output_scale", "input_scale_bits", "output_scale_bits", "cluster_sizes"}


def guard(module: nn.Module) -> None:
    """Has `module`, which runs the activation of a block, or its experts, look at its forward pass now and later.

    Raises `InputError` as `check_forward` does.
    """
    check_forward(module)
    if _look not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(_look)


def unguard(module: nn.Module) -> None:
    """Undoes `guard`."""
    for number, hook in list(module._forward_pre_hooks.items()):
        if hook is _look:
            del module._forward_pre_hooks[number]


def check_forward(module: nn.Module) -> None:
    """Raises `InputError` if constants in `module` are left out by its forward pass, one of another package."""
    function = inspect.unwrap(module.forward)
    home = getattr(function, "__module__", None)
    if home in {kind.__module__ for kind in type(module).__mro__}:
        return
    holders = [name for name, child in module.named_children() if _SCALES & child._buffers.keys()]
    if _SCALES & module._buffers.keys() or (holders and not _names(function, holders)):
        raise InputError(
            f"`model` must run its compressed {type(module).__name__} itself, a forward pass of {home} leaves out its "
            "constants: call `mlpfusion.fold` first, and put fused kernels in after it"
        )


def _look(module: nn.Module, inputs: object) -> None:
    if not torch.compiler.is_compiling():
        check_forward(module)


def _names(function: object, names: list[str]) -> bool:
    """Whether the code of a function, or of one inside it, has one of the names."""
    inner = getattr(function, "__func__", function)
    return isinstance(inner, FunctionType) and any(set(names) & set(code.co_names) for code in _codes(inner.__code__))


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
