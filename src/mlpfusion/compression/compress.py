"""Compresses a model in place: chooses blocks and sizes, runs the method, installs; leaves a record."""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from mlpfusion.batch import Batch
from mlpfusion.checks import seed_number, usable_device, yes_or_no
from mlpfusion.compression.budget import Spread, spread_budget
from mlpfusion.compression.calibration.checks import check_calibration, check_taken
from mlpfusion.compression.calibration.outcomes import calibrated_outcomes
from mlpfusion.compression.calibration.traces import TracedCalibration, checked_batches
from mlpfusion.compression.checks import check_experts, check_model, check_sizes, known_method
from mlpfusion.compression.install import install_outcomes
from mlpfusion.compression.on_task import install_learned, learn
from mlpfusion.compression.plan import Plan, make_plan
from mlpfusion.compression.run import MethodRun, run_method
from mlpfusion.compression.settings import Settings
from mlpfusion.data.encode import EncodedTask
from mlpfusion.errors import InputError
from mlpfusion.kinds.outcome import Outcome
from mlpfusion.methods.names import method_name
from mlpfusion.methods.needs import needs_batches
from mlpfusion.methods.table import METHODS
from mlpfusion.options.selection import Selection
from mlpfusion.progress import Progress, shown_progress
from mlpfusion.record import Record
from mlpfusion.sites.proof.row_check import check_visited, checked_sites
from mlpfusion.sites.sites import Site
from mlpfusion.sites.table import Architecture

_LOGGER = logging.getLogger(__name__)


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
    data: EncodedTask | None = None,
    architecture: Architecture | None = None,
    stacks: str | None = None,
    device: torch.device | str | None = None,
    progress: Progress | bool | None = None,
) -> Record:
    """Makes the MLPs of the chosen layers smaller. Changes `model` in place; `save_pretrained` then just works.

    `method` is a config such as `Fusion()`. Give one size: `keep_ratio` is the share of the entries of the MLPs'
    matrices to keep, whatever the method makes of them (neurons, factors, entries that are not zero); `width` is a
    number of neurons, and `budget` a share of the whole model, `60%` of its parameters or `60%flops`, spread over the
    layers where it hurts least: both are for methods that narrow. `layers` and `round_to` are those of `Selection`.
    `architecture` says where the MLPs are, if they are not found; of a model of texts and images or sounds the stacks
    that read text are cut, or those that `stacks` names: `text`, `vision`, `audio`, `all`, or a pattern.
    The same `seed` gives the same bytes on the same CPU with the same number of threads. The arithmetic is done on
    `device` (default: where the model is). `progress(done, total, path)` is called before each block and at the end;
    True shows a bar of tqdm. The logger `mlpfusion` says the same.

    A calibrated method takes `calibration`: unlabelled batches of model inputs, or what `trace_calibration` made of
    them with the same seed. With `sequential` every block sees what the blocks compressed before it leave. A method
    that learns on a labelled task takes `data`, of which only `train` is looked at; `model` must have the head of the
    task, and ends in eval mode.

    Raises `InputError`, before anything is changed, for an unknown model type or method, a bad layer or size, NaN or
    Inf in a weight or in what is made of it, data that is missing, empty or not wanted, or a model that is compressed,
    quantised, offloaded or dispatched; `DivergenceError` for a loss that is not finite. Any other exception, an
    interrupt included, leaves the model as it was too.

    The linear maps are replaced by new ones: make an optimizer after `compress`, or it trains parameters that are no
    longer in the model, and register hooks on these modules after it.

    >>> import mlpfusion
    >>> from transformers import AutoModel, BertConfig
    >>> model = AutoModel.from_config(BertConfig(hidden_size=24, num_hidden_layers=2, intermediate_size=48))
    >>> record = mlpfusion.compress(model, mlpfusion.Fusion(), layers="last:1", keep_ratio=0.25)
    >>> record.sites[0].original_width, record.sites[0].width
    (48, 12)
    """
    row = known_method(method)
    seed = seed_number("seed", seed)
    selection = Selection(layers, keep_ratio, width, budget, round_to)
    selection.check_size_given()
    check_sizes(method, selection)
    check_calibration(method, given=calibration is not None, sequential=yes_or_no("sequential", sequential))
    _check_data(method, data)
    progress = shown_progress(progress)
    if row.sees == "labels":
        assert data is not None
        learned = learn(
            model,
            method,
            data,
            selection,
            seed,
            architecture=architecture,
            stacks=stacks,
            device=device,
            progress=progress,
        )
        return _logged(install_learned(model, learned))
    with torch.no_grad():
        started = time.perf_counter()
        batches = checked_batches(calibration)
        check_model(model)
        if batches is not None and not isinstance(calibration, TracedCalibration):
            check_taken(model, batches)
        architecture, sites = checked_sites(model, architecture, stacks)
        check_experts(model, method, sites)
        place = usable_device(model.device if device is None else device)
        plan, spread = _plan(model, sites, selection, MethodRun(Plan(()), method, seed, place, progress), batches)
        run = MethodRun(plan, method, seed, place, progress)
        outcomes, settings = _outcomes(model, run, Settings(method, selection, seed, sequential), calibration)
        record = install_outcomes(model, plan, outcomes, architecture, settings, place)
        seconds = round(time.perf_counter() - started, 3)
        return _logged(replace(record, seconds=seconds, budget=None if spread is None else asdict(spread)))


def _logged(record: Record) -> Record:
    """The same record, told to the logger."""
    before, after = record.original.parameters, record.compressed.parameters
    told = len(record.sites), record.recipe["method"], before, after, record.seconds
    _LOGGER.info("compressed %d blocks by %s: %d -> %d parameters, %.1f s", *told)
    return record


def _plan(
    model: PreTrainedModel,
    sites: Sequence[Site],
    selection: Selection,
    run: MethodRun,
    batches: Sequence[Batch] | None,
) -> tuple[Plan, Spread | None]:
    """The widths that the selection asks for, and where that is a budget how it was spread."""
    if selection.budget is None:
        plan, spread = make_plan(sites, selection), None
    else:
        plan, spread = spread_budget(
            model, sites, selection, run.method, seed=run.seed, calibration=batches, device=run.device,
            progress=run.progress,
        )  # fmt: skip
    check_visited(model, plan.sites)
    return plan, spread


def _outcomes(
    model: PreTrainedModel,
    run: MethodRun,
    settings: Settings,
    calibration: Sequence[Batch] | TracedCalibration | None,
) -> tuple[list[Outcome], Settings]:
    """The outcomes of any one-shot method, and the settings with how much it saw."""
    if not needs_batches(run.method):
        return run_method(model, run), settings
    assert calibration is not None
    outcomes, size = calibrated_outcomes(model, run, calibration, sequential=settings.sequential)
    return outcomes, replace(settings, calibration=size)


def _check_data(method: Any, data: EncodedTask | None) -> None:
    """Raises `InputError` unless a task is given to a method that learns on one, and to no other."""
    learns, name = METHODS[type(method)].sees == "labels", method_name(type(method))
    if learns and data is None:
        raise InputError(f"`data` must be given for {name}, which learns on a task, got none")
    if not learns and data is not None:
        raise InputError(f"`data` must be left out for {name}, which does not learn on a task")
