"""Which run of an experiment comes next, and which are another process's."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from accelerate import PartialState

from mlpfusion.checkpoint.read import display_name
from mlpfusion.errors import InputError
from mlpfusion.progress import Progress
from mlpfusion.reproduce.experiment import Cell, Experiment, cells
from mlpfusion.reproduce.grid import Grid, Row, sweep
from mlpfusion.storage.processes import join_processes
from mlpfusion.tune.trainer import training_arguments

POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Run:
    """One run: a cell with a rate and a seed."""

    cell: int
    rate: float
    seed: int


def run_experiment(experiment: Experiment, progress: Progress = lambda done, total, what: None) -> Row:
    """The record of the experiment: its fields and the rows of all runs, those at the chosen rate marked `chosen`.

    All that can be checked is checked before the first step. Started again after a kill it repeats no finished run;
    processes that share `out` share the work, and each waits in the end for the others' runs. Raises `InputError` as
    `Grid.check` does, and if `out` holds something else.
    """
    grid, found = Grid(experiment), list(cells(experiment))
    _check_out(grid.out)
    training_arguments(grid.out, device=experiment.device, precision=experiment.precision)
    join_processes(experiment.device)
    for cell in sorted(found, key=lambda cell: cell.entry.lora is not None):  # a model type without a row is told first
        grid.check(cell)
    (grid.out / "runs").mkdir(parents=True, exist_ok=True)
    rows: dict[Run, Row] = {}
    tried = [
        [Run(index, rate, experiment.seeds[0]) for rate in experiment.rates(cell.entry)]
        for index, cell in enumerate(found)
    ]
    total = sum(map(len, tried)) + len(tried) * (len(experiment.seeds) - 1)
    while waiting := [run for run in _known_runs(tried, experiment.seeds[1:], rows) if run not in rows]:
        before = len(rows)
        for run in waiting:
            cell = found[run.cell]
            row = grid.run(cell, run.rate, run.seed, _within(progress, len(rows), total, cell, run.seed))
            if row is not None:
                rows[run] = row
        if len(rows) == before:
            progress(len(rows), total, f"{len(waiting)} run{'s' * (len(waiting) > 1)} of other processes")
            time.sleep(POLL_SECONDS)
    progress(total, total, "")
    if PartialState().is_main_process:
        sweep(grid.out)
    told = {name: value for name, value in asdict(experiment).items() if name not in ("out", "architecture")}
    in_order = [
        rows[run] | {"chosen": run not in tried[run.cell] or run == _best(tried[run.cell], rows)}
        for run in _known_runs(tried, experiment.seeds[1:], rows)
    ]
    return json.loads(json.dumps(told | {"model": display_name(experiment.model), "rows": in_order}))


def _known_runs(tried: list[list[Run]], seeds: tuple[int, ...], rows: dict[Run, Row]) -> Iterator[Run]:
    """The runs `tried` for each cell to choose its rate, then, where these are there, those of `seeds` at the best."""
    for runs in tried:
        yield from runs
    for seed in seeds:
        for index, runs in enumerate(tried):
            if all(run in rows for run in runs):
                yield Run(index, _best(runs, rows).rate, seed)


def _best(runs: list[Run], rows: dict[Run, Row]) -> Run:
    return max(runs, key=lambda run: _selection_score(rows[run]))


def _selection_score(row: Row) -> float:
    score = row["run"]["selection_score"] if "run" in row else -1.0
    return 0.0 if score is None else score


def _within(progress: Progress, finished: int, runs: int, cell: Cell, seed: int) -> Progress:
    """The progress within a run."""
    run = f"{cell.task}, {cell.entry.label}, seed {seed}"
    return lambda done, total, what: progress(finished, runs, f"{run}, step {done} of {total}")


def _check_out(out: Path) -> None:
    if out.exists() and not (out.is_dir() and ((out / "runs").is_dir() or not any(out.iterdir()))):
        raise InputError(f"`out` must be new, empty, or the folder of an experiment, got {out}")
