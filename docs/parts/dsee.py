"""What the record of DSEE's two stages says: the table, and the paper's two claims, answered."""

import statistics
from typing import Any

from mlpfusion.data.tasks import find_task
from mlpfusion.report.grid.columns import ScoreColumn
from mlpfusion.report.grid.tables import shares, stage_table
from mlpfusion.report.numbers import FULL
from parts.verdict import judge, mean_shares, standard_error

# "Competitive" is the word of the abstract; the number is ours.
_NEAR, _WHOSE = 99.0, "our reading of `competitive`"
_FIRST_STAGE = "full + DSEE"
_ZEROS = ("full + DSEE + 20 % zeros", "full + DSEE + 50 % zeros")
_HEADS, _KEPT = "neuron-pruning + DSEE - 3 heads a layer", 0.75


def dsee_stages(record: dict[str, Any], narrow: dict[str, Any]) -> str:
    """The table of cost and scores, of the rows of `narrow` too: another ratio, the same full model."""
    rows = [*record["rows"], *(row for row in narrow["rows"] if row["label"] != FULL)]
    both = {"rows": rows, "keep_ratio": [*record["keep_ratio"], *narrow["keep_ratio"]]}
    return stage_table(record | both).markdown()


def dsee_claims(record: dict[str, Any]) -> str:
    """Whether the abstract's claims hold, with standard errors over the seeds, and what a second stage buys."""
    trained = [row for row in record["rows"] if row["label"] == _FIRST_STAGE]
    sliced = [row for row in record["rows"] if (row["label"], row["keep_ratio"]) == (_HEADS, _KEPT)]
    full = [row for row in record["rows"] if row["label"] == FULL]
    share = 100 * trained[0]["run"]["trained_parameters"] / full[0]["run"]["trained_parameters"]
    saved = 100 * (1 - sliced[0]["cost"]["flops"] / full[0]["cost"]["flops"])
    lines = [
        f"the first stage trains {share:.1f} % of the parameters. {_answer(record, _FIRST_STAGE)}",
        f"3 heads and a quarter of the neurons are {saved:.1f} % of the FLOPs. {_answer(record, _HEADS)}",
        *(f"{label}: {_second_stage(record, label)}" for label in (*_ZEROS, _HEADS)),
    ]
    return "\n".join(f"- {line}" for line in lines)


def _answer(record: dict[str, Any], label: str) -> str:
    """The claim about the score, for the mean over the tasks, seed by seed; then the share of every task."""
    columns = _columns(record)
    shared = {column.task: shares(record, label, column) for column in columns}
    tasks = ", ".join(f"{task} {statistics.mean(one):.1f} ({standard_error(one):.1f})" for task, one in shared.items())
    return f"{judge(mean_shares([(record, column) for column in columns], label), _NEAR, _WHOSE)} By task: {tasks}."


def _second_stage(record: dict[str, Any], label: str) -> str:
    """What the second stage changes, in points: mean over the tasks, and its standard error over the seeds."""
    lost, gained, left = ([] for _ in range(3))
    for seed in record["seeds"]:
        steps = [_steps(record, label, column, seed) for column in _columns(record)]
        first, before, after = (statistics.mean(step) for step in zip(*steps, strict=True))
        lost.append(before - first)
        gained.append(after - before)
        left.append(after - first)
    return (
        f"{_with_error(lost)} points by what is taken, {_with_error(gained)} by the second stage, "
        f"{_with_error(left)} in all."
    )


def _steps(record: dict[str, Any], label: str, column: ScoreColumn, seed: int) -> tuple[float, float, float]:
    (row,) = (row for row in column.rows(record, label) if row["seed"] == seed)
    metric = find_task(column.task).headline
    steps = (row["first"], row["run"]["before"], row["run"]["scores"])
    first, before, after = (column.factor * scores[column.split][metric] for scores in steps)
    return first, before, after


def _columns(record: dict[str, Any]) -> list[ScoreColumn]:
    """One column a task, at the ratio of the claim."""
    return [ScoreColumn(task, find_task(task).reported[0], None, _KEPT) for task in record["tasks"]]


def _with_error(numbers: list[float]) -> str:
    return f"{statistics.mean(numbers):+.1f} (+- {standard_error(numbers):.1f})"
