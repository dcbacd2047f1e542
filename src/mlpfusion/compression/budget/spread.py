"""Spreads the budget of a model over its blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from mlpfusion.batch import Batch
from mlpfusion.compression.budget.allocation import Curve, allocate, possible_widths
from mlpfusion.compression.budget.amount import Amounts, Budget, count_amounts, parse_budget, spendable
from mlpfusion.compression.budget.curves import Probe, grid, inertia_curve, refit_curve
from mlpfusion.compression.plan import Plan, check_step_fits, choose_sites
from mlpfusion.methods.needs import needs_batches
from mlpfusion.mlp import on_device
from mlpfusion.options.selection import Selection
from mlpfusion.progress import Progress
from mlpfusion.seeds import site_generator
from mlpfusion.sites.recording import recordable, recording
from mlpfusion.sites.sites import Site, read_mlp
from mlpfusion.sites.waiting import waiting_passes

# The unit of the curves: of methods that see no data, and of the others.
MEASURES = ("share of the inertia left", "squared relative error of the last hidden state, alone")


@dataclass(frozen=True)
class Spread:
    """The widths from a budget: amounts in its unit; by site the share kept and the error on its curve."""

    budget: str
    unit: str
    total: int
    kept: int
    measure: str
    sites: tuple[dict[str, Any], ...]


def check_budget(model: PreTrainedModel, sites: Sequence[Site], selection: Selection) -> None:
    """Raises `InputError` for a malformed budget, and one of parameters out of reach; no weight is read.

    A budget of FLOPs needs a run of the model, so `spread_budget` checks it.
    """
    budget, chosen = parse_budget(selection.budget), choose_sites(sites, selection.layers)
    check_step_fits(chosen, selection.round_to)
    if budget.unit == "parameters":
        spendable(budget, count_amounts(model, chosen, budget.unit), chosen, selection.round_to)


@torch.no_grad()
def spread_budget(
    model: PreTrainedModel,
    sites: Sequence[Site],
    selection: Selection,
    method: Any,
    *,
    seed: int = 0,
    calibration: Sequence[Batch] | None = None,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> tuple[Plan, Spread]:
    """Returns a plan within `selection.budget`, for a method that narrows, and how it was spread.

    Every chosen site gets a multiple of `round_to`, at least one, or its own width, for the smallest sum of errors
    (`allocate`). The curves are from `inertia_curve`, or with a method on batches from `refit_curve` on `calibration`.
    The result is never above the budget, and below by less than one step. `model` is not changed. Raises `InputError`
    for a budget out of reach, and for NaN or Inf.
    """
    budget, chosen, round_to = parse_budget(selection.budget), choose_sites(sites, selection.layers), selection.round_to
    check_step_fits(chosen, round_to)
    amounts = count_amounts(model, chosen, budget.unit)
    left = spendable(budget, amounts, chosen, round_to)
    grids = [grid(site.intermediate_size, possible_widths(site.intermediate_size, round_to)[0]) for site in chosen]
    compute, calibrated = device or model.device, needs_batches(method)
    if calibrated:
        assert calibration is not None
        curves = _refit_curves(model, chosen, grids, calibration, compute, progress)
    else:
        curves = _inertia_curves(model, chosen, grids, seed, compute, progress)
    widths = allocate(curves, amounts.neurons, round_to=round_to, budget=left)
    spread = _describe(budget, amounts, MEASURES[calibrated], chosen, widths, curves)
    return Plan(tuple(zip(chosen, widths, strict=True)), round_to=round_to), spread


def _inertia_curves(
    model: PreTrainedModel,
    sites: Sequence[Site],
    grids: Sequence[list[int]],
    seed: int,
    device: torch.device,
    progress: Progress | None,
) -> list[Curve]:
    curves = []
    for done, (site, widths) in enumerate(zip(sites, grids, strict=True)):
        _report(progress, done, len(sites), site)
        mlp = on_device(read_mlp(model, site), device)
        curves.append(inertia_curve(mlp, widths, site_generator(seed, f"{site.path} budget")))
    return curves


def _refit_curves(
    model: PreTrainedModel,
    sites: Sequence[Site],
    grids: Sequence[list[int]],
    batches: Sequence[Batch],
    device: torch.device,
    progress: Progress | None,
) -> list[Curve]:
    home, curves = [recordable(batch, model.device) for batch in batches], []
    with recording(model, gradients=False), waiting_passes(model, sites, home) as passes:
        probe = Probe.of(model, home)
        for done, (site, widths) in enumerate(zip(sites, grids, strict=True)):
            _report(progress, done, len(sites), site)
            curves.append(refit_curve(model, site, passes.inputs_at(site).inputs, widths, probe, device))
    return curves


def _report(progress: Progress | None, done: int, total: int, site: Site) -> None:
    if progress is not None:
        progress(done, total, f"{site.path} (budget)")


def _describe(
    budget: Budget,
    amounts: Amounts,
    measure: str,
    sites: Sequence[Site],
    widths: Sequence[int],
    curves: Sequence[Curve],
) -> Spread:
    rows = tuple(
        {
            "path": site.path,
            "width": width,
            "share": width / site.intermediate_size,
            "error": float(curve.at([width])[0]),
        }
        for site, width, curve in zip(sites, widths, curves, strict=True)
    )
    kept = amounts.fixed + sum(cost * width for cost, width in zip(amounts.neurons, widths, strict=True))
    return Spread(str(budget), budget.unit, amounts.total, kept, measure, rows)
