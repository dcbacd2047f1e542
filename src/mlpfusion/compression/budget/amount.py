"""Counts the parameters of a model, or the FLOPs of its forward pass: a budget is a share of one of these."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from mlpfusion.compression.budget.allocation import possible_widths
from mlpfusion.compression.plan import width_step
from mlpfusion.errors import InputError, shown
from mlpfusion.record import model_size
from mlpfusion.sites.mixtures.routing import Routing, watch_mixtures
from mlpfusion.sites.mixtures.traces import check_mixtures_ran
from mlpfusion.sites.proof.made_up_inputs import image_shape
from mlpfusion.sites.recording import eval_mode
from mlpfusion.sites.sites import Site, base_model, read_mlp
from mlpfusion.sites.traces import check_runs, watch_sites

# Tokens of the sequence whose forward pass is counted, where a model takes so many.
FLOPS_TOKENS = 128
UNITS = ("parameters", "flops")


@dataclass(frozen=True)
class Budget:
    """Share of the parameters or forward FLOPs to keep, above 0 and at most 1, as an exact fraction."""

    share: Fraction
    unit: str

    def __str__(self) -> str:
        return f"{float(100 * self.share):g}%" + ("" if self.unit == "parameters" else self.unit)


@dataclass(frozen=True)
class Amounts:
    """Costs in one unit (parameters or FLOPs).

    `total` of the model, `neurons[i]` of one neuron of block i, `fixed` of everything but the neurons of the blocks.
    A neuron of a mixture is one in each of its experts.
    """

    total: int
    neurons: tuple[int, ...]
    fixed: int


def parse_budget(text: Any) -> Budget:
    """Reads `60%` (of the parameters), `60%parameters` or `60%flops`.

    Raises `InputError` for another form, and for a percentage of 0 or above 100.

    >>> str(parse_budget("60%flops"))
    '60%flops'
    """
    match = re.fullmatch(rf"([0-9]{{1,9}}(?:\.[0-9]{{1,30}})?)\s*%\s*({'|'.join(UNITS)})?", str(text).strip())
    share = Fraction(match[1]) / 100 if match else Fraction(0)
    if not match or not 0 < share <= 1:
        form = "above 0% and at most 100%, like `60%` of the parameters or `60%flops`"
        raise InputError(f"`budget` must be {form}, got {shown(text)}")
    return Budget(share, match[2] or UNITS[0])


def spendable(budget: Budget, amounts: Amounts, blocks: Sequence[Sequence[Site]], round_to: int) -> int:
    """Returns the part of `budget` for the neurons of the blocks.

    Raises `InputError`, with the smallest budget possible, if it does not pay for a step of `round_to` at each.
    """
    left = int(budget.share * amounts.total) - amounts.fixed
    least = sum(
        cost * possible_widths(site.intermediate_size, width_step(site, round_to))[0]
        for cost, (site, *_) in zip(amounts.neurons, blocks, strict=True)
    )
    if left < least:
        reachable = ceil(Fraction(10_000 * (amounts.fixed + least), amounts.total)) / 100
        steps = sorted({width_step(block[0], round_to) for block in blocks})
        raise InputError(
            f"`budget` must be at least {reachable:g}% of the {budget.unit}, all else than these "
            f"{sum(map(len, blocks))} MLPs and {' or '.join(map(str, steps))} neurons in each, got {budget}"
        )
    return left


def count_amounts(model: PreTrainedModel, blocks: Sequence[Sequence[Site]], unit: str) -> Amounts:
    """Counts the costs of `model` and of a neuron of each block; shared parameters count once.

    A block is one MLP, or the experts of a mixture, which all get one width.
    """
    firsts, widths = [read_mlp(model, block[0]) for block in blocks], [block[0].intermediate_size for block in blocks]
    if unit == "parameters":
        total = model_size(model).parameters
        neurons = tuple(len(block) * mlp.parameters_per_neuron for block, mlp in zip(blocks, firsts, strict=True))
    else:
        total, tokens = count_flops(model, blocks)
        entries = [sum(matrix.numel() for matrix in mlp.matrices().values()) // mlp.num_neurons for mlp in firsts]
        neurons = tuple(2 * count * number for count, number in zip(tokens, entries, strict=True))
    whole = sum(cost * width for cost, width in zip(neurons, widths, strict=True))
    return Amounts(total, neurons, total - whole)


def count_flops(model: PreTrainedModel, blocks: Sequence[Sequence[Site]]) -> tuple[int, list[int]]:
    """Returns the FLOPs of a forward pass, and the tokens through each block in it.

    Counted by torch are matrix products of linear maps, heads, experts, attention (all pairs of tokens, causal or not)
    and convolutions, two FLOPs a product; element-wise steps are not. The input is one sequence of `FLOPS_TOKENS`
    tokens, fewer where the model has fewer positions, to encoder and decoder; one image for a vision model. Of a
    mixture every pair of a token and an expert that it is sent to counts. Runs the model once, with eager attention and
    experts: the counter misses others. Raises `InputError` for a site that runs more than once.
    """
    inputs, alone = flops_inputs(model), [block[0] for block in blocks if block[0].mixture is None]
    mixtures = {block[0].mixture: len(block) for block in blocks if block[0].mixture is not None}
    watched = watch_sites(model, alone), watch_mixtures(base_model(model), mixtures)
    # with gradients: without them the counter stumbles over modules that work on parameters
    with _counted(model), eval_mode(model), torch.enable_grad(), watched[0] as seen, watched[1] as mixed:
        with FlopCounterMode(display=False) as counter:
            model(**inputs)
        check_runs(alone, seen)
        check_mixtures_ran(mixtures, mixed)
    tokens = {site.path: one.inputs[0].shape[:-1].numel() for site, one in zip(alone, seen, strict=True)}
    tokens |= {path: _pairs(mixed[path].routing, number) for path, number in mixtures.items()}
    return counter.get_total_flops(), [tokens[block[0].block_path] for block in blocks]


def _pairs(routing: Routing, num_experts: int) -> int:
    """The pairs of a token and an expert that a module of experts computes: all, where every token enters for each."""
    return len(routing.inputs) if routing.copies > 1 else int((routing.chosen < num_experts).sum())


@contextmanager
def _counted(model: PreTrainedModel) -> Iterator[None]:
    """`model` with the attention and experts that the counter sees while the context is open."""
    attention = model.config._attn_implementation or "eager"
    experts = getattr(model.config, "_experts_implementation", None)
    try:
        model.set_attn_implementation("eager")
        if experts is not None:
            model.set_experts_implementation("eager")
        yield
    finally:
        model.set_attn_implementation(attention)
        if experts is not None:
            model.set_experts_implementation(experts)


def flops_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """Returns the inputs of the counted forward pass."""
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.zeros(image_shape(model.config), device=model.device, dtype=model.dtype)}
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None) or FLOPS_TOKENS + 2
    ids = torch.full((1, min(FLOPS_TOKENS, positions - 2)), 3, device=model.device)  # RoBERTa's begin at 2
    if isinstance(config.eos_token_id, int):
        ids[:, -1] = config.eos_token_id  # the classification heads of BART and T5 look for it
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return inputs | ({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})
