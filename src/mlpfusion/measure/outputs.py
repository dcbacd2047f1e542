"""What leaves the MLP and what leaves the layer at a site, token by token."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from mlpfusion.batch import Batch
from mlpfusion.errors import InputError
from mlpfusion.sites.sites import Site, base_model
from mlpfusion.sites.traces import run_base, visible_tokens

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class SiteOutputs:
    """The tokens of all batches that no mask hides, one after the other.

    `mlp` leaves the linear map `down`, raw; `block` leaves the layer: after the residual and, in a post-LayerNorm
    model, the LayerNorm. It is the hidden state that the next layer takes in.
    """

    mlp: Float[Tensor, "tokens hidden"]
    block: Float[Tensor, "tokens hidden"]


class OutputRecorder:
    """Collects the outputs of sites, batch by batch, while the model runs (`recorded_outputs`)."""

    def __init__(self, model: PreTrainedModel, sites: Sequence[Site], batches: Sequence[Batch]):
        self._model, self._batches = model, batches
        self._parts: dict[str, tuple[list[Tensor], list[Tensor]]] = {site.path: ([], []) for site in sites}

    def take(self, site: Site, part: int, output: Any) -> None:
        """Takes in what leaves the MLP (`part` 0) or the layer (1) of a site for its next batch."""
        parts = self._parts[site.path][part]
        hidden = first_tensor(output).detach()
        parts.append(visible_tokens(self._model, site, self._batches[len(parts)], hidden).clone())

    def outputs(self) -> dict[str, SiteOutputs]:
        """By path. Raises `InputError` if there was no batch."""
        if not self._batches:
            raise InputError("`batches` must hold at least one batch, got none")
        return {path: SiteOutputs(torch.cat(mlp), torch.cat(block)) for path, (mlp, block) in self._parts.items()}


@contextmanager
def recorded_outputs(
    model: PreTrainedModel, sites: Sequence[Site], batches: Sequence[Batch]
) -> Iterator[OutputRecorder]:
    """Records while the context is open; inside it the model must run on `batches`, once on each, in their order.

    Hooks go on any way out of it. Two tensors of tokens x hidden size a site stand in memory.
    """
    base, hooks = base_model(model), []
    recorder = OutputRecorder(model, sites, batches)
    try:
        for site in sites:
            modules = base.get_submodule(site.module_path("down")), base.get_submodule(site.path)
            hooks += [module.register_forward_hook(_take(recorder, site, i)) for i, module in enumerate(modules)]
        yield recorder
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def outputs_on_inputs_of(
    original: PreTrainedModel,
    compressed: PreTrainedModel,
    sites: Sequence[Site],
    batches: Sequence[Batch],
) -> dict[str, SiteOutputs]:
    """What leaves the sites of `compressed` if every one of their layers takes in what it takes in in `original`.

    So the error of one block does not count in those after it. A forward pass of both models a batch; both must be in
    eval mode, and two objects. Raises `InputError` if there is no batch.
    """
    with recorded_outputs(compressed, sites, batches) as recorder:
        for batch in batches:
            with _layer_inputs(original, sites) as inputs:
                run_base(original, batch)
            with _forced_inputs(compressed, sites, inputs):
                run_base(compressed, batch)
    return recorder.outputs()


def first_tensor(output: Any) -> Tensor:
    """The hidden states of what a layer gives: the tensor itself, or the first of a tuple."""
    return output if isinstance(output, Tensor) else output[0]


def _take(recorder: OutputRecorder, site: Site, part: int) -> Any:
    return lambda _module, _args, output: recorder.take(site, part, output)


@contextmanager
def _layer_inputs(model: PreTrainedModel, sites: Sequence[Site]) -> Iterator[dict[str, Inputs]]:
    """What enters the layer of every site, by path."""
    seen: dict[str, Inputs] = {}

    def keep(path: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[path] = args, kwargs

        return hook

    with _layer_hooks(model, {site.path: keep(site.path) for site in sites}):
        yield seen


@contextmanager
def _forced_inputs(model: PreTrainedModel, sites: Sequence[Site], inputs: Mapping[str, Inputs]) -> Iterator[None]:
    """Puts these tensors (hidden states, those of an encoder too) in the place of what enters the layers.

    What is no tensor, such as a cache, stays the model's own.
    """

    def put(path: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
            other, named = inputs[path]
            own = zip(args, other, strict=True)
            merged = {name: _first_if_tensor(named[name], value) for name, value in kwargs.items()}
            return tuple(_first_if_tensor(second, first) for first, second in own), merged

        return hook

    with _layer_hooks(model, {site.path: put(site.path) for site in sites}):
        yield


def _first_if_tensor(first: Any, second: Any) -> Any:
    return first if isinstance(first, Tensor) else second


@contextmanager
def _layer_hooks(model: PreTrainedModel, hooks: Mapping[str, Any]) -> Iterator[None]:
    base, handles = base_model(model), []
    try:
        for path, hook in hooks.items():
            handles.append(base.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
