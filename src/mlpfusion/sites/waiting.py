"""Forward passes that wait at every MLP, so that the inputs of one MLP at a time are in memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from greenlet import greenlet
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from mlpfusion.batch import Batch
from mlpfusion.errors import InputError
from mlpfusion.kernel import BlockTrace
from mlpfusion.mlp import MLP, forward, in_compute_dtype
from mlpfusion.sites.recording import hooks
from mlpfusion.sites.sites import Site, site_module
from mlpfusion.sites.traces import joined_inputs, run_base, visible_inputs


class WaitingPasses:
    """One forward pass a batch, each in a coroutine of its own, all of them waiting behind the block of one site.

    A coroutine (greenlet) can leave the code of the model in the middle of a forward pass and come back to it.
    """

    def __init__(self, model: PreTrainedModel, batches: Sequence[Batch]):
        self._model, self._batches = model, batches
        self._passes = [greenlet(partial(run_base, model, batch)) for batch in batches]
        self._entered: Tensor | None = None
        self._block: MLP | None = None

    def inputs_at(self, site: Site) -> BlockTrace:
        """Goes on to `site` and returns what enters its block, with cotangents that are zeros and take no memory.

        Raises `InputError` unless it is the next site that the model runs.
        """
        parts = []
        for one, batch in zip(self._passes, self._batches, strict=True):
            reached = None if one.dead else one.switch()
            if reached is None or reached[0] != site:
                where = "the end" if reached is None else reached[0].path
                raise InputError(f"`sites` must run once a forward pass, in their order, got {where} for {site.path}")
            parts.append(visible_inputs(self._model, site, batch, reached[1]))
        self._block = None
        inputs, lengths = joined_inputs(parts)
        return BlockTrace(inputs, inputs.new_zeros(1, 1).expand_as(inputs), lengths)

    def go_on_with(self, block: MLP) -> None:
        """Lets the passes go on with the outputs of `block` instead of those of the block where they wait."""
        self._block = in_compute_dtype(block)

    def watch(self, site: Site) -> Iterator[RemovableHandle]:
        """Adds the hooks that make the passes wait at `site`."""
        yield site_module(self._model, site, "up").register_forward_pre_hook(self._enter)
        yield site_module(self._model, site, "down").register_forward_hook(partial(self._wait, site))

    def stop(self) -> None:
        """Ends the passes where they wait."""
        for one in self._passes:
            one.throw()

    def _enter(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if greenlet.getcurrent() in self._passes:  # else somebody else runs the model
            self._entered = args[0]

    def _wait(self, site: Site, _module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """Leaves the pass that is running; returns what it goes on with, None for `output`."""
        current = greenlet.getcurrent()
        if current not in self._passes:
            return None
        inputs, self._entered = self._entered, None
        assert inputs is not None
        assert current.parent is not None
        current.parent.switch((site, inputs))
        return None if self._block is None else forward(self._block, inputs.to(self._block.up)).to(output.dtype)


@contextmanager
def waiting_passes(model: PreTrainedModel, sites: Sequence[Site], batches: Sequence[Batch]) -> Iterator[WaitingPasses]:
    """Forward passes of `model`, in the mode that it is in, that wait at `sites` while the context is open.

    Every batch goes through the model once, whatever the number of sites. In memory are the states of one layer for all
    batches: what enters it, and what is between the maps of its MLP. Gradients are off.
    """
    passes = WaitingPasses(model, batches)
    with torch.no_grad(), hooks() as handles:
        for site in sites:
            handles.extend(passes.watch(site))
        try:
            yield passes
        finally:
            passes.stop()
