"""Scores of a grid against the steps of training: how soon a smaller model is where the full one ends."""

import statistics

from mlpfusion.data.tasks import find_task, merit
from mlpfusion.report.cells import Table
from mlpfusion.report.grid.columns import Row, ScoreColumn, columns, labels
from mlpfusion.report.numbers import FULL, score_with_deviation

_NEAR = 0.99  # share of the full model's last score that counts as being there
_SHOWN = 5  # steps of a table: the last, a half of it, a quarter and so on


def recovery_columns(record: Row) -> list[ScoreColumn]:
    """The columns whose split was scored during training, the first of each task; [] without `eval_steps`."""
    if record.get("eval_steps") is None:
        return []
    return [column for column in columns(record) if column.split == find_task(column.task).reported[0]]


def recovery(record: Row, label: str, column: ScoreColumn) -> list[tuple[int, list[float]]]:
    """The scores of all seeds by step, in the unit of the column; [] without a finished run."""
    metric = find_task(column.task).headline
    curves = [
        {entry["step"]: column.factor * entry["scores"][metric] for entry in row["run"]["epochs"]}
        for row in column.rows(record, label)
    ]
    return [(step, [curve[step] for curve in curves]) for step in (curves[0] if curves else ())]


def recovery_tables(record: Row) -> list[Table]:
    """For every column the scores at some steps, and when the full model's last score is nearly reached."""
    return [_recovery_table(record, column) for column in recovery_columns(record)]


def _recovery_table(record: Row, column: ScoreColumn) -> Table:
    curves = {label: recovery(record, label, column) for label in labels(record)}
    curves = {label: curve for label, curve in curves.items() if curve}
    steps = [step for step, _ in next(iter(curves.values()), [])]
    shown = sorted({steps[max(0, len(steps) // 2**half - 1)] for half in range(_SHOWN)}) if steps else []
    target = _target(column, curves.get(FULL))
    near = () if target is None else (f"first at {target:.1f}",)
    lines = []
    for label, curve in curves.items():
        scores = dict(curve)
        cells = (score_with_deviation(scores[step]) for step in shown)
        lines.append((label, *cells, *([] if target is None else [_first_near(column, curve, target)])))
    title = f"Recovery, {column.title()}: {column.unit} after steps, mean and sample standard deviation over the seeds"
    return Table(title, ("method", *map(str, shown), *near), tuple(lines))


def _target(column: ScoreColumn, full: list[tuple[int, list[float]]] | None) -> float | None:
    """The mean score that is nearly the full model's last one."""
    if not full:
        return None
    last = statistics.mean(full[-1][1])
    metric = find_task(column.task).headline
    return last - merit(metric, 1.0) * (1 - _NEAR) * abs(last)


def _first_near(column: ScoreColumn, curve: list[tuple[int, list[float]]], target: float) -> str:
    """The first step at which the mean score is as good as `target`."""
    metric = find_task(column.task).headline
    there = (step for step, scores in curve if merit(metric, statistics.mean(scores)) >= merit(metric, target))
    first = next(there, None)
    return "never" if first is None else str(first)
