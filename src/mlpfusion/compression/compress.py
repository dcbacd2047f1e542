"""Compresses a model in place: reads all blocks of the plan, runs the method, installs; leaves a record."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from mlpfusion.batch import Batch
from mlpfusion.checkpoint.quantisation import check_not_quantised, check_parameters
from mlpfusion.checks import real_number, seed_number, usable_device, whole_number, yes_or_no
from mlpfusion.compression.budget import Spread, spread_budget
from mlpfusion.compression.calibration import (
    TracedCalibration,
    calibrated_outcomes,
    check_calibration,
    check_taken,
    checked_batches,
    data_free_calibration,
)
from mlpfusion.compression.outcomes import Job, check_finite_outcomes, compute_outcomes
from mlpfusion.compression.plan import Plan, make_plan
from mlpfusion.errors import InputError, shown
from mlpfusion.kinds.folding import set_key
from mlpfusion.kinds.key import KEY, FusionKey, InstalledSite, site_kind
from mlpfusion.kinds.model_key import model_key
from mlpfusion.kinds.outcome import Outcome
from mlpfusion.kinds.table import KINDS
from mlpfusion.kinds.undo import put_back_on_error
from mlpfusion.methods import ALL_METHODS, CALIBRATED_METHODS, NARROW_METHODS, method_name
from mlpfusion.options.selection import Selection
from mlpfusion.progress import Progress, shown_progress
from mlpfusion.record import Record, SiteRecord, model_size, peak_bytes, versions, warn_if_degenerate
from mlpfusion.sites.row_check import check_visited, checked_sites
from mlpfusion.sites.sites import Site, base_model, check_transformers_model, find_sites, read_mlp, site_parameters
from mlpfusion.sites.table import Architecture


@torch.no_grad()
def compress(
    model: PreTrainedModel,
    method: Any,
    *,
    layers: str = "all",
    keep_ratio: float | None = None,
    width: int | None = None,
    budget: str | None = None,
    round_to: int = 1,
    seed: int = 0,
    calibration: Sequence[Batch] | TracedCalibration | None = None,
    sequential: bool = False,
    architecture: Architecture | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Record:
    """Makes the MLPs of the chosen layers smaller. Changes `model` in place; `save_pretrained` then just works.

    `method` is a config such as `Fusion()`. `keep_ratio` is the share of the entries of the MLPs' matrices to keep,
    whatever the method makes of them (neurons, factors, entries that are not zero); `layers`, `width` and `round_to`
    are those of `make_plan`, the last two for methods that narrow. For these `budget`, in place of ratio and width, is
    the share of the whole model to keep, `60%` of its parameters or `60%flops`, spread over the layers where it hurts
    least (`compression.budget`). `device` is where the arithmetic is done (default: where the model is). The same
    `seed` gives the same bytes on the same CPU with the same number of threads. `progress(done, total, path)` is called
    before each block and at the end.

    `calibration` holds batches of model inputs, unlabelled, for a method that takes them, or what `trace_calibration`
    made of them with the same seed; with `sequential` every block sees what the blocks compressed before it leave.
    `calibrated_outcomes` says what that costs. Raises `InputError`, before anything is changed, for an unknown model
    type or method, a bad layer or width, NaN or Inf in a weight or in what the method or the calibration makes, a
    calibration that is missing, empty or not wanted, or a model that is compressed, quantised, offloaded or dispatched.
    Any other exception, an interrupt included, leaves the model as it was too.

    The linear maps are replaced by new ones: make an optimizer after `compress`, or it trains parameters that are no
    longer in the model, and register hooks on these modules after it.
    """
    started = time.perf_counter()
    seed, round_to = seed_number("seed", seed), whole_number("round_to", round_to, 1)
    keep_ratio = None if keep_ratio is None else real_number("keep_ratio", keep_ratio)
    width = None if width is None else whole_number("width", width)
    check_method(method, width, round_to, budget)
    Selection(layers, keep_ratio, width, budget, round_to).check_size_given()
    check_calibration(method, given=calibration is not None, sequential=yes_or_no("sequential", sequential))
    batches = checked_batches(calibration)
    check_model(model)
    if batches is not None and not isinstance(calibration, TracedCalibration):
        check_taken(model, batches)
    selection: dict[str, Any] = {"layers": layers, "keep_ratio": keep_ratio, "width": width, "round_to": round_to}
    row, sites = checked_sites(model, architecture)
    recipe = {"method": method_name(type(method)), "options": asdict(method), **selection, "seed": seed}
    recipe |= {} if budget is None else {"budget": budget}
    place = usable_device(model.device if device is None else device)
    job, spread = _planned(model, sites, Job(Plan(()), method, seed, place, shown_progress(progress)), recipe, batches)
    outcomes, used = _outcomes(model, job, calibration, sequential)
    record = install_outcomes(model, job.plan, outcomes, row, recipe, job.device)
    return replace(
        record,
        recipe=recipe | used,
        seconds=round(time.perf_counter() - started, 3),
        budget=None if spread is None else asdict(spread),
    )


def install_outcomes(
    model: PreTrainedModel,
    plan: Plan,
    outcomes: Sequence[Outcome],
    architecture: Architecture,
    recipe: Mapping[str, Any],
    device: torch.device,
) -> Record:
    """Puts the blocks of a plan in place and the key into the config. Changes the model.

    The record lacks the time; `recipe` is its recipe, of which the key takes `method` and `seed`, `device` where the
    outcomes were computed. Warns once if clusterings among them were degenerate. Any exception leaves the model as it
    was, also a warning that is one; raises `InputError` for NaN or Inf in an outcome.
    """
    check_finite_outcomes(plan, outcomes, recipe["method"])
    original, digest = model_size(model), source_hash(model, plan.sites)
    records, installed = [], {}
    with put_back_on_error(model):
        for (site, _), outcome in zip(plan.entries, outcomes, strict=True):
            before = read_mlp(model, site).num_parameters
            entry = KINDS[type(outcome)].install(model, site, outcome)
            records.append(_site_record(site, before, entry, outcome.metrics))
            installed[site.path] = entry
        warn_if_degenerate(records)
        set_key(model, FusionKey(architecture, installed, recipe["method"], recipe["seed"], digest))
        return Record(
            recipe=dict(recipe),
            source_sha256=digest,
            device=str(device),
            threads=torch.get_num_threads(),
            dtype=str(model.dtype).removeprefix("torch."),
            versions=versions(),
            seconds=0.0,
            peak_bytes=peak_bytes(device),
            original=original,
            compressed=model_size(model),
            sites=tuple(records),
        )


def check_method(method: Any, width: int | None, round_to: int, budget: str | None = None) -> None:
    """Raises `InputError` unless `method` is a config of a table, and one that narrows where a width is asked for."""
    if type(method) not in ALL_METHODS:
        raise InputError(
            f"`method` must be a config of {', '.join(m.__name__ for m in ALL_METHODS)}, got {shown(method)}"
        )
    check_size_options(method, width, round_to, budget)


def check_size_options(method: Any, width: int | None, round_to: int, budget: str | None) -> None:
    """Raises `InputError` if a width, a budget or a step of widths is asked of a method that keeps the width."""
    refused = {"width": width is not None, "budget": budget is not None, "round_to": round_to != 1}
    if type(method) not in NARROW_METHODS and any(refused.values()):
        given = next(name for name, is_given in refused.items() if is_given)
        raise InputError(
            f"`{given}` must be left out for {method_name(type(method))}, which keeps the width: give `keep_ratio`"
        )


def check_not_compressed(config: PreTrainedConfig) -> None:
    """Raises `InputError` if the config is that of a compressed model."""
    if getattr(config, KEY, None) is not None:
        raise InputError("`model` must not be compressed already, got one with the config key `mlp_fusion`")


def check_model(model: PreTrainedModel) -> None:
    """Raises `InputError` unless all weights are there, plain, finite, on one device, and neither cut nor wrapped."""
    check_transformers_model(model)
    check_not_compressed(model.config)
    check_not_quantised(model.config)
    if len(set(getattr(model, "hf_device_map", {"": 0}).values())) > 1:
        raise InputError("`model` must be on one device, got one dispatched by `device_map`")
    check_parameters(model)


def source_hash(model: PreTrainedModel, sites: Sequence[Site]) -> str:
    """SHA-256 of the original MLP weights of `sites` (name, dtype, shape, bytes), the same under every head."""
    digest = hashlib.sha256()
    names = {id(parameter): name for name, parameter in base_model(model).named_parameters()}
    for site in sites:
        for parameter in site_parameters(base_model(model), site):
            digest.update(f"{names[id(parameter)]} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_source(
    original: PreTrainedModel, compressed: PreTrainedModel, names: tuple[str, str], field: str = "original"
) -> FusionKey:
    """The key of `compressed`. Raises `InputError` unless it is compressed, and `original` is what it was made from.

    The hash of the source weights stands in the key. `names` are those of the two models for the message, `field` is
    that of the original.
    """
    check_not_compressed(original.config)
    key = model_key(compressed.config)
    if key is None:
        raise InputError(f"`compressed` must be compressed by mlpfusion, got {names[1]}")
    kinds = original.config.model_type, compressed.config.model_type
    if kinds[0] != kinds[1]:
        raise InputError(f"`{field}` must be the source of {names[1]}, a {kinds[1]}, got {names[0]}, a {kinds[0]}")
    sites = [site for site in find_sites(original, key.architecture) if site.path in key.sites]
    if {site.path for site in sites} != set(key.sites) or source_hash(original, sites) != key.source_sha256:
        raise InputError(f"`{field}` must be the source of {names[1]}, got {names[0]}, whose MLPs have another hash")
    return key


def _planned(
    model: PreTrainedModel, sites: Sequence[Site], job: Job, recipe: dict[str, Any], batches: Sequence[Batch] | None
) -> tuple[Job, Spread | None]:
    """The job with the plan that the recipe asks for, and where that is a budget how it was spread."""
    if "budget" not in recipe:
        plan, spread = _plan_of(sites, recipe), None
    else:
        selection = {name: recipe[name] for name in ("layers", "round_to", "seed")}
        given = {"calibration": batches, "device": job.device, "progress": job.progress}
        plan, spread = spread_budget(model, sites, recipe["budget"], job.method, **selection, **given)
    check_visited(model, plan.sites)
    return replace(job, plan=plan), spread


def _plan_of(sites: Sequence[Site], recipe: dict[str, Any]) -> Plan:
    selection = Selection(recipe["layers"], recipe["keep_ratio"], recipe["width"], None, recipe["round_to"])
    return make_plan(sites, selection)


def _outcomes(
    model: PreTrainedModel, job: Job, calibration: Sequence[Batch] | TracedCalibration | None, sequential: bool
) -> tuple[Sequence[Outcome], dict[str, Any]]:
    """The outcomes of any method, and what the record says about the calibration of one that is calibrated."""
    if type(job.method) not in CALIBRATED_METHODS:
        return compute_outcomes(model, job), {}
    if calibration is None:
        sites = job.plan.sites
        calibrate = data_free_calibration(model, sites, job.seed)
        return compute_outcomes(model, replace(job, calibrate=calibrate)), {"sequential": False, "calibration": None}
    outcomes, counts = calibrated_outcomes(model, job, calibration, sequential=sequential)
    return outcomes, {"sequential": sequential, "calibration": counts}


def _site_record(site: Site, before: int, entry: InstalledSite, metrics: dict[str, float]) -> SiteRecord:
    data = asdict(entry)
    return SiteRecord(
        path=site.path,
        layer=site.layer,
        original_width=site.intermediate_size,
        width=data.get("intermediate_size", site.intermediate_size),
        original_parameters=before,
        parameters=entry.num_parameters,
        metrics=metrics,
        kind=site_kind(entry),
        rank=data.get("rank"),
        nonzero_parameters=entry.num_parameters - data.get("num_zeros", 0),
    )
