"""Traces of the blocks of a model on batches, recorded all at once."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from torch import Tensor
from transformers import PreTrainedModel

from mlpfusion.batch import Batch
from mlpfusion.checks import seed_number
from mlpfusion.compression.calibration.checks import check_some, check_taken
from mlpfusion.compression.calibration.experts import expert_calibration
from mlpfusion.compression.run import MethodRun
from mlpfusion.data.unlabelled.windows import is_causal
from mlpfusion.errors import InputError, shown
from mlpfusion.kernel import BlockTrace, NextTokens, PeakHead, RandomHead, alternating_logit, logit, mean_logit
from mlpfusion.methods.block import CalibrationNeeds, CalibrationScalar
from mlpfusion.methods.calibrated.calibration import Calibration, token_weights
from mlpfusion.methods.needs import calibration_needs
from mlpfusion.seeds import site_generator
from mlpfusion.sites.mixtures.routing import RoutedTokens
from mlpfusion.sites.over_batches import on_disk
from mlpfusion.sites.recording import recordable, recording, recording_by_layer
from mlpfusion.sites.sites import Site, check_transformers_model
from mlpfusion.sites.traces import random_head, recorded_traces

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
            return self.of_mlp(site)
        return expert_calibration(self.mixtures[site.mixture], site, self.weights.get(site.mixture))

    def of_mlp(self, site: Site) -> Calibration:
        """Returns the calibration of a site that every token goes through."""
        return Calibration(self.traces[site.path], weights=self.weights.get(site.path))

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
    each at the token where it is largest. For `likelihood` it is the log-likelihood of the next tokens where the model
    is a causal language model, else that of `head`. These two take memory for all logits of a batch. A `pooling` other
    than `mean` costs a second pass, whose head reads by it and gives the weights of the tokens. The traces are two
    tensors a site of tokens x hidden size (RoBERTa-base, 12 sites, 6,000 tokens, fp32: 0.44 GB); above 2 GiB they are
    on the CPU, in a temporary file. Raises `InputError` for no batch, batches unfit for the model, an unknown scalar,
    and a temporary folder without room.
    """
    if scalar not in get_args(CalibrationScalar):
        raise InputError(f"`scalar` must be one of {', '.join(get_args(CalibrationScalar))}, got {shown(scalar)}")
    check_transformers_model(model)
    checked_batches(batches)
    seed = seed_number("seed", seed)
    check_some(batches)
    check_taken(model, batches)
    return _traced(model, sites, batches, seed, CalibrationNeeds(pooling=pooling, scalar=scalar))


def needed_traces(
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


def streamed_traces(
    model: PreTrainedModel, sites: Sequence[Site], batches: Sequence[Batch], seed: int, needs: CalibrationNeeds
) -> TracedCalibration:
    """Records the same to the bit, with one layer of `model` in memory at a time, in fp32 (`recording_by_layer`).

    Every batch goes forward and back by itself, so each layer is read three times a batch.
    """
    return _traced(model, sites, batches, seed, needs, by_layer=True)


def _traced(
    model: PreTrainedModel,
    sites: Sequence[Site],
    batches: Sequence[Batch],
    seed: int,
    needs: CalibrationNeeds,
    *,
    by_layer: bool = False,
) -> TracedCalibration:
    started, pooling, home, weights = time.perf_counter(), needs.pooling, _home(model, batches), {}
    keep = on_disk if by_layer else Tensor.detach
    with recording_by_layer(model) if by_layer else recording(model):
        if needs.scalar == "peak":
            found = recorded_traces(model, sites, home, mean_logit, PeakHead(), keep)
        elif needs.scalar == "likelihood" and is_causal(model):
            found = recorded_traces(model, sites, home, logit, NextTokens(), keep)
        else:
            found = recorded_traces(model, sites, home, alternating_logit, calibration_head(model, seed), keep)
        if pooling != "mean":
            head = calibration_head(model, seed, pooling)
            focused = recorded_traces(model, sites, home, alternating_logit, head, keep)
            weights = {path: token_weights(cotangents) for path, cotangents in focused.cotangents().items()}
    seconds = time.perf_counter() - started
    return TracedCalibration(home, found.blocks, seed, seconds, pooling, weights, needs.scalar, found.mixtures)


def _home(model: PreTrainedModel, batches: Sequence[Batch]) -> list[Batch]:
    return [recordable(batch, model.device) for batch in batches]


def calibration_head(model: PreTrainedModel, seed: int, pooling: str = "mean") -> RandomHead:
    """Draws the random head of calibration; the same seed measures with another head."""
    return random_head(model, site_generator(seed, "calibration head"), NUM_LOGITS, pooling)
