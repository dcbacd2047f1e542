"""Compresses a model by a method that learns on a labelled task; the learning is done on a copy."""

import copy
import time
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from mlpfusion.checks import usable_device
from mlpfusion.compression.checks import check_experts, check_model
from mlpfusion.compression.install import install_outcomes
from mlpfusion.compression.plan import Plan, make_plan
from mlpfusion.compression.settings import Settings
from mlpfusion.data.encode import EncodedTask
from mlpfusion.data.labelled.glue import LabelledTask, check_labelled
from mlpfusion.data.labelled.heads import check_head
from mlpfusion.errors import InputError, shown
from mlpfusion.kinds.outcome import Outcome
from mlpfusion.methods.on_task.job import TaskJob
from mlpfusion.methods.table import METHODS
from mlpfusion.options.selection import Selection
from mlpfusion.progress import Progress, shown_progress
from mlpfusion.record import Record
from mlpfusion.seeds import seeded
from mlpfusion.sites.proof.row_check import check_visited, checked_sites
from mlpfusion.sites.sites import check_transformers_model, find_sites
from mlpfusion.sites.table import Architecture


@dataclass(frozen=True)
class Learned:
    """The outcomes of a method that learned on a task, one a site of `plan`.

    They fit a model of any class with the same MLPs. `device` and `seconds` (wall time) are those of the learning.
    """

    architecture: Architecture
    plan: Plan
    outcomes: tuple[Outcome, ...]
    settings: Settings
    device: torch.device
    seconds: float


def learn(
    model: PreTrainedModel,
    method: Any,
    data: EncodedTask,
    selection: Selection,
    seed: int,
    *,
    architecture: Architecture | None = None,
    stacks: str | None = None,
    device: torch.device | str | None = None,
    progress: Progress | bool | None = None,
) -> Learned:
    """Returns what `method` learns on `data.train`; `model` is not changed.

    Learning is done on a copy on `device` (default: where the model is) in fp32 or better; the global random streams
    are left as they were. Raises `InputError` for a model without the head of the task, compressed or not finite, bad
    layers, no training examples, a label out of range, and options the method refuses; `DivergenceError` for a loss of
    NaN or Inf.
    """
    started = time.perf_counter()
    check_transformers_model(model)
    told = shown_progress(progress)
    if not isinstance(data, EncodedTask):
        raise InputError(f"`data` must be an `EncodedTask`, as `encode_task` makes one, got {shown(data)}")
    check_model(model)
    place = usable_device(model.device if device is None else device)
    task = check_labelled(data.task)
    check_head(model, task.num_labels)
    _check_examples(data, task)
    with torch.no_grad():
        row, sites = checked_sites(model, architecture, stacks)
    check_experts(model, method, sites)
    plan = make_plan(sites, selection)
    check_visited(model, plan.sites)
    assert plan.keep_ratio is not None
    with seeded(seed):
        widths = tuple(width for _, width in plan.entries)
        copied, sites = working_copy(model, place), tuple(plan.sites)
        job = TaskJob(copied, sites, plan.keep_ratio, data, seed, told, widths, plan.round_to)
        outcomes = tuple(METHODS[type(method)].compress(job, method))
    seconds = round(time.perf_counter() - started, 3)
    return Learned(row, plan, outcomes, Settings(method, selection, seed, task=data), place, seconds)


@torch.no_grad()
def install_learned(model: PreTrainedModel, learned: Learned) -> Record:
    """Puts learned outcomes into `model`, of any class with the same MLPs; returns the record.

    Changes `model`, which ends in eval mode. Raises `InputError` for a compressed model.
    """
    check_model(model)
    assert {site.path for site in learned.plan.sites} <= {s.path for s in find_sites(model, learned.architecture)}
    record = install_outcomes(
        model, learned.plan, learned.outcomes, learned.architecture, learned.settings, learned.device
    )
    model.eval()
    return replace(record, seconds=learned.seconds)


def working_copy(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Copies the model to `device`, in fp32 or better and in eval mode, with gradients for all parameters."""
    copied = cast(nn.Module, copy.deepcopy(model))
    copied.to(device, torch.promote_types(model.dtype, torch.float32)).eval().requires_grad_(True)
    return cast(PreTrainedModel, copied)


def _check_examples(data: EncodedTask, task: LabelledTask) -> None:
    """Raises `InputError` for no training example, or a label out of range."""
    if not len(data.train):
        raise InputError("`data` must hold at least one training example, got none")
    if task.is_regression:
        return
    for number, item in enumerate(data.train.items):
        if item.get("labels") not in range(task.num_labels):
            raise InputError(
                f"`labels` of the training examples must be between 0 and {task.num_labels - 1}, "
                f"got {item.get('labels')!r} in example {number}"
            )
