"""Forward passes that wait at every MLP or mixture, so that the inputs of one at a time are in memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import psutil
import torch
from greenlet import greenlet
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from mlpfusion.batch import Batch, num_tokens
from mlpfusion.errors import InputError
from mlpfusion.kernel import BlockTrace
from mlpfusion.mlp import MLP, forward, in_compute_dtype, map_tensors
from mlpfusion.sites.mixtures.routing import RoutedTokens, called_routing, output_instead
from mlpfusion.sites.mixtures.traces import routed_tokens
from mlpfusion.sites.recording import hooks
from mlpfusion.sites.sites import Site, base_model, by_block, linear_maps, site_module
from mlpfusion.sites.traces import joined_inputs, run_base, visible_inputs, visible_rows

# Tensors of tokens x hidden size for all batches: what enters the layer, what enters its MLP, and the latter joined.
_STATES = 3
# The same where tokens enter a mixture once for every expert: what enters its module and what that gives.
_STATES_OF_COPIES = 2


class WaitingPasses:
    """One forward pass a batch, each in a coroutine of its own, all of them waiting before the MLP of one site.

    At experts they wait behind the whole mixture. A coroutine (greenlet) can leave the code of
    the model in the middle of a forward pass and come back to it.
    """

    def __init__(self, model: PreTrainedModel, batches: Sequence[Batch]):
        self._model, self._batches = model, batches
        self._passes = [greenlet(partial(run_base, model, batch)) for batch in batches]
        self._entered: Tensor | None = None  # of the pass that is inside an MLP; no other pass runs meanwhile
        self._blocks: list[MLP] = []  # that the passes go on with
        self._mixture: tuple[str, RoutedTokens] | None = None

    def inputs_at(self, site: Site) -> BlockTrace:
        """Goes on to `site` and returns what enters its block, with cotangents that are zeros and take no memory.

        Raises `InputError` unless it is the next site that the model runs.
        """
        reached = self._go_on_to(site.path)
        parts = [
            visible_inputs(self._model, site, batch, one) for batch, one in zip(self._batches, reached, strict=True)
        ]
        inputs, lengths = joined_inputs(parts)
        return BlockTrace(inputs, inputs.new_zeros(1, 1).expand_as(inputs), lengths)

    def tokens_at(self, site: Site) -> RoutedTokens:
        """Goes on to the mixture of the expert at `site`, unless the passes wait there, and returns what enters it.

        Raises `InputError` as `inputs_at` does.
        """
        assert site.mixture is not None
        if self._mixture is None or self._mixture[0] != site.mixture:
            reached = self._go_on_to(site.mixture)
            parts = [
                visible_rows(self._model, site, batch, routing)
                for batch, routing in zip(self._batches, reached, strict=True)
            ]
            joined = [torch.cat(one) for one in zip(*parts, strict=True)]
            self._mixture = site.mixture, routed_tokens(joined)
        return self._mixture[1]

    def _go_on_to(self, path: str) -> list[Any]:
        """What entered the MLP or the mixture at `path` in every pass."""
        found = []
        for one in self._passes:
            reached = None if one.dead else one.switch()
            if reached is None or reached[0] != path:
                where = "the end" if reached is None else reached[0]
                raise InputError(f"`sites` must run once a forward pass, in their order, got {where} for {path}")
            found.append(reached[1])
        self._blocks = []
        return found

    def go_on_with(self, blocks: Sequence[MLP]) -> None:
        """Lets the passes go on with what `blocks` compute: the MLP for the one where they wait, or all experts."""
        # a copy: a product of matrices may depend on how they lie in memory, and these may be views of a file
        self._blocks = [map_tensors(in_compute_dtype(one), _copied) for one in blocks]

    def watch(self, site: Site) -> Iterator[RemovableHandle]:
        """Adds the hooks that make the passes wait at `site`, or behind the mixture that it is in."""
        if site.mixture is not None:
            module = base_model(self._model).get_submodule(site.mixture)
            yield module.register_forward_hook(partial(self._wait_at_mixture, site.mixture), with_kwargs=True)
            return
        first_maps = [path for path, fields in linear_maps(site).items() if "down" not in fields]
        for path in first_maps:  # of `up` and `gate`, whichever the model runs first
            module = base_model(self._model).get_submodule(path)
            yield module.register_forward_pre_hook(partial(self._wait, site))
        yield site_module(self._model, site, "down").register_forward_hook(self._leave)

    def stop(self) -> None:
        """Ends the passes where they wait."""
        for one in self._passes:
            one.throw()

    def _wait_at_mixture(
        self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        """Leaves the pass that is running. Returns what it then goes on with, None for `output`."""
        current = greenlet.getcurrent()
        if current not in self._passes:
            return None
        assert current.parent is not None
        routing = called_routing(path, module, args, kwargs)
        if routing.copies > 1 and current is self._passes[0]:
            _check_memory(self._batches[1:], _STATES_OF_COPIES * routing.copies * routing.inputs.shape[1])
        current.parent.switch((path, routing))
        return output_instead(self._blocks, routing, output) if self._blocks else None

    def _wait(self, site: Site, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Leaves the pass that is running, unless it waited at the other of `up` and `gate`."""
        current = greenlet.getcurrent()
        if current not in self._passes or self._entered is not None:  # or somebody else runs the model
            return
        assert current.parent is not None
        current.parent.switch((site.path, args[0]))
        self._entered = args[0]

    def _leave(self, _module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """What the pass that is running goes on with, None for `output`."""
        if greenlet.getcurrent() not in self._passes:
            return None
        inputs, self._entered = self._entered, None
        assert inputs is not None
        if not self._blocks:
            return None
        (block,) = self._blocks
        return forward(block, inputs.to(block.up)).to(output.dtype)


def _copied(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _check_memory(batches: Sequence[Batch], numbers: int) -> None:
    """Raises `InputError` if memory is too small for so many numbers a token."""
    tokens = sum(map(num_tokens, batches))
    needed = 4 * tokens * numbers  # fp32
    free = psutil.virtual_memory().available
    if needed > free:
        raise InputError(
            f"`calibration` must be small enough for memory to hold what enters one layer: {free / 2**30:.1f} GiB are "
            f"free, got {tokens:,} tokens, which take {needed / 2**30:.1f} GiB; fewer or shorter samples help"
        )


@torch.no_grad()
def in_run_order(model: PreTrainedModel, sites: Sequence[Site], batch: Batch) -> list[Site]:
    """`sites` as the model runs them, which stacks side by side in one layer are not listed by; the rest at the end."""
    blocks, order = by_block(sites), dict[str, None]()
    if len({site.stack for site in sites}) > 1:
        with hooks() as handles:
            for path, (first, *_) in blocks.items():
                is_alone = first.mixture is None
                module = site_module(model, first, "up") if is_alone else base_model(model).get_submodule(path)
                handles.append(module.register_forward_pre_hook(lambda *_, path=path: order.setdefault(path)))
            run_base(model, {name: value[:1] for name, value in batch.items()})
    return [site for path in {**order, **dict.fromkeys(blocks)} for site in blocks[path]]


@contextmanager
def waiting_passes(model: PreTrainedModel, sites: Sequence[Site], batches: Sequence[Batch]) -> Iterator[WaitingPasses]:
    """Forward passes of `model`, in the mode that it is in, that wait at `sites` while the context is open.

    Every batch goes through the model once, whatever the number of sites. In memory is what enters one layer and its
    MLP, for all batches. Gradients are off. Raises `InputError` if the memory of the machine is too small for that.
    """
    _check_memory(batches, _STATES * max(site.hidden_size for site in sites))
    passes = WaitingPasses(model, batches)
    with torch.no_grad(), hooks() as handles:
        for first, *_others in by_block(sites).values():
            handles.extend(passes.watch(first))
        try:
            yield passes
        finally:
            passes.stop()
