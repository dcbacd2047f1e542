"""Calibrates the blocks of a model on batches, and compresses them by a calibrated method."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, cast, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mlpfusion.batch import Batch
from mlpfusion.checks import seed_number
from mlpfusion.compression.calibration.checks import check_some, check_taken
from mlpfusion.compression.calibration.experts import expert_calibration, routed_size
from mlpfusion.compression.run import MethodRun, Provider, finish_blocks, run_method
from mlpfusion.compression.settings import CalibrationSize
from mlpfusion.errors import InputError, shown
from mlpfusion.kernel import BlockTrace, PeakHead, RandomHead, alternating_logit, mean_logit
from mlpfusion.kinds.outcome import LowRank, Narrowed, Outcome
from mlpfusion.kinds.table import install
from mlpfusion.methods.block import CalibrationNeeds, CalibrationScalar
from mlpfusion.methods.calibrated.calibration import Calibration, token_weights
from mlpfusion.methods.needs import calibration_needs
from mlpfusion.mlp import MLP
from mlpfusion.seeds import site_generator
from mlpfusion.sites.mixtures.routing import RoutedTokens
from mlpfusion.sites.recording import recordable, recording
from mlpfusion.sites.sites import Site, check_transformers_model, read_mlp
from mlpfusion.sites.traces import block_traces, random_head, recorded_traces
from mlpfusion.sites.waiting import WaitingPasses, in_run_order, waiting_passes

# The scalars f of a calibration. Of one alone, diagonals matched to its kernel fit the kernels of others badly.
NUM_LOGITS = 4


def checked_batches(calibration: Any) -> Sequence[Batch] | None:
    """Returns the batches of a calibration, None for None.

    Raises `InputError` for anything but a `TracedCalibration` or a list of dictionaries of tensors.
    """
    if calibration is None or isinstance(calibration, TracedCalibration):
        return None if calibration is None else calibration.batches
    wanted = "`calibration` must be a list of batches, each a dictionary of tensors such as a tokenizer gives"
    if not isinstance(calibration, Sequence) or isinstance(calibration, str):
        raise InputError(f"{wanted}, got a {type(calibration).__name__}")
    for number, batch in enumerate(calibration):
        if not isinstance(batch, Mapping):
            raise InputError(f"{wanted}, got a {type(batch).__name__} for batch {number}")
        for name, value in batch.items():
            if not isinstance(value, Tensor):
                got = f"a {type(value).__name__} for {shown(name)} in batch {number}"
                raise InputError(f'{wanted} with return_tensors="pt", got {got}')
    return calibration


@dataclass(frozen=True)
class TracedCalibration:
    """Recorded traces of a model on the batches of a calibration; `trace_calibration` makes them.

    One such object serves several compressions of the same model. `batches` are on the device of the model; `traces`
    and `weights` (of the tokens, none for the `pooling` `mean`) are by the path of the site, `mixtures` and the
    weights of their tokens by that of the mixture; the cotangents are of `scalar`. `seed` drew the random heads;
    `seconds` is the time of the recording.
    """

    batches: Sequence[Batch]
    traces: Mapping[str, BlockTrace]
    seed: int
    seconds: float
    pooling: str = "mean"
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    scalar: CalibrationScalar = "head"
    mixtures: Mapping[str, RoutedTokens] = field(default_factory=dict)

    def at(self, site: Site) -> Calibration | None:
        """Returns the calibration of a site; None for an expert that no token reaches."""
        if site.mixture is None:
            return Calibration(self.traces[site.path], weights=self.weights.get(site.path))
        return expert_calibration(self.mixtures[site.mixture], site, self.weights.get(site.mixture))

    def size_at(self, site: Site) -> CalibrationSize:
        """Returns how much enters the MLP or the mixture of a site."""
        if site.mixture is None:
            return CalibrationSize(self.traces[site.path].num_samples, self.traces[site.path].num_tokens)
        return routed_size(self.mixtures[site.mixture])

    def check(self, sites: Sequence[Site], seed: int, needs: CalibrationNeeds) -> None:
        """Raises `InputError` for traces with another seed, pooling or scalar, or without one of `sites`."""
        if self.seed != seed:
            raise InputError(f"`calibration` must be traced with the seed of the compression, {seed}, got {self.seed}")
        if self.pooling != needs.pooling:
            raise InputError(f"`calibration` must be traced with the `pooling` {needs.pooling}, got {self.pooling}")
        if self.scalar != needs.scalar:
            raise InputError(f"`calibration` must be traced with the `scalar` {needs.scalar}, got {self.scalar}")
        recorded = {*self.traces, *self.mixtures}
        missing = [site.path for site in sites if (site.mixture or site.path) not in recorded]
        if missing:
            raise InputError(f"`calibration` must be traced at every site to compress, it is not at {missing[0]}")


def trace_calibration(
    model: PreTrainedModel,
    sites: Sequence[Site],
    batches: Sequence[Batch],
    seed: int,
    pooling: str = "mean",
    scalar: CalibrationScalar = "head",
) -> TracedCalibration:
    """Records the traces of `sites` in one forward and one backward pass.

    The model is in eval mode. `scalar` and `pooling` are those of the `CalibrationNeeds` of the method. f is, for
    `head`, a logit of a random head on the mean of the last hidden states; the head is drawn from `seed`, and its
    logits take turns from sample to sample. For `peak` it is the mean over the vocabulary of the model's own logits,
    each at the token where it is largest; this takes memory for all logits of a batch. A `pooling` other than `mean`
    costs a second pass, whose head reads by it and gives the weights of the tokens. The traces are two tensors a site
    of tokens x hidden size (RoBERTa-base, 12 sites, 6,000 tokens, fp32: 0.44 GB); above 2 GiB they are on the CPU, in
    a temporary file. Raises `InputError` for no batch, batches unfit for the model, an unknown scalar, and a temporary
    folder without room.
    """
    if scalar not in get_args(CalibrationScalar):
        raise InputError(f"`scalar` must be one of {', '.join(get_args(CalibrationScalar))}, got {shown(scalar)}")
    check_transformers_model(model)
    checked_batches(batches)
    seed = seed_number("seed", seed)
    check_some(batches)
    check_taken(model, batches)
    return _traced(model, sites, batches, seed, CalibrationNeeds(pooling=pooling, scalar=scalar))


def calibrated_outcomes(
    model: PreTrainedModel, run: MethodRun, calibration: Sequence[Batch] | TracedCalibration, *, sequential: bool
) -> tuple[list[Outcome], CalibrationSize]:
    """Computes the outcomes of a calibrated method, and how much it saw; the model is not changed.

    Batches must be checked already (`checked_batches`, `check_taken`). For a method without gradients the inputs of one
    block, or of one mixture, at a time are in memory, for the others, and with a `TracedCalibration`, the traces of all
    blocks, or a file of them. An expert that no token reaches gets no calibration (`run_method`). With `sequential` a
    second forward pass gives the inputs that the outcomes before a block leave. The second step of a method uses the
    gradients of a copy with all outcomes in place: one forward and one backward pass more. Raises `InputError` for no
    batch, too many tokens, and for traces with another seed, pooling or scalar, or without one of the sites.
    """
    sizes = list[CalibrationSize]()
    batches, traced = _needed_traces(model, run, calibration)
    with ExitStack() as contexts:
        sites = run.plan.sites
        if traced is None or sequential:
            contexts.enter_context(recording(model, gradients=False))
            sites = in_run_order(model, sites, batches[0])
        passes = contexts.enter_context(waiting_passes(model, sites, batches)) if traced is None else None
        cut = contexts.enter_context(waiting_passes(model, sites, batches)) if sequential else None

        def calibrate(site: Site) -> Calibration | None:
            if traced is None:
                assert passes is not None
                seen = passed_calibration(passes, site, sizes)
            else:
                seen = traced.at(site)
                sizes.append(traced.size_at(site))
            seen = None if seen is None else seen.to(model.device)
            if cut is None or seen is None:
                return seen
            targets = seen.targets_of(read_mlp(model, site))
            return replace(seen, trace=replace(seen.trace, inputs=cut.inputs_at(site).inputs), targets=targets)

        def finished(mlp: MLP, outcome: Outcome) -> None:
            if cut is not None:
                cut.go_on_with(_dense(mlp, outcome))

        outcomes = _in_order(model, run, sites, calibrate, finished)
    step = run.second_step()
    if step is not None:
        assert traced is not None
        run.progress(0, len(outcomes), "recording the compressed model")
        after = _compressed_traces(model, run, outcomes, batches)
        outcomes = finish_blocks(model, run, step, cast("list[Narrowed]", outcomes), traced.traces, after)
    return outcomes, sizes[0]


def passed_calibration(passes: WaitingPasses, site: Site, sizes: list[CalibrationSize]) -> Calibration | None:
    """What enters the block at `site`; of an expert the tokens that reach it, weighted as the router does, or None.

    Adds to `sizes` how much enters the MLP or the mixture.
    """
    if site.expert is None:
        trace = passes.inputs_at(site)
        sizes.append(CalibrationSize(trace.num_samples, trace.num_tokens))
        return Calibration(trace)
    tokens = passes.tokens_at(site)
    sizes.append(routed_size(tokens))
    return expert_calibration(tokens, site)


def _in_order(
    model: PreTrainedModel,
    run: MethodRun,
    sites: Sequence[Site],
    calibrate: Provider,
    finished: Callable[[MLP, Outcome], None],
) -> list[Outcome]:
    """The outcomes in the order of the plan, computed in that of `sites`."""
    widths = dict(run.plan.entries)
    plan = replace(run.plan, entries=tuple((site, widths[site]) for site in sites))
    outcomes = run_method(model, replace(run, plan=plan), calibrate, finished=finished)
    by_path = {site.path: outcome for site, outcome in zip(sites, outcomes, strict=True)}
    return [by_path[site.path] for site in run.plan.sites]


def _needed_traces(
    model: PreTrainedModel, run: MethodRun, calibration: Sequence[Batch] | TracedCalibration
) -> tuple[Sequence[Batch], TracedCalibration | None]:
    """The batches on the device of the model, and the traces of all sites; None where no gradient is needed.

    The traces are recorded now unless `calibration` holds them.
    """
    sites, needs = run.plan.sites, calibration_needs(run.method)
    if isinstance(calibration, TracedCalibration):
        calibration.check(sites, run.seed, needs)
        return calibration.batches, calibration
    check_some(calibration)
    if not needs.gradients and needs.pooling == "mean":
        return _home(model, calibration), None
    traced = _traced(model, sites, calibration, run.seed, needs)
    return traced.batches, traced


def _traced(
    model: PreTrainedModel, sites: Sequence[Site], batches: Sequence[Batch], seed: int, needs: CalibrationNeeds
) -> TracedCalibration:
    started, pooling, home, weights = time.perf_counter(), needs.pooling, _home(model, batches), {}
    with recording(model):
        if needs.scalar == "peak":
            found = recorded_traces(model, sites, home, mean_logit, PeakHead())
        else:
            found = recorded_traces(model, sites, home, alternating_logit, calibration_head(model, seed))
        if pooling != "mean":
            focused = recorded_traces(model, sites, home, alternating_logit, calibration_head(model, seed, pooling))
            weights = {path: token_weights(cotangents) for path, cotangents in focused.cotangents().items()}
    seconds = time.perf_counter() - started
    return TracedCalibration(home, found.blocks, seed, seconds, pooling, weights, needs.scalar, found.mixtures)


def _home(model: PreTrainedModel, batches: Sequence[Batch]) -> list[Batch]:
    return [recordable(batch, model.device) for batch in batches]


def _dense(mlp: MLP, outcome: Outcome) -> MLP:
    """What the outcome of a calibrated method computes in the place of `mlp`."""
    if isinstance(outcome, LowRank):
        compute = torch.promote_types(mlp.up.dtype, torch.float32)
        pairs = ((name, left.to(compute), right.to(compute)) for name, (left, right) in outcome.factors.items())
        return replace(mlp, **{name: left @ right for name, left, right in pairs})
    assert isinstance(outcome, Narrowed)
    return outcome.mlp


def calibration_head(model: PreTrainedModel, seed: int, pooling: str = "mean") -> RandomHead:
    """Draws the random head of calibration; the same seed measures with another head."""
    return random_head(model, site_generator(seed, "calibration head"), NUM_LOGITS, pooling)


def _compressed_traces(
    model: PreTrainedModel, run: MethodRun, outcomes: Sequence[Outcome], batches: Sequence[Batch]
) -> dict[str, BlockTrace]:
    """Records the traces of the same samples in a copy with all blocks in place."""
    work = copy.deepcopy(model)
    for site, outcome in zip(run.plan.sites, outcomes, strict=True):
        install(work, site, outcome)
    with recording(work):
        return block_traces(work, run.plan.sites, batches, alternating_logit, calibration_head(model, run.seed))
