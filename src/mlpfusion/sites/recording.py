"""A model made ready to record what passes through it: no dropout, fp32 on a CPU, hooks that are removed again."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from mlpfusion.batch import Batch, to_device
from mlpfusion.sites.over_batches import on_disk

# Most CPUs have no instructions for them.
_HALVES = (torch.float16, torch.bfloat16)


@contextmanager
def hooks() -> Iterator[list[RemovableHandle]]:
    """A list for the handles of hooks, which are removed at the end, on any way out."""
    handles: list[RemovableHandle] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def differentiable(output: Tensor) -> Tensor:
    """`output`, marked for gradients where they are on and no parameter before it has one."""
    return output if output.requires_grad or not torch.is_grad_enabled() else output.requires_grad_()


@contextmanager
def eval_mode(model: PreTrainedModel) -> Iterator[None]:
    """`model` without dropout while the context is open; every module gets its own mode back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def recording(model: PreTrainedModel, *, gradients: bool = True) -> Iterator[None]:
    """`model` in eval mode and its half-precision tensors on a CPU as fp32, while the context is open.

    One CPU that was measured multiplies bf16 matrices 8 times slower than fp32, and 40 times slower in a backward pass.
    The stored tensors come back untouched, not rounded twice. Memory: the tensors again, at twice their size; without
    `gradients`, for forward passes only, only the layers that are running are fp32. Contexts of one model do not nest.
    """
    with _recording(model, [] if gradients else list(layers_of(model))):
        yield


@contextmanager
def recording_by_layer(model: PreTrainedModel) -> Iterator[None]:
    """`recording` for gradients where only the layer that is running is to be in memory, while the context is open.

    What enters a layer waits in a temporary file until the backward pass, which runs the layer once more. So a pass
    keeps no more of a layer than what leaves the modules that something watches. The gradients are the same to the bit.
    """
    layers = list(layers_of(model))
    with _recording(model, layers), set_checkpoint_early_stop(False):
        own = {layer: vars(layer).get("forward") for layer in layers}
        try:
            for layer in own:
                layer.forward = partial(_to_run_again, layer, layer.forward)
            yield
        finally:
            for layer, forward in own.items():
                if forward is None:
                    vars(layer).pop("forward", None)
                else:
                    layer.forward = forward


def _to_run_again(layer: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What the `forward` of a layer gives.

    Where gradients are on it runs again in the backward pass, on its input from a file.
    """
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # not what several layers are given, as by an encoder: its gradients would be added in another order
    if args:
        args = (_OnDisk.apply(args[0]), *args[1:])
    elif "hidden_states" in kwargs:
        kwargs["hidden_states"] = _OnDisk.apply(kwargs["hidden_states"])
    contexts = (nullcontext(), _copies_in_fp32(layer))
    return checkpoint(
        forward, *args, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: contexts, **kwargs
    )


class _OnDisk(torch.autograd.Function):
    """A tensor as it is, from a file."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return on_disk(tensor).view(tensor.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient


@contextmanager
def _copies_in_fp32(layer: nn.Module) -> Iterator[None]:
    """`layer` with fp32 copies for its half-precision tensors on a CPU: what a graph keeps of them stays fp32."""
    replaced, copies = list[tuple[dict[str, Any], str, Tensor]](), dict[Tensor, Tensor]()
    for held in (held for module in layer.modules() for held in (module._parameters, module._buffers)):
        for name, tensor in held.items():
            if tensor is not None and _is_half_on_cpu(tensor):
                replaced.append((held, name, tensor))
    try:
        for held, name, tensor in replaced:
            if tensor not in copies:
                copy = tensor.detach().float().requires_grad_(tensor.requires_grad)
                copies[tensor] = nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy
            held[name] = copies[tensor]
        yield
    finally:
        for held, name, tensor in replaced:
            held[name] = tensor


@contextmanager
def _recording(model: PreTrainedModel, layers: Sequence[nn.Module]) -> Iterator[None]:
    """`recording` where `layers` are fp32 only while they run."""
    outside, inside = _InFp32(outside_of(model, layers)), [_InFp32(_tensors(layer)) for layer in layers]
    with eval_mode(model), hooks() as handles:
        for layer, tensors in zip(layers, inside, strict=True):
            handles.append(layer.register_forward_pre_hook(tensors.open))
            handles.append(layer.register_forward_hook(tensors.close))
        try:
            outside.open()
            yield
        finally:
            for tensors in (*inside, outside):  # a layer left open by an error was opened after `outside`
                tensors.restore()


class _InFp32:
    """The half-precision tensors on a CPU among `tensors`: fp32 while something has them open, else the stored ones."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._halves = [one for one in tensors if _is_half_on_cpu(one)]
        self._stored: list[Tensor] = []
        self._users = 0  # forward passes that wait inside of a layer have it open together

    def open(self, *_: Any) -> None:
        """Also a hook before a module runs."""
        self._users += 1
        if self._users == 1:
            self._stored = [tensor.data for tensor in self._halves]
            for tensor in self._halves:
                tensor.data = tensor.data.float()

    def close(self, *_: Any) -> None:
        """Also a hook after a module ran."""
        self._users -= 1
        if not self._users:
            self.restore()

    def restore(self) -> None:
        """Brings the stored ones back, whoever has them open: an error may have left them so."""
        self._users = 0
        for tensor, data in zip(self._halves, self._stored):  # noqa: B905 - none are stored where they are closed
            tensor.data = data
        self._stored = []


def _tensors(module: nn.Module, *, recurse: bool = True) -> Iterator[Tensor]:
    yield from module.parameters(recurse)
    yield from module.buffers(recurse)


def layers_of(module: nn.Module) -> Iterator[nn.Module]:
    """The entries of the outermost lists of modules."""
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else layers_of(child)


def outside_of(model: nn.Module, layers: Sequence[nn.Module]) -> Iterator[Tensor]:
    """The tensors that some module outside of the layers has."""
    inside = {id(module) for layer in layers for module in layer.modules()}
    for module in model.modules():
        if id(module) not in inside:
            yield from _tensors(module, recurse=False)


def recordable(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """`batch` on `device`, its tensors as `recording` has those of the model."""
    return {name: as_recorded(tensor) for name, tensor in to_device(batch, device).items()}


def as_recorded(tensor: Tensor) -> Tensor:
    """A half-precision tensor on a CPU as fp32, any other as it is."""
    return tensor.float() if _is_half_on_cpu(tensor) else tensor


def _is_half_on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype in _HALVES
