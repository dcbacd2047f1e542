"""Compresses the blocks of a model by a calibrated method."""

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import cast

from transformers import PreTrainedModel

from mlpfusion.batch import Batch
from mlpfusion.compression.calibration.experts import common_traces
from mlpfusion.compression.calibration.passes import block_passes, computed_by
from mlpfusion.compression.calibration.traces import TracedCalibration, calibration_head, needed_traces
from mlpfusion.compression.run import MethodRun, Provider, finish_blocks, run_method
from mlpfusion.compression.settings import CalibrationSize
from mlpfusion.kernel import BlockTrace, alternating_logit
from mlpfusion.kinds.narrow_experts import gathered
from mlpfusion.kinds.outcome import Narrowed, Outcome
from mlpfusion.kinds.table import install
from mlpfusion.mlp import MLP
from mlpfusion.sites.mixtures.traces import RecordedTraces
from mlpfusion.sites.recording import recording
from mlpfusion.sites.sites import Site
from mlpfusion.sites.traces import recorded_traces
from mlpfusion.sites.waiting import in_run_order


def calibrated_outcomes(
    model: PreTrainedModel, run: MethodRun, calibration: Sequence[Batch] | TracedCalibration, *, sequential: bool
) -> tuple[list[Outcome], CalibrationSize]:
    """Computes the outcomes of a calibrated method, and how much it saw; the model is not changed.

    Batches must be checked already (`checked_batches`, `check_taken`). For a method without gradients the inputs of one
    block, or of one mixture, at a time are in memory, for the others, and with a `TracedCalibration`, the traces of all
    blocks, or a file of them. An expert that no token reaches gets no calibration (`run_method`). With `sequential` a
    second forward pass gives the inputs that the outcomes before a block leave. The second step of a method uses the
    gradients of a copy with all outcomes in place: one forward and one backward pass more. An expert is matched on the
    samples that reach it in both models. Raises `InputError` for no
    batch, too many tokens, and for traces with another seed, pooling or scalar, or without one of the sites.
    """
    batches, traced = needed_traces(model, run, calibration)
    with ExitStack() as contexts:
        sites = run.plan.sites
        if traced is None or sequential:
            contexts.enter_context(recording(model, gradients=False))
            sites = in_run_order(model, sites, batches[0])
        passes = contexts.enter_context(block_passes(model, sites, batches, traced, sequential=sequential))

        def finished(site: Site, mlp: MLP, outcome: Outcome) -> None:
            if sequential:
                passes.go_on_with(site, computed_by(mlp, outcome))

        outcomes = _in_order(model, run, sites, passes.at, finished)
    step = run.second_step()
    if step is not None:
        assert traced is not None
        run.progress(0, len(outcomes), "recording the compressed model")
        after = _compressed_traces(model, run, outcomes, batches)

        def traces(site: Site) -> tuple[BlockTrace, BlockTrace] | None:
            if site.mixture is None:
                return traced.traces[site.path], after.blocks[site.path]
            return common_traces(traced.mixtures[site.mixture], after.mixtures[site.mixture], site)

        outcomes = finish_blocks(model, run, step, cast("list[Narrowed]", outcomes), traces)
    return outcomes, passes.sizes[0]


def _in_order(
    model: PreTrainedModel,
    run: MethodRun,
    sites: Sequence[Site],
    calibrate: Provider,
    finished: Callable[[Site, MLP, Outcome], None],
) -> list[Outcome]:
    """The outcomes in the order of the plan, computed in that of `sites`."""
    widths = dict(run.plan.entries)
    plan = replace(run.plan, entries=tuple((site, widths[site]) for site in sites))
    outcomes = run_method(model, replace(run, plan=plan), calibrate, finished=finished)
    by_path = {site.path: outcome for site, outcome in zip(sites, outcomes, strict=True)}
    return [by_path[site.path] for site in run.plan.sites]


def _compressed_traces(
    model: PreTrainedModel, run: MethodRun, outcomes: Sequence[Outcome], batches: Sequence[Batch]
) -> RecordedTraces:
    """Records the traces of the same samples in a copy with all blocks in place."""
    work = copy.deepcopy(model)
    for site, outcome in gathered(run.plan.sites, outcomes):
        install(work, site, outcome)
    with recording(work):
        return recorded_traces(work, run.plan.sites, batches, alternating_logit, calibration_head(model, run.seed))
