"""Records outputs of the MLP and of the layer at sites."""

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
from mlpfusion.sites.mixtures.routing import called_routing
from mlpfusion.sites.recording import hooks
from mlpfusion.sites.sites import Site, base_model, by_block, site_module
from mlpfusion.sites.traces import run_base, visible_tokens

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class SiteOutputs:
    """Outputs at all visible tokens of all batches, concatenated.

    `mlp` is the raw output of `down`, or the sum of what all experts of a mixture give, each times its weight; `block`
    is the hidden state after the layer, the next layer's input (with the residual, and in a post-LayerNorm model the
    LayerNorm).
    """

    mlp: Float[Tensor, "tokens hidden"]
    block: Float[Tensor, "tokens hidden"]


class OutputRecorder:
    """Collects the outputs of MLPs and mixtures, batch by batch, inside `recorded_outputs`."""

    def __init__(self, model: PreTrainedModel, sites: Sequence[Site], batches: Sequence[Batch]):
        self._model, self._batches = model, batches
        self._parts: dict[str, tuple[list[Tensor], list[Tensor]]] = {path: ([], []) for path in by_block(sites)}

    def take(self, site: Site, part: int, output: Any) -> None:
        """Adds an output of the MLP or the mixture (`part` 0) or the layer (1)."""
        parts = self._parts[site.block_path][part]
        hidden = first_tensor(output).detach()
        parts.append(visible_tokens(self._model, site, self._batches[len(parts)], hidden).clone())

    def outputs(self) -> dict[str, SiteOutputs]:
        """Outputs by the path of the MLP or the mixture. Raises `InputError` without any batch."""
        if not self._batches:
            raise InputError("`batches` must hold at least one batch, got none")
        return {path: SiteOutputs(torch.cat(mlp), torch.cat(block)) for path, (mlp, block) in self._parts.items()}


@contextmanager
def recorded_outputs(
    model: PreTrainedModel, sites: Sequence[Site], batches: Sequence[Batch]
) -> Iterator[OutputRecorder]:
    """Records the outputs of single MLPs, mixtures and their layers while open.

    Run the model once on each of `batches`, in order. Memory: two tensors of tokens x hidden size
    per block. The hooks are removed on exit, also after an exception.
    """
    recorder, base = OutputRecorder(model, sites, batches), base_model(model)
    with hooks() as handles:
        for site, *_others in by_block(sites).values():
            if site.mixture is None:
                handles.append(site_module(model, site, "down").register_forward_hook(_take(recorder, site, 0)))
            else:
                module = base.get_submodule(site.mixture)
                handles.append(module.register_forward_hook(_take_summed(recorder, site), with_kwargs=True))
            layer = base.get_submodule(site.layer_path)
            handles.append(layer.register_forward_hook(_take(recorder, site, 1)))
        yield recorder


@torch.no_grad()
def outputs_on_inputs_of(
    original: PreTrainedModel,
    compressed: PreTrainedModel,
    sites: Sequence[Site],
    batches: Sequence[Batch],
) -> dict[str, SiteOutputs]:
    """Outputs of `compressed` when every layer gets its input from `original`.

    So the error of one block does not count in the blocks after it. Both models run once per batch;
    they must be two objects, in eval mode. Raises `InputError` without any batch.
    """
    with recorded_outputs(compressed, sites, batches) as recorder:
        for batch in batches:
            with _layer_inputs(original, sites) as inputs:
                run_base(original, batch)
            with _forced_inputs(compressed, sites, inputs):
                run_base(compressed, batch)
    return recorder.outputs()


def first_tensor(output: Any) -> Tensor:
    """Picks the hidden states from a layer's output, a tensor or a tuple.

    >>> first_tensor((torch.ones(1), None))
    tensor([1.])
    """
    return output if isinstance(output, Tensor) else output[0]


def _take(recorder: OutputRecorder, site: Site, part: int) -> Any:
    return lambda _module, _args, output: recorder.take(site, part, output)


def _take_summed(recorder: OutputRecorder, site: Site) -> Any:
    """Takes the output of a mixture; Llama 4 gives that of every expert for all tokens, one after the other."""
    assert site.mixture is not None
    path = site.mixture

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        copies = called_routing(path, module, args, kwargs).copies
        recorder.take(site, 0, output.reshape(copies, -1, output.shape[-1]).sum(0))

    return hook


@contextmanager
def _layer_inputs(model: PreTrainedModel, sites: Sequence[Site]) -> Iterator[dict[str, Inputs]]:
    """Arguments of every site's layer in the next forward pass, by path."""
    inputs: dict[str, Inputs] = {}

    def keep(path: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs[path] = args, kwargs

        return hook

    with _layer_hooks(model, {site.layer_path: keep(site.layer_path) for site in sites}):
        yield inputs


@contextmanager
def _forced_inputs(model: PreTrainedModel, sites: Sequence[Site], inputs: Mapping[str, Inputs]) -> Iterator[None]:
    """Replaces the tensor arguments of the layers by `inputs`, the encoder's states included.

    Other arguments, such as a cache, stay the model's own.
    """

    def put(path: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
            other, named = inputs[path]
            own = zip(args, other, strict=True)
            merged = {name: _first_if_tensor(named[name], value) for name, value in kwargs.items()}
            return tuple(_first_if_tensor(second, first) for first, second in own), merged

        return hook

    with _layer_hooks(model, {site.layer_path: put(site.layer_path) for site in sites}):
        yield


def _first_if_tensor(first: Any, second: Any) -> Any:
    return first if isinstance(first, Tensor) else second


@contextmanager
def _layer_hooks(model: PreTrainedModel, by_path: Mapping[str, Any]) -> Iterator[None]:
    with hooks() as handles:
        for path, hook in by_path.items():
            layer = base_model(model).get_submodule(path)
            handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        yield
