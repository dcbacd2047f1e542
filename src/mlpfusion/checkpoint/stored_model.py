"""A model whose weights stay in the files of its checkpoint until they are asked for."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedConfig

from mlpfusion.checkpoint.read import load_model
from mlpfusion.checkpoint.weights import conversions, stored_tensors, weight_files
from mlpfusion.sites.mixtures.experts import expert_modules
from mlpfusion.sites.recording import as_recorded, hooks


class StoredModel:
    """A checkpoint whose `model` is on the meta device; the context holds the files open, `in_memory` reads tensors.

    What is read is a view of the file, which the system keeps in memory as long as there is room; only what several
    tensors of the files make together, such as the experts of a mixture, is memory of the process.
    """

    def __init__(self, folder: Path, config: PreTrainedConfig):
        """Reads headers alone. Raises `InputError` as `load_model` does."""
        self.model = load_model(folder, config, device="meta").eval()
        self.tensors = stored_tensors(weight_files(folder))
        self._contexts, self._last_run = ExitStack(), ExitStack()
        self._files: dict[Path, Any] = {}
        self._sources = {
            name: one for one in conversions(self.model, self.tensors) for name in one.convert(self.model, self._header)
        }
        parameters = self.model.named_parameters(remove_duplicate=False)
        buffers = self.model.named_buffers(remove_duplicate=False)
        self._names = {tensor: name for name, tensor in (*parameters, *buffers) if name in self._sources}

    def __enter__(self) -> Self:
        for file in dict.fromkeys(tensor.file for tensor in self.tensors.values()):
            self._files[file] = self._contexts.enter_context(safe_open(file, framework="pt"))
        return self

    def __exit__(self, *error: object) -> None:
        self._files.clear()
        self._contexts.close()

    @contextmanager
    def in_memory(self, module: nn.Module, expert: int | None = None) -> Iterator[None]:
        """Lets a module of `model`, with all inside it, hold its tensors while the context is open.

        Where these are of several experts, with the number of one they hold no other: its numbers stand in all places.
        """
        self._last_run.close()
        with _emptied_again(module.modules()):
            self._fill(module.modules(), expert)
            yield

    @contextmanager
    def runnable(self, *, recorded: bool = False) -> Iterator[None]:
        """Lets `model` run while the context is open.

        Experts that are stored as a tensor each are read when their module runs, and kept until another such one runs,
        or is read by `in_memory`; `recorded`: as `recording` has the rest of their layer.
        """
        apart = [module for module in expert_modules(self.model).values() if self._is_converted(module)]

        def read(module: nn.Module, _args: object) -> None:
            self._last_run.close()
            self._last_run.enter_context(_emptied_again([module]))
            self._fill([module])
            for parameter in module.parameters(recurse=False) if recorded else ():
                parameter.data = as_recorded(parameter.data)
                parameter.requires_grad_(False)  # or the graph of a pass would hold the experts of all layers

        with _emptied_again(self.model.modules()), hooks() as handles, self._last_run:
            self._make_buffers()
            self._fill(module for module in self.model.modules() if module not in apart)
            handles += [module.register_forward_pre_hook(read) for module in apart]
            yield

    def _is_converted(self, module: nn.Module) -> bool:
        names = [self._names[one] for one in module.parameters(recurse=False) if one in self._names]
        return any(self._sources[name].converter is not None for name in names)

    def _make_buffers(self) -> None:
        """Gives `model` the buffers that no file holds: its class computes them."""
        with init_empty_weights(include_buffers=False):
            computed = type(self.model)(self.model.config)
        for (_, module), (_, other) in zip(self.model.named_modules(), computed.named_modules(), strict=True):
            for leaf, empty in module._buffers.items():
                buffer = other._buffers[leaf]
                if empty is not None and buffer is not None:
                    module._buffers[leaf] = buffer.to(empty.dtype)

    def _fill(self, modules: Iterable[nn.Module], expert: int | None = None) -> None:
        places: dict[Tensor, list[tuple[dict[str, Any], str]]] = {}  # several of a tied one, which is stored once
        for module in modules:
            for held in _held_by(module):
                for leaf, tensor in held.items():
                    if tensor is not None and tensor in self._names:
                        places.setdefault(tensor, []).append((held, leaf))
        wanted = {self._names[tensor]: tensor for tensor in places}
        for source, some in {self._sources[name]: name for name in wanted}.items():
            chosen = source if expert is None else source.of_expert(expert, len(wanted[some]))
            for name, tensor in chosen.convert(self.model, self._read).items():
                if name in wanted:
                    like = wanted[name]
                    found = tensor.to(like.dtype).expand(like.shape)
                    if isinstance(like, nn.Parameter):
                        found = nn.Parameter(found, requires_grad=like.requires_grad)
                    for held, leaf in places[like]:
                        held[leaf] = found

    def _read(self, name: str) -> Tensor:
        return self._files[self.tensors[name].file].get_tensor(name)

    def _header(self, name: str) -> Tensor:
        return torch.empty(self.tensors[name].shape, device="meta")


@contextmanager
def _emptied_again(modules: Iterable[nn.Module]) -> Iterator[None]:
    """In the end the modules hold the tensors again that they hold now."""
    held = [one for module in modules for one in _held_by(module)]
    before = [dict(one) for one in held]
    try:
        yield
    finally:
        for now, then in zip(held, before, strict=True):
            now.update(then)


def _held_by(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors that a module itself has, by their last names: parameters and buffers."""
    return module._parameters, module._buffers
