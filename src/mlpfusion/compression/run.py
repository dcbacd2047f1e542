"""Runs a method on the blocks of a plan, in one loop for all methods; the model is not changed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from mlpfusion.checks import num_not_finite
from mlpfusion.compression.plan import Plan, width_step
from mlpfusion.errors import InputError
from mlpfusion.kernel import BlockTrace
from mlpfusion.kinds.outcome import Narrowed, Outcome
from mlpfusion.methods.block import Block, SecondStep
from mlpfusion.methods.calibrated.calibration import Calibration
from mlpfusion.methods.data_free.folded_fusion import FoldedFusion
from mlpfusion.methods.run import compress_block, compress_blocks, one_shot_method
from mlpfusion.mlp import MLP, on_device
from mlpfusion.progress import Progress
from mlpfusion.seeds import site_generator
from mlpfusion.sites.sites import Site, read_mlp

# The calibration of a site, on any device; asked once a site, in the order of the plan. None for an expert that no
# token of the calibration reaches.
Provider = Callable[[Site], Calibration | None]


@dataclass(frozen=True)
class MethodRun:
    """One method on the blocks of one plan; the arithmetic is done on `device`."""

    plan: Plan
    method: Any
    seed: int
    device: torch.device
    progress: Progress

    def second_step(self) -> SecondStep | None:
        """Returns the step on the gradients of the compressed model, None without one."""
        return one_shot_method(self.method).second_step(self.method)


def run_method(
    model: PreTrainedModel,
    run: MethodRun,
    calibration: Provider | None = None,
    *,
    finished: Callable[[Site, MLP, Outcome], None] = lambda site, original, outcome: None,
) -> list[Outcome]:
    """Returns the outcome of every block of the plan, on the device of the block.

    `calibration` returns the inputs of a site for a calibrated method. An expert without inputs is
    fused, P folded in, whatever the method. The second step of a method, if any, is not taken
    (`finish_blocks`). `finished` gets every site, original block and outcome before the
    next calibration is asked for. Raises `InputError` for weights or options the method refuses.
    """
    entries = run.plan.entries
    # read now: while a calibration is recorded the model may hold other tensors (`recording`)
    mlps = [read_mlp(model, site) for site in run.plan.sites]
    if one_shot_method(run.method).ranked_together:
        run.progress(0, len(entries), entries[0][0].path)
        outcomes = _ranked_together(_Blocks(mlps, run, calibration), run)
    else:
        outcomes = []
        for done, (mlp, (site, width)) in enumerate(zip(mlps, entries, strict=True)):
            run.progress(done, len(entries), site.path)
            block = _block(mlp, run, site, width, calibration)
            is_reached = calibration is None or block.calibration is not None
            outcome = compress_block(block, run.method if is_reached else FoldedFusion()).on(mlp.up.device)
            outcomes.append(_told(outcome, block, calibration))
            finished(site, mlp, outcomes[-1])
    run.progress(len(entries), len(entries), "")
    return outcomes


@dataclass(frozen=True)
class _Blocks(Sequence[Block]):
    """The blocks of a plan, each made when it is asked for: its calibration may be large.

    An expert that no token reaches sees one token without a gradient.
    """

    mlps: Sequence[MLP]
    run: MethodRun
    calibration: Provider | None

    def __len__(self) -> int:
        return len(self.mlps)

    def __getitem__(self, index: Any) -> Any:
        block = self.made(index)
        return replace(block, calibration=_nothing(block.mlp)) if self.is_unreached(block) else block

    def made(self, index: int) -> Block:
        """The block with the calibration that it has."""
        return _block(self.mlps[index], self.run, *self.run.plan.entries[index], self.calibration)

    def is_unreached(self, block: Block) -> bool:
        """Whether no token reaches the block that was `made`."""
        return self.calibration is not None and block.calibration is None


def _nothing(mlp: MLP) -> Calibration:
    token = mlp.up.new_zeros(1, mlp.hidden_size)
    return Calibration(BlockTrace(token, token, torch.tensor([1])))


def _ranked_together(blocks: _Blocks, run: MethodRun) -> list[Outcome]:
    """The outcomes of a method that ranks all blocks; an expert that no token reaches is fused to its width."""
    found = list[Outcome]()
    for index, outcome in enumerate(compress_blocks(blocks, run.method)):
        block = blocks.made(index)
        if blocks.is_unreached(block) and isinstance(outcome, Narrowed):
            width = outcome.mlp.num_neurons
            told = compress_block(replace(block, num_neurons=width, round_to=1), FoldedFusion())
        else:
            told = outcome
        found.append(_told(told.on(blocks.mlps[index].up.device), block, blocks.calibration))
    return found


def _told(outcome: Outcome, block: Block, calibration: Provider | None) -> Outcome:
    """The outcome of an expert that was calibrated with how many tokens reached it, any other as it is."""
    if not isinstance(outcome, Narrowed) or block.group is None or calibration is None:
        return outcome
    tokens = 0 if block.calibration is None else block.calibration.trace.num_tokens
    return replace(outcome, metrics=outcome.metrics | {"tokens": float(tokens)})


def finish_blocks(
    model: PreTrainedModel,
    run: MethodRun,
    step: SecondStep,
    narrowed: Sequence[Narrowed],
    traces: Callable[[Site], tuple[BlockTrace, BlockTrace] | None],
) -> list[Outcome]:
    """Returns the blocks after the second step of the method.

    `traces` are those of a site in `model`, and of the same samples with the blocks `narrowed` in place; None for an
    expert that no sample reaches in both, which stays as it is.
    """
    finished: list[Outcome] = []
    for done, (site, outcome) in enumerate(zip(run.plan.sites, narrowed, strict=True)):
        run.progress(done, len(narrowed), f"{site.path}, second step")
        found = traces(site)
        if found is None:
            finished.append(outcome)
            continue
        before, after = (trace.to(run.device) for trace in found)
        original = on_device(read_mlp(model, site), run.device)
        small = replace(outcome, mlp=on_device(outcome.mlp, run.device))
        result = step(original, before, small, after)
        finished.append(result.on(outcome.mlp.up.device))
    run.progress(len(narrowed), len(narrowed), "")
    return finished


def check_finite_outcomes(plan: Plan, outcomes: Sequence[Outcome], method: str) -> None:
    """Raises `InputError` for NaN or Inf in an outcome: the arithmetic of `method` overflowed."""
    for site, outcome in zip(plan.sites, outcomes, strict=True):
        for name, tensor in outcome.tensors().items():
            bad = num_not_finite(tensor) if tensor.is_floating_point() else 0
            if bad:
                raise InputError(
                    f"`method` must be one that can cope with the weights at {site.path}, {method} made {bad} NaN or "
                    f"Inf of `{name}`: some weights are very large or very small; fp32 or another method may help"
                )


def _block(mlp: MLP, run: MethodRun, site: Site, width: int, calibration: Provider | None) -> Block:
    seen = None if calibration is None else calibration(site)
    return Block(
        mlp=on_device(mlp, run.device),
        num_neurons=width,
        generator=site_generator(run.seed, site.path),
        keep_ratio=1.0 if run.plan.keep_ratio is None else run.plan.keep_ratio,
        calibration=None if seen is None else seen.to(run.device),
        round_to=min(width, width_step(site, run.plan.round_to)),
        group=site.mixture,
    )
