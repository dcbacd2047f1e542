"""Records of what was measured or exported, each checked before a word of it is used."""

import math
from dataclasses import dataclass
from typing import Any

from mlpfusion.errors import InputError, shown
from mlpfusion.export.run import ExportRecord
from mlpfusion.measure.evaluation.harness import HarnessEvaluation
from mlpfusion.measure.evaluation.task import TaskEvaluation
from mlpfusion.measure.evaluation.text import Evaluation
from mlpfusion.report.comparison import COLUMNS, LabelledRow, labels_of, model_columns, over_seeds, paths_of
from mlpfusion.report.export import WHAT
from mlpfusion.report.html.measured.checks import check_some, check_versions
from mlpfusion.report.numbers import FULL
from mlpfusion.storage.typed import typed


@dataclass(frozen=True)
class Comparison:
    """The known part of the record of `compare`."""

    model: str
    data: str
    samples: int
    layers: str
    keep_ratio: float
    scalar: str
    seeds: tuple[int, ...]
    versions: dict[str, str]
    rows: tuple[LabelledRow, ...]


@dataclass(frozen=True)
class _HeldOut:
    split: str
    samples: int
    answers: int = 1


@dataclass(frozen=True)
class _DynamicsRecipe:
    layers: str
    keep_ratio: float
    steps: int
    batch_size: int
    learning_rate: float
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class _DynamicsRow:
    label: str
    trained_parameters: int
    seconds_per_step: float
    distance: tuple[float, ...]
    length: tuple[float, ...]
    training_loss: tuple[float, ...]


@dataclass(frozen=True)
class _DynamicsRecord:
    model: str
    task: str
    recipe: _DynamicsRecipe
    optimizer: str
    held_out: _HeldOut
    measured_at: tuple[int, ...]
    versions: dict[str, str]
    rows: tuple[_DynamicsRow, ...]


@dataclass(frozen=True)
class Dynamics:
    """The record of `dynamics`, as its tables take it."""

    record: dict[str, Any]


@dataclass(frozen=True)
class _Found:
    """The known part of what lm-eval gives."""

    results: dict[str, dict[str, Any]]


AnyEvaluation = Evaluation | TaskEvaluation | HarnessEvaluation


def comparison(data: dict[str, Any], where: str) -> Comparison:
    """The record of a comparison. Raises `InputError` for one that is broken or not whole."""
    record = typed(Comparison, data, where, in_part=True)
    check_some(record.rows, "rows", where)
    check_versions(record.versions, where)
    first = model_columns(record.rows[0].error).keys()
    for row in record.rows:
        if model_columns(row.error).keys() != first or (row.error.authors is None) != (
            record.rows[0].error.authors is None
        ):
            raise InputError(f"{where} must have the same numbers in every row, {shown(row.label)} has others")
    for label in labels_of(record.rows):
        for path in paths_of(record.rows):
            if not over_seeds(record.rows, label, path, COLUMNS["output_error"]):
                raise InputError(f"{where} must have every method at every block, {shown(label)} is not at {path}")
    return record


def dynamics(data: dict[str, Any], where: str) -> Dynamics:
    """The record of training dynamics. Raises `InputError` for one that is broken or not whole."""
    record = typed(_DynamicsRecord, data, where, in_part=True)
    check_some(record.rows, "rows", where)
    check_versions(record.versions, where)
    labels = {row.label for row in record.rows}
    if FULL not in labels or len(labels) < 2:
        raise InputError(f"{where} must have rows of the full model and of a method, got {shown(sorted(labels))}")
    if not record.measured_at or min(record.measured_at) > 10 or min(record.measured_at) < 1:
        raise InputError(f"{where} must have a step between 1 and 10 in `measured_at`, got {record.measured_at}")
    steps = len(record.measured_at)
    for row in record.rows:
        if not row.training_loss or (row.label != FULL and {len(row.distance), len(row.length)} != {steps}):
            raise InputError(f"{where} must have a number for every step in every row, {shown(row.label)} has not")
    if len({len(row.training_loss) for row in record.rows}) > 1:
        raise InputError(f"{where} must have equally many losses in every row")
    return Dynamics(data)


def evaluation(data: dict[str, Any], where: str) -> AnyEvaluation:
    """The record of an evaluation: on texts, on a task, or by lm-eval. Raises `InputError` for a broken one."""
    if "found" in data:
        harness = typed(HarnessEvaluation, data, where)
        typed(_Found, harness.found, f"`found` of {where}", in_part=True)
        check_versions(harness.versions, where)
        return harness
    record = typed(Evaluation, data, where) if "result" in data else typed(TaskEvaluation, data, where)
    check_versions(record.versions, where)
    if isinstance(record, TaskEvaluation):
        check_some(record.scores, "scores", where)
    elif not math.isfinite(record.result.perplexity):
        raise InputError(f"{where} must have a finite perplexity, got {record.result.perplexity}")
    return record


def export(data: dict[str, Any], where: str) -> ExportRecord:
    """The record of an export. Raises `InputError` for one that is broken or of an unknown form."""
    record = typed(ExportRecord, data, where)
    check_versions(record.versions, where)
    if record.to not in WHAT:
        raise InputError(f"{where} must have a form among {', '.join(WHAT)} in `to`, got {shown(record.to)}")
    if record.parameters < 1:
        raise InputError(f"{where} must have parameters of at least 1, got {record.parameters}")
    return record
