"""Calibration of the blocks of a model: from batches by one pass of the model, or from its normalisations, no data."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mlpfusion.batch import Batch
from mlpfusion.checks import seed_number
from mlpfusion.compression.outcomes import Job, compute_outcomes, rescaled_outcomes
from mlpfusion.compression.plan import Plan
from mlpfusion.errors import InputError, one_line, shown
from mlpfusion.kernel import BlockTrace, RandomHead, alternating_logit, random_trace
from mlpfusion.kinds.outcome import Narrowed, Outcome
from mlpfusion.kinds.table import KINDS
from mlpfusion.methods import (
    CALIBRATED_METHODS,
    can_be_data_free,
    head_pooling,
    is_rescaled,
    method_name,
    takes_no_data,
)
from mlpfusion.methods.calibrated.calibration import Calibration, token_weights
from mlpfusion.seeds import site_generator
from mlpfusion.sites.sites import Site, base_model, check_transformers_model, read_mlp
from mlpfusion.sites.traces import block_traces, eval_mode, mlp_inputs, random_head, watch_sites

# The scalars f of a calibration. Of one alone, diagonals matched to its kernel fit the kernels of others badly.
NUM_LOGITS = 4
# What a data-free calibration draws for every block.
NUM_SAMPLES, NUM_TOKENS = 256, 24


def check_calibration(method: Any, *, given: bool, sequential: bool) -> None:
    """Raises `InputError` unless a calibration is given for a method that takes one, and for no other."""
    name = method_name(type(method))
    if takes_no_data(method):
        reason = "draws its inputs itself" if type(method) in CALIBRATED_METHODS else "takes none"
        if given:
            raise InputError(f"`calibration` must be left out for {name}, which {reason}")
        if sequential:
            raise InputError(f"`sequential` must be left out for {name}, which has no calibration data to pass on")
        return
    if not given:
        free = ", or `data_free`" if can_be_data_free(type(method)) else ""
        raise InputError(f"`calibration` must be given for {name}{free}, got none")


def checked_batches(calibration: Any) -> Sequence[Batch] | None:
    """Returns the batches of a calibration, None of none.

    Raises `InputError` unless it is traced, or a list of mappings of names to tensors.
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


@torch.no_grad()
def check_taken(model: PreTrainedModel, batches: Sequence[Batch]) -> None:
    """Raises `InputError` for batches that the model does not take.

    Looked at are token ids, the shape of masks, and whether the model runs on the first sample of a batch: the longest
    one of those with the same names of tensors.
    """
    base, longest = base_model(model), {}
    embeddings = base.get_input_embeddings()
    size = embeddings.num_embeddings if isinstance(embeddings, nn.Embedding) else None
    for number, batch in enumerate(batches):
        for name in ("input_ids", "decoder_input_ids"):
            ids, mask = batch.get(name), batch.get(name.replace("input_ids", "attention_mask"))
            if ids is not None and mask is not None and mask.shape != ids.shape:
                got = f"{tuple(mask.shape)} for {tuple(ids.shape)} in batch {number}"
                raise InputError(f"`calibration` must have a mask of the shape of its {name}, got {got}")
            if ids is None or size is None or not ids.numel():
                continue
            if ids.min() < 0 or ids.max() >= size:
                got = f"{int(ids.min())} to {int(ids.max())} for {name} in batch {number}"
                raise InputError(f"`calibration` must have token ids from 0 to {size - 1}, got {got}")
        longest[tuple(batch)] = max(longest.get(tuple(batch), (0, 0)), (_length(batch), number))
    for _, number in longest.values():
        first = {name: value[:1].to(model.device) for name, value in batches[number].items() if name != "labels"}
        try:
            with eval_mode(model):
                base(**first)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            wanted = f"`calibration` must hold batches that a {type(model).__name__} takes"
            raise InputError(f"{wanted}, batch {number} is none: {one_line(error)}") from error


def _length(batch: Batch) -> int:
    return max((value.shape[1] for value in batch.values() if value.ndim > 1), default=0)


@dataclass(frozen=True)
class TracedCalibration:
    """What a model makes of the batches of a calibration, for several compressions of it: made by `trace_calibration`.

    `batches` are on the device of the model, `traces` by the path of the site, and so are the `weights` of the tokens,
    none for the `pooling` `mean`; `seed` drew the heads, `seconds` is the time that it took.
    """

    batches: Sequence[Batch]
    traces: Mapping[str, BlockTrace]
    seed: int
    seconds: float
    pooling: str = "mean"
    weights: Mapping[str, Tensor] = field(default_factory=dict)

    def check(self, sites: Sequence[Site], seed: int, pooling: str) -> None:
        """Raises `InputError` unless it was made with this seed and pooling, and for these sites among others."""
        if self.seed != seed:
            raise InputError(f"`calibration` must be traced with the seed of the compression, {seed}, got {self.seed}")
        if self.pooling != pooling:
            raise InputError(f"`calibration` must be traced with the `pooling` {pooling}, got {self.pooling}")
        missing = [site.path for site in sites if site.path not in self.traces]
        if missing:
            raise InputError(f"`calibration` must be traced at every site to compress, it is not at {missing[0]}")


