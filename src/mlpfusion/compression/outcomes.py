"""Runs a method on the blocks of a plan; the model is only read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from mlpfusion.checks import num_not_finite
from mlpfusion.compression.plan import Plan
from mlpfusion.errors import InputError
from mlpfusion.kernel import BlockTrace
from mlpfusion.kinds.outcome import LowRank, Masked, Narrowed, Outcome, outcome_tensors
from mlpfusion.methods import LOW_RANK_METHODS, MASK_METHODS, RESCALED_METHODS, budget_rank, factorise, mask, narrow
from mlpfusion.methods.calibrated.calibration import Calibration
from mlpfusion.mlp import on_device
from mlpfusion.progress import Progress
from mlpfusion.seeds import site_generator
from mlpfusion.sites.sites import Site, read_mlp


@dataclass(frozen=True)
class Job:
    """One method on the blocks of one plan: what `compute_outcomes` needs beside the model.

    `calibrate` gives the calibration of a site, on any device, for a method that takes one; `rescaled` is that of
    `narrow`.
    """

    plan: Plan
    method: Any
    seed: int
    device: torch.device
    progress: Progress
    calibrate: Callable[[Site], Calibration] | None = None
    rescaled: bool = True


def compute_outcomes(model: PreTrainedModel, job: Job) -> Sequence[Outcome]:
    """What the method makes of every block of the plan, on the device of the model; the arithmetic is on the job's.

    Raises `InputError` for what the method refuses.
    """
    if type(job.method) in LOW_RANK_METHODS:
        return _low_rank(model, job)
    if type(job.method) in MASK_METHODS:
        return _masked(model, job)
    return _narrowed(model, job)


def rescaled_outcomes(
    model: PreTrainedModel,
    job: Job,
    narrowed: Sequence[Narrowed],
    before: Mapping[str, BlockTrace],
    after: Mapping[str, BlockTrace],
) -> list[Narrowed]:
    """The second step of a method in `RESCALED_METHODS`: `before` are the traces of `model`, `after` those of the same
    samples in the model with the blocks `narrowed`.
    """
    rescale, results = RESCALED_METHODS[type(job.method)], []
    for (site, _), one in zip(job.plan.entries, narrowed, strict=True):
        small = replace(one, mlp=on_device(one.mlp, job.device))
        traces = [side[site.path].to(job.device) for side in (before, after)]
        result = rescale(on_device(read_mlp(model, site), job.device), traces[0], small, traces[1], job.method)
        results.append(replace(result, mlp=on_device(result.mlp, one.mlp.up.device)))
    return results


def check_finite_outcomes(plan: Plan, outcomes: Sequence[Outcome], method: str) -> None:
    """Raises `InputError` for NaN or Inf in what `method` made: its arithmetic overflowed."""
    for (site, _), outcome in zip(plan.entries, outcomes, strict=True):
        for name, tensor in outcome_tensors(outcome).items():
            bad = num_not_finite(tensor) if tensor.is_floating_point() else 0
            if bad:
                raise InputError(
                    f"`method` must be one that can cope with the weights at {site.path}, {method} made {bad} NaN or "
                    f"Inf of `{name}`: some weights are very large or very small; fp32 or another method may help"
                )


def _narrowed(model: PreTrainedModel, job: Job) -> list[Narrowed]:
    narrowed = []
    for done, (site, num_neurons) in enumerate(job.plan.entries):
        job.progress(done, len(job.plan.entries), site.path)
        mlp = read_mlp(model, site)
        calibration = None if job.calibrate is None else job.calibrate(site).to(job.device)
        generator = site_generator(job.seed, site.path)
        result = narrow(
            on_device(mlp, job.device), num_neurons, job.method, generator, calibration, rescaled=job.rescaled
        )
        narrowed.append(replace(result, mlp=on_device(result.mlp, mlp.up.device)))
    job.progress(len(job.plan.entries), len(job.plan.entries), "")
    return narrowed


def _low_rank(model: PreTrainedModel, job: Job) -> list[LowRank]:
    assert job.plan.keep_ratio is not None
    results = []
    for done, (site, _) in enumerate(job.plan.entries):
        job.progress(done, len(job.plan.entries), site.path)
        rank = budget_rank(site.hidden_size, site.intermediate_size, job.plan.keep_ratio)
        mlp = read_mlp(model, site)
        result = factorise(on_device(mlp, job.device), rank, job.method, site_generator(job.seed, site.path))
        home = mlp.up.device
        factors = {name: (left.to(home), right.to(home)) for name, (left, right) in result.factors.items()}
        results.append(replace(result, factors=factors))
    job.progress(len(job.plan.entries), len(job.plan.entries), "")
    return results


def _masked(model: PreTrainedModel, job: Job) -> list[Masked]:
    """All blocks in one call: a method may rank them together."""
    assert job.plan.keep_ratio is not None
    sites: list[Site] = job.plan.sites
    job.progress(0, len(sites), sites[0].path)
    mlps = [read_mlp(model, site) for site in sites]
    generators = [site_generator(job.seed, site.path) for site in sites]
    results = mask([on_device(mlp, job.device) for mlp in mlps], job.plan.keep_ratio, job.method, generators)
    job.progress(len(sites), len(sites), "")
    return [
        replace(result, mlp=on_device(result.mlp, mlp.up.device)) for result, mlp in zip(results, mlps, strict=True)
    ]
