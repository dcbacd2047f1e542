"""Schedules the runs of an experiment, shared with other processes."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState

from mlpfusion.checkpoint.read import display_name
from mlpfusion.data.tasks import check_metric, find_task, merit
from mlpfusion.errors import InputError
from mlpfusion.options.fields import plain
from mlpfusion.progress import Progress
from mlpfusion.reproduce.experiment import Experiment, GridCell, cells
from mlpfusion.reproduce.grid import Grid, sweep
from mlpfusion.reproduce.stages import Row
from mlpfusion.storage.processes import join_processes
from mlpfusion.tune.trainer import training_arguments

POLL_SECONDS = 1.0  # between looks for the runs of other processes, each of which takes minutes


@dataclass(frozen=True)
class ScheduledRun:
    """One cell (its index) with a learning rate and a seed."""

    cell: int
    rate: float
    seed: int


def run_experiment(experiment: Experiment, progress: Progress = lambda done, total, what: None) -> Row:
    """Runs an experiment, or its unfinished part, and returns the record.

    The record holds the fields of the experiment and one row per run; rows at the chosen rate have
    `chosen`. Processes with the same `out` share the work, and each waits for the others at the
    end. Raises `InputError`, before the first step, for cells that cannot run (no head, no such
    layers or data), and an `out` with other contents.
    """
    grid, grid_cells = Grid(experiment), list(cells(experiment))
    _check_out(grid.out)
    training_arguments(grid.out, device=experiment.device, precision=experiment.precision)
    join_processes(experiment.device)
    # adapters last: without a row for the model type their error would come before the one with the cure
    for cell in sorted(grid_cells, key=lambda cell: cell.row.adapter is not None):
        grid.check(cell)
    (grid.out / "runs").mkdir(parents=True, exist_ok=True)
    rows: dict[ScheduledRun, Row] = {}
    tried = [
        [ScheduledRun(index, rate, experiment.seeds[0]) for rate in experiment.rates(cell.row)]
        for index, cell in enumerate(grid_cells)
    ]
    total = sum(map(len, tried)) + len(tried) * (len(experiment.seeds) - 1)
    while waiting := [run for run in _known_runs(tried, experiment.seeds[1:], rows) if run not in rows]:
        before = len(rows)
        for run in waiting:
            cell = grid_cells[run.cell]
            row = grid.run(cell, run.rate, run.seed, _within(progress, len(rows), total, cell, run.seed))
            if row is not None:
                rows[run] = row
        if len(rows) == before:
            progress(len(rows), total, f"{len(waiting)} run{'s' * (len(waiting) > 1)} of other processes")
            time.sleep(POLL_SECONDS)
    progress(total, total, "")
    if PartialState().is_main_process:
        sweep(grid.out)
    settings = {
        name: value for name, value in plain(experiment).items() if name not in ("out", "architecture", "stacks")
    }
    in_order = [
        rows[run] | {"chosen": run not in tried[run.cell] or run == _best(tried[run.cell], rows)}
        for run in _known_runs(tried, experiment.seeds[1:], rows)
    ]
    return json.loads(json.dumps(settings | {"model": display_name(experiment.model), "rows": in_order}))


def _known_runs(
    tried: list[list[ScheduledRun]], seeds: tuple[int, ...], rows: dict[ScheduledRun, Row]
) -> Iterator[ScheduledRun]:
    """Yields the runs `tried` for each cell's rate, then `seeds` at the best.

    The best rate of a cell is known once `rows` has all its tried runs.
    """
    for runs in tried:
        yield from runs
    for seed in seeds:
        for index, runs in enumerate(tried):
            if all(run in rows for run in runs):
                yield ScheduledRun(index, _best(runs, rows).rate, seed)


def _best(runs: list[ScheduledRun], rows: dict[ScheduledRun, Row]) -> ScheduledRun:
    return max(runs, key=lambda run: _selection_score(rows[run]))


def _selection_score(row: Row) -> float:
    if "run" not in row:  # it diverged
        return -math.inf
    score = row["run"]["selection_score"]
    return 0.0 if score is None else merit(check_metric(find_task(row["task"]), None), score)


def _within(progress: Progress, finished: int, runs: int, cell: GridCell, seed: int) -> Progress:
    """Callback for the steps within one run."""
    run = f"{cell.task}, {cell.row.label}, seed {seed}"
    return lambda done, total, what: progress(finished, runs, f"{run}, step {done} of {total}")


def _check_out(out: Path) -> None:
    if out.exists() and not (out.is_dir() and ((out / "runs").is_dir() or not any(out.iterdir()))):
        raise InputError(f"`out` must be new, empty, or the folder of an experiment, got {out}")