def trace_calibration(
    model: PreTrainedModel, sites: Sequence[Site], batches: Sequence[Batch], seed: int, pooling: str = "mean"
) -> TracedCalibration:
    """The traces of `sites` by one forward and one backward pass of the model, in eval mode.

    f is a logit of a random head on the base model from `seed`, from sample to sample another of `NUM_LOGITS`, on the
    mean of the last hidden states. With another `pooling`, which must be that of the method (`head_pooling`), a second
    such pass, with a head that reads by it, gives the weights of the tokens. A pass takes two tensors a site of tokens
    x hidden size x the bytes of the model's dtype (RoBERTa-base, 12 sites, 6,000 tokens, fp32: 0.44 GB). Raises
    `InputError` as `block_traces` does, and if there is no batch.
    """
    check_transformers_model(model)
    checked_batches(batches)
    seed = seed_number("seed", seed)
    if not len(batches):
        raise InputError("`calibration` must hold at least one batch, got none")
    check_taken(model, batches)
    started = time.perf_counter()
    home = [{name: tensor.to(model.device) for name, tensor in batch.items()} for batch in batches]
    with eval_mode(model):
        traces, weights = block_traces(model, sites, home, alternating_logit, calibration_head(model, seed)), {}
        if pooling != "mean":
            focused = block_traces(model, sites, home, alternating_logit, calibration_head(model, seed, pooling))
            weights = {path: token_weights(trace.cotangents) for path, trace in focused.items()}
    return TracedCalibration(home, traces, seed, time.perf_counter() - started, pooling, weights)


def calibrated_outcomes(
    model: PreTrainedModel, job: Job, calibration: Sequence[Batch] | TracedCalibration, *, sequential: bool
) -> tuple[Sequence[Outcome], dict[str, int]]:
    """The outcomes of a calibrated method, and the number of samples and of tokens that it saw; the model is only read.

    One forward and one backward pass of the model give the traces of all sites (`trace_calibration`), unless they are
    there. With `sequential` the blocks are compressed in the order of the plan in a copy of the model, and each sees
    the inputs that those before it leave: a forward pass a site more, and the memory of the copy. A method that chooses
    its scales in a second step does so by the gradients of a copy with all blocks in place: another such pass. Raises
    `InputError` as `trace_calibration`, `TracedCalibration.check` and the method do.
    """
    sites = job.plan.sites
    if isinstance(calibration, TracedCalibration):
        calibration.check(sites, job.seed, head_pooling(job.method))
        traced = calibration
    else:
        traced = trace_calibration(model, sites, calibration, job.seed, head_pooling(job.method))
    one = traced.traces[sites[0].path]
    counts = {"samples": one.num_samples, "tokens": one.num_tokens}

    def calibrate(site: Site) -> Calibration:
        return Calibration.of(read_mlp(model, site), traced.traces[site.path], traced.weights.get(site.path))

    calibrated = replace(job, calibrate=calibrate, rescaled=False)
    if sequential:
        outcomes = _sequential_outcomes(model, calibrated, traced.batches)
    else:
        outcomes = compute_outcomes(model, calibrated)
    if is_rescaled(job.method):
        after = _compressed_traces(model, job, outcomes, traced.batches)
        outcomes = rescaled_outcomes(model, job, cast("Sequence[Narrowed]", outcomes), traced.traces, after)
    return outcomes, counts


def calibration_head(model: PreTrainedModel, seed: int, pooling: str = "mean") -> RandomHead:
    """The random head of calibration, of several logits; another than that with which the same seed measures."""
    return random_head(model, site_generator(seed, "calibration head"), NUM_LOGITS, pooling)


