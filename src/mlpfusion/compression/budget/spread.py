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
from mlpfusion.compression.calibration.passes import block_passes
from mlpfusion.compression.plan import Plan, check_step_fits, choose_sites, width_step
from mlpfusion.methods.needs import needs_batches
from mlpfusion.mlp import on_device
from mlpfusion.options.selection import Selection
from mlpfusion.progress import Progress
from mlpfusion.seeds import site_generator
from mlpfusion.sites.recording import recordable, recording
from mlpfusion.sites.sites import Site, by_block, read_mlp
from mlpfusion.sites.waiting import in_run_order

# The unit of the curves: of methods that see no data, and of the others.
MEASURES = ("share of the inertia left", "squared relative error of the last hidden state, alone")


@dataclass(frozen=True)
class Spread:
    """The widths from a budget: amounts in its unit; by block the share kept and the error on its curve."""

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
        blocks = list(by_block(chosen).values())
        spendable(budget, count_amounts(model, blocks, budget.unit), blocks, selection.round_to)


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

    Every chosen MLP gets a multiple of `round_to`, at least one, or its own width, for the smallest sum of errors
    (`allocate`); so do the experts of a mixture together, in steps that their kernels take. The curves are from
    `inertia_curve`, or with a method on batches from `refit_curve` on `calibration`. The result is never above the
    budget, and below by less than one step. `model` is not changed. Raises `InputError` for a budget out of reach, and
    for NaN or Inf.
    """
    budget, chosen, round_to = parse_budget(selection.budget), choose_sites(sites, selection.layers), selection.round_to
    check_step_fits(chosen, round_to)
    blocks = list(by_block(chosen).values())
    steps = [width_step(block[0], round_to) for block in blocks]
    amounts = count_amounts(model, blocks, budget.unit)
    left = spendable(budget, amounts, blocks, round_to)
    compute, calibrated = device or model.device, needs_batches(method)
    if calibrated:
        assert calibration is not None
        curves = _refit_curves(model, blocks, steps, calibration, compute, progress)
    else:
        curves = _inertia_curves(model, blocks, steps, seed, compute, progress)
    widths = allocate(curves, amounts.neurons, steps=steps, budget=left)
    spread = _describe(budget, amounts, MEASURES[calibrated], blocks, widths, curves)
    by_path = {block[0].block_path: width for block, width in zip(blocks, widths, strict=True)}
    return Plan(tuple((site, by_path[site.block_path]) for site in chosen), round_to=round_to), spread


def _grid(block: Sequence[Site], step: int) -> list[int]:
    width = block[0].intermediate_size
    return grid(width, possible_widths(width, step)[0])


def _inertia_curves(
    model: PreTrainedModel,
    blocks: Sequence[Sequence[Site]],
    steps: Sequence[int],
    seed: int,
    device: torch.device,
    progress: Progress | None,
) -> list[Curve]:
    curves = []
    for done, (block, step) in enumerate(zip(blocks, steps, strict=True)):
        _report(progress, done, len(blocks), block)
        members = (
            (on_device(read_mlp(model, site), device), site_generator(seed, f"{site.path} budget")) for site in block
        )
        curves.append(inertia_curve(members, _grid(block, step)))
    return curves


def _refit_curves(
    model: PreTrainedModel,
    blocks: Sequence[Sequence[Site]],
    steps: Sequence[int],
    batches: Sequence[Batch],
    device: torch.device,
    progress: Progress | None,
) -> list[Curve]:
    home, curves = [recordable(batch, model.device) for batch in batches], dict[str, Curve]()
    step_of = {block[0].block_path: step for block, step in zip(blocks, steps, strict=True)}
    with recording(model, gradients=False):
        sites = in_run_order(model, [site for block in blocks for site in block], home[0])
        with block_passes(model, sites, home, sequential=False) as passes:
            probe = Probe.of(model, home)
            for path, block in by_block(sites).items():
                _report(progress, len(curves), len(blocks), block)
                seen = [passes.at(site) for site in block]
                curves[path] = refit_curve(model, block, seen, _grid(block, step_of[path]), probe, device)
    return [curves[block[0].block_path] for block in blocks]


def _report(progress: Progress | None, done: int, total: int, block: Sequence[Site]) -> None:
    if progress is not None:
        progress(done, total, f"{block[0].block_path} (budget)")


def _describe(
    budget: Budget,
    amounts: Amounts,
    measure: str,
    blocks: Sequence[Sequence[Site]],
    widths: Sequence[int],
    curves: Sequence[Curve],
) -> Spread:
    rows = tuple(
        {
            "path": block[0].block_path,
            "width": width,
            "share": width / block[0].intermediate_size,
            "error": float(curve.at([width])[0]),
        }
        for block, width, curve in zip(blocks, widths, curves, strict=True)
    )
    kept = amounts.fixed + sum(cost * width for cost, width in zip(amounts.neurons, widths, strict=True))
    return Spread(str(budget), budget.unit, amounts.total, kept, measure, rows)
