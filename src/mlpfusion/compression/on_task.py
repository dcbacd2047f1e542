"""Compresses a model by a method that learns on a labelled task what to keep; learning is done on a copy."""

import copy
import time
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from mlpfusion.checks import real_number, seed_number, usable_device
from mlpfusion.compression.compress import check_model, install_outcomes
from mlpfusion.compression.plan import Plan, make_plan
from mlpfusion.data.encode import EncodedTask
from mlpfusion.data.heads import check_head
from mlpfusion.errors import InputError, shown
from mlpfusion.kinds.outcome import Outcome
from mlpfusion.methods import method_name
from mlpfusion.methods.on_task import TASK_METHODS
from mlpfusion.methods.on_task.job import TaskJob
from mlpfusion.options.selection import Selection
from mlpfusion.progress import Progress, shown_progress
from mlpfusion.record import Record
from mlpfusion.seeds import seeded
from mlpfusion.sites.row_check import check_visited, checked_sites
from mlpfusion.sites.sites import check_transformers_model, find_sites
from mlpfusion.sites.table import Architecture


@dataclass(frozen=True)
class Learned:
    """What a task method learned: the outcome for every site of the plan, whatever class the model has.

    `recipe` is what the record says of how; `device` where it was learned, in `seconds` of wall time.
    """

    architecture: Architecture
    plan: Plan
    outcomes: tuple[Outcome, ...]
    recipe: dict[str, Any]
    device: torch.device
    seconds: float


def compress_on_task(
    model: PreTrainedModel,
    method: Any,
    data: EncodedTask,
    *,
    layers: str = "all",
    keep_ratio: float,
    seed: int = 0,
    architecture: Architecture | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Record:
    """Compresses the MLPs of the chosen layers by a method of `TASK_METHODS`, which learns on `data.train`.

    Changes `model`, which must have the head of the task, in place, and leaves it in eval mode. Everything but the
    blocks of the plan, the head included, is what it was, bit for bit: fine-tune the model afterwards. `layers` and
    `keep_ratio` are those of `compress`; the evaluation splits of `data` are not looked at. Learning is done on a copy
    on `device` (default: where the model is) in fp32. The same `seed` gives the same bytes on the CPU, and the global
    random streams are left as they were. Raises `InputError`, with the model untouched, as `learn` does.
    """
    given = {"layers": layers, "keep_ratio": keep_ratio, "seed": seed, "architecture": architecture}
    return install_learned(model, learn(model, method, data, device=device, progress=progress, **given))


def learn(
    model: PreTrainedModel,
    method: Any,
    data: EncodedTask,
    *,
    layers: str,
    keep_ratio: float,
    seed: int,
    architecture: Architecture | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Learned:
    """The first half of `compress_on_task`: `model` is only read.

    Raises `InputError` for something that is no task method, a model without the head of the task, compressed already
    or not finite, a bad layer or ratio, no training examples, a label out of range, what the method refuses, and (a
    `DivergenceError`) a loss that is not finite.
    """
    started = time.perf_counter()
    if type(method) not in TASK_METHODS:
        known = ", ".join(one.__name__ for one in TASK_METHODS)
        raise InputError(f"`method` must be a config of {known}, got {shown(method)}")
    check_transformers_model(model)
    seed, keep_ratio = seed_number("seed", seed), real_number("keep_ratio", keep_ratio)
    told = shown_progress(progress)
    if not isinstance(data, EncodedTask):
        raise InputError(f"`data` must be an `EncodedTask`, as `encode_task` makes one, got {shown(data)}")
    check_model(model)
    place = usable_device(model.device if device is None else device)
    check_head(model, data.task.num_labels)
    _check_examples(data)
    with torch.no_grad():
        row, sites = checked_sites(model, architecture)
    plan = make_plan(sites, Selection(layers, keep_ratio))
    check_visited(model, plan.sites)
    with seeded(seed):
        copied = _working_copy(model, place)
        chosen = tuple(site for site, _ in plan.entries)
        job = TaskJob(copied, chosen, keep_ratio, data, seed, told)
        outcomes = tuple(TASK_METHODS[type(method)](job, method))
    recipe = {"method": method_name(type(method)), "options": asdict(method), "layers": layers}
    recipe |= {"keep_ratio": keep_ratio, "width": None, "round_to": 1, "seed": seed}
    recipe["task"] = {"name": data.task.name, "data": data.source, "samples": len(data.train)}
    recipe["task"] |= {"sha256": data.train.sha256()}
    return Learned(row, plan, outcomes, recipe, place, round(time.perf_counter() - started, 3))


@torch.no_grad()
def install_learned(model: PreTrainedModel, learned: Learned) -> Record:
    """The second half: puts what was learned into `model`, of any class, with the MLPs that it was learned for.

    Changes `model` in place. Raises `InputError` if it is compressed already.
    """
    check_model(model)
    assert {site.path for site, _ in learned.plan.entries} <= {s.path for s in find_sites(model, learned.architecture)}
    learnt = (learned.plan, learned.outcomes, learned.architecture, learned.recipe)
    record = install_outcomes(model, *learnt, learned.device)
    model.eval()
    return replace(record, seconds=learned.seconds)


def _working_copy(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """A copy in fp32 or better on `device`, in eval mode, whose parameters all have gradients."""
    copied = cast(nn.Module, copy.deepcopy(model))
    copied.to(device, torch.promote_types(model.dtype, torch.float32)).eval().requires_grad_(True)
    return cast(PreTrainedModel, copied)


def _check_examples(data: EncodedTask) -> None:
    """Raises `InputError` unless there are training examples, each with a label of the task."""
    if not len(data.train):
        raise InputError("`data` must hold at least one training example, got none")
    if data.task.is_regression:
        return
    for number, item in enumerate(data.train.items):
        if item.get("labels") not in range(data.task.num_labels):
            raise InputError(
                f"`labels` of the training examples must be between 0 and {data.task.num_labels - 1}, "
                f"got {item.get('labels')!r} in example {number}"
            )