def data_free_calibration(model: PreTrainedModel, sites: Sequence[Site], seed: int) -> Callable[[Site], Calibration]:
    """The calibration of a site from the statistics of the normalisation that feeds it, by the site's own generator.

    Standard normal numbers go through the norm: a LayerNorm of weight w and bias b gives b + w * g, every token of g
    with mean 0 and variance 1, an RMSNorm w * g with a root mean square of 1. `NUM_SAMPLES` samples of `NUM_TOKENS`
    tokens, standard normal cotangents. Raises `InputError` as `feeding_norms` does.
    """
    norms = feeding_norms(model, sites)

    def calibrate(site: Site) -> Calibration:
        mlp, generator = read_mlp(model, site), site_generator(seed, f"{site.path} calibration")
        trace = norm_trace(norms[site.path], mlp.up, generator)
        return Calibration.of(mlp, trace)

    return calibrate


@torch.no_grad()
def norm_trace(norm: nn.Module, like: Tensor, generator: torch.Generator) -> BlockTrace:
    """What `norm` makes of standard normal tokens as long as the rows of `like`, on its device, in fp32 or better."""
    compute = torch.promote_types(like.dtype, torch.float32)
    drawn = torch.randn(NUM_SAMPLES * NUM_TOKENS, like.shape[1], generator=generator, dtype=compute)
    inputs = copy.deepcopy(norm).to(compute)(drawn.to(like.device))
    lengths = torch.full((NUM_SAMPLES,), NUM_TOKENS, device=like.device)
    return random_trace(inputs, lengths, generator)


@torch.no_grad()
def feeding_norms(model: PreTrainedModel, sites: Sequence[Site]) -> dict[str, nn.Module]:
    """For every site, by path, the normalisation whose output is, bit for bit, what enters the MLP.

    Found by one forward pass on dummy inputs, in eval mode. Raises `InputError` for a site that none feeds directly, as
    in models that normalise after the MLP only.
    """
    norms: list[tuple[nn.Module, Tensor]] = []

    def keep(module: nn.Module, _args: Any, output: Tensor) -> None:
        norms.append((module, output))

    modules = [module for module in model.modules() if "Norm" in type(module).__name__]
    hooks = [module.register_forward_hook(keep) for module in modules]
    try:
        with eval_mode(model), watch_sites(model, sites) as seen:
            base_model(model)(**dummy_inputs(model))
    finally:
        for hook in hooks:
            hook.remove()
    pairs = zip(sites, seen, strict=True)
    return {site.path: _norm_with_output(norms, one.inputs[0], site) for site, one in pairs}


def dummy_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """Inputs on which any model runs: transformers' dummy ids, or two random images for a vision model."""
    if model.main_input_name != "pixel_values":
        return {name: tensor.to(model.device) for name, tensor in model.dummy_inputs.items()}
    size, channels = model.config.image_size, model.config.num_channels
    height, width = (size, size) if isinstance(size, int) else size
    images = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))
    return {"pixel_values": images.to(model.device, model.dtype)}


def _norm_with_output(norms: Sequence[tuple[nn.Module, Tensor]], inputs: Tensor, site: Site) -> nn.Module:
    for norm, output in norms:
        if output.numel() == inputs.numel() and torch.equal(output.reshape(inputs.shape), inputs):
            return norm
    raise InputError(
        f"`data_free` must be left out where no normalisation feeds the MLP, as at {site.path}; give `calibration`"
    )


def _compressed_traces(
    model: PreTrainedModel, job: Job, outcomes: Sequence[Outcome], batches: Sequence[Batch]
) -> dict[str, BlockTrace]:
    """The traces of the sites, on the same samples, in the model with all blocks in place."""
    work, sites = copy.deepcopy(model), job.plan.sites
    for site, outcome in zip(sites, outcomes, strict=True):
        KINDS[type(outcome)].install(work, site, outcome)
    with eval_mode(work):
        return block_traces(work, sites, batches, alternating_logit, calibration_head(model, job.seed))


def _sequential_outcomes(model: PreTrainedModel, job: Job, batches: Sequence[Batch]) -> list[Outcome]:
    """The blocks one after the other, each calibrated on the inputs that it gets in the model compressed so far."""
    work, outcomes = copy.deepcopy(model), []
    original = job.calibrate
    assert original is not None

    def calibrate(site: Site) -> Calibration:
        with eval_mode(work):
            inputs = mlp_inputs(work, [site], batches)[site.path]
        calibration = original(site)
        return replace(calibration, trace=replace(calibration.trace, inputs=inputs))

    total = len(job.plan.entries)
    for done, entry in enumerate(job.plan.entries):
        job.progress(done, total, entry[0].path)
        step = replace(job, plan=Plan((entry,)), progress=lambda *_: None, calibrate=calibrate)
        (outcome,) = compute_outcomes(work, step)
        KINDS[type(outcome)].install(work, entry[0], outcome)
        outcomes.append(outcome)
    job.progress(total, total, "")
    return outcomes
