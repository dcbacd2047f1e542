"""The record of a grid, checked for the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlpfusion.data.tasks import TASKS, find_task
from mlpfusion.errors import InputError, shown
from mlpfusion.report.html.measured.checks import check_some, check_versions
from mlpfusion.storage.typed import typed


@dataclass(frozen=True)
class _Evaluation:
    """The known part of a score while a run trained."""

    step: int
    scores: dict[str, float]


@dataclass(frozen=True)
class _GridRun:
    """The known part of the run of a row."""

    scores: dict[str, dict[str, float]]
    training_loss: tuple[tuple[int, float], ...]
    seconds_per_step: float | None
    trained_parameters: int | None = None
    epochs: tuple[_Evaluation, ...] = ()
    before: dict[str, dict[str, float]] | None = None


@dataclass(frozen=True)
class _Losses:
    loss_before: float
    loss_after: float


@dataclass(frozen=True)
class _Cost:
    flops: int | None
    flops_without_zeros: int | None
    parameters: int
    nonzero_parameters: int
    bytes: int


@dataclass(frozen=True)
class _GridRow:
    """The known part of a row: a finished run, or why it diverged."""

    label: str
    task: str
    method: str | None
    layers: str
    keep_ratio: float
    learning_rate: float
    seed: int
    chosen: bool
    versions: dict[str, str]
    run: _GridRun | None = None
    diverged: str | None = None
    distill: _Losses | None = None
    parameters: int | None = None
    nonzero_parameters: int | None = None
    first: dict[str, dict[str, float]] | None = None
    cost: _Cost | None = None


@dataclass(frozen=True)
class _Grid:
    """The known part of the record of a grid."""

    name: str
    title: str
    description: str
    model: str
    tasks: tuple[str, ...]
    layers: tuple[str, ...]
    keep_ratio: tuple[float, ...]
    seeds: tuple[int, ...]
    learning_rate: tuple[float, ...]
    epochs: int
    batch_size: int
    holdout: float
    select_on: str
    max_train_samples: int | None
    rows: tuple[_GridRow, ...]
    eval_steps: int | None = None


def grid(data: dict[str, Any], where: str) -> dict[str, Any]:
    """Returns the data itself, once its known part is checked."""
    known = typed(_Grid, data, where, in_part=True)
    check_some(known.rows, "rows", where)
    check_some(known.tasks, "tasks", where)
    if known.select_on not in ("holdout", "validation", "last"):
        raise InputError(f"{where} must have holdout, validation or last for `select_on`, got {shown(known.select_on)}")
    if unknown := [task for task in known.tasks if task not in TASKS]:
        raise InputError(f"{where} must have tasks of this version, got {shown(unknown[0])}")
    for row in known.rows:
        if row.task not in known.tasks:
            raise InputError(f"{where} must have one of its tasks in every row, got {shown(row.task)}")
        check_versions(row.versions, where)
        if row.run is None:
            if row.diverged is None:
                raise InputError(f"{where} must have the entry `run` or `diverged` in every row, one has neither")
            continue
        if row.parameters is None or row.nonzero_parameters is None:
            raise InputError(f"{where} must have the parameters of every run, one has none")
        task = find_task(row.task)
        if row.first is not None:
            _check_stages(row, row.run, task.reported, where)
        if known.eval_steps is not None:
            _check_curve(row.run, task.headline, where)
        for split in task.reported:
            if not math.isfinite(row.run.scores.get(split, {}).get(task.headline, math.nan)):
                raise InputError(f"{where} must have the {task.headline} of every run on {split}, one has none")
    has_stages = any(row.first is not None for row in known.rows)  # then a table tells what was trained
    if has_stages and any(row.run is not None and row.run.trained_parameters is None for row in known.rows):
        raise InputError(f"{where} must have the trained parameters of every run, one has none")
    return data


def _check_curve(run: _GridRun, headline: str, where: str) -> None:
    """Raises `InputError` unless a run that was scored while it trained has those scores."""
    check_some(run.epochs, "epochs", where)
    if not all(math.isfinite(one.scores.get(headline, math.nan)) for one in run.epochs):
        raise InputError(f"{where} must have the {headline} at every step that was scored, one has none")


def _check_stages(row: _GridRow, run: _GridRun, splits: Sequence[str], where: str) -> None:
    """Raises `InputError` unless a run of two stages has a cost, and scores after the first and before the second."""
    if row.cost is None:
        raise InputError(f"{where} must have the cost of a run of two stages, {shown(row.label)} has none")
    for scores in (row.first, run.before):
        if scores is None or any(split not in scores for split in splits):
            raise InputError(f"{where} must have the scores of both stages on every split, {shown(row.label)} has not")
