"""A model made ready to record what passes through it: no dropout, fp32 on a CPU, hooks that are removed again."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from mlpfusion.batch import Batch, to_device

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
    layers = [] if gradients else list(layers_of(model))
    outside, inside = _InFp32(outside_of(model, layers)), [_InFp32(_tensors(layer)) for layer in layers]
    with eval_mode(model), hooks() as handles:
        for layer, tensors in zip(layers, inside, strict=True):
            handles.append(layer.register_forward_pre_hook(tensors.open))
            handles.append(layer.register_forward_hook(tensors.close))
        try:
            outside.open()
            yield
        finally:
            for tensors in (*inside, outside):  # a layer that an error left open has been opened after `outside`
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
