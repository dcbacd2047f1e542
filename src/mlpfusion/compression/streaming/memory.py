"""How much memory a streamed run takes, from shapes alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from transformers import PreTrainedModel

from mlpfusion.batch import Batch
from mlpfusion.compression.plan import Plan
from mlpfusion.methods.block import CalibrationNeeds
from mlpfusion.methods.needs import calibration_needs, needs_batches
from mlpfusion.sites.over_batches import IN_MEMORY_BYTES
from mlpfusion.sites.recording import layers_of, outside_of
from mlpfusion.sites.sites import Site, base_model, by_block, by_holder, site_parameters

_PROCESS = 2**29  # Python with torch and transformers
_TOKENS_AT_ONCE = 4096  # of a batch of 32 windows of 128, and of one step of a refit


@dataclass(frozen=True)
class SeenTokens:
    """The tokens of a calibration, none without; and how gradients are recorded, if they are.

    There are so many `recordings`, batch by batch, of which the largest has `in_batch` tokens.
    """

    number: int = 0
    in_batch: int = 0
    recordings: int = 0

    @classmethod
    def of(cls, batches: Sequence[Batch], method: Any) -> Self:
        """Those of the batches that `method` sees."""
        sizes, needs = [batch["input_ids"].numel() for batch in batches], gradient_needs(method)
        return cls(sum(sizes), max(sizes, default=0), 0 if needs is None else 1 + (needs.pooling != "mean"))


def gradient_needs(method: Any) -> CalibrationNeeds | None:
    """What a method needs whose gradients are recorded, None of another."""
    needs = calibration_needs(method) if needs_batches(method) else None
    return needs if needs is not None and (needs.gradients or needs.pooling != "mean") else None


def expected_bytes(
    model: PreTrainedModel, plan: Plan, tokens: SeenTokens | None = None, *, sequential: bool = False
) -> int:
    """The memory of the process in a streamed run, pages of files not counted; `model` may be on the meta device.

    A rough bound, measured on the shapes of `benchmarks/streaming.py`.
    """
    base, widths, seen = base_model(model), dict(plan.entries), tokens or SeenTokens()
    blocks = by_holder(plan.sites).values()
    largest = max(_block_bytes(base, block, widths[block[0]]) for block in blocks)
    running = _running_bytes(model, plan, seen) if seen.number else 0
    return _PROCESS + largest + running + (_cut_bytes(base, plan, seen.number) if sequential else 0)


def _block_bytes(base: PreTrainedModel, block: list[Site], width: int) -> int:
    """The most of: all experts put together for their hash, the computation of the last MLP, the result written."""
    site, stored = block[0], sum(one.numel() * one.element_size() for one in site_parameters(base, block[0]))
    shared = 0 if site.stack.layout is None else stored  # a dense MLP is a view of its file
    kept = stored * width // site.intermediate_size
    num_neurons, num_features = site.intermediate_size, 3 * site.hidden_size
    points, gram = 4 * num_neurons * num_features, 4 * num_neurons**2  # fp32
    one_expert = shared // len(block)  # and once more while it is put together
    return max(5 * shared // 3, kept + 2 * one_expert + 2 * points + 3 * gram, 3 * kept)


def _running_bytes(model: PreTrainedModel, plan: Plan, seen: SeenTokens) -> int:
    """The model in fp32 outside of its layers and in one of them (`recording`), what enters and leaves that one for all
    tokens, and what is inside of an MLP for those of one batch or one step of the method. With gradients in the place
    of the states those of `_gradient_bytes`.
    """
    layers = list(layers_of(model))
    outside = {id(one): 4 * one.numel() for one in outside_of(model, layers)}  # a tied tensor once
    largest = max((sum(4 * one.numel() for one in layer.parameters()) for layer in layers), default=0)
    site = max(plan.sites, key=lambda one: one.intermediate_size)
    states = _gradient_bytes(plan, seen) if seen.recordings else 4 * seen.number * 8 * site.hidden_size
    inside = 4 * min(seen.number, _TOKENS_AT_ONCE) * 6 * site.intermediate_size
    return sum(outside.values()) + largest + states + inside


def _gradient_bytes(plan: Plan, seen: SeenTokens) -> int:
    """What leaves every MLP and its gradient, for one batch; what a layer that runs again keeps of it; the recordings,
    which go to a file where they are large.
    """
    blocks = by_block(plan.sites)
    hidden_size = max(site.hidden_size for site in plan.sites)
    states = 4 * 2 * len(blocks) * hidden_size
    layer = 4 * (12 * hidden_size + 6 * max(site.intermediate_size for site in plan.sites))
    return seen.in_batch * (states + layer) + seen.recordings * min(IN_MEMORY_BYTES, seen.number * states)


def _cut_bytes(base: PreTrainedModel, plan: Plan, num_tokens: int) -> int:
    """What passes through the cut model add: their states, the targets, and the block that they go on with, in fp32."""
    widths, sizes = dict(plan.entries), list[int]()
    for block in by_block(plan.sites).values():
        parameters = {id(one): one.numel() for site in block for one in site_parameters(base, site)}
        sizes.append(sum(parameters.values()) * widths[block[0]] // block[0].intermediate_size)
    return 4 * num_tokens * 4 * max(site.hidden_size for site in plan.sites) + 4 * max(sizes)
