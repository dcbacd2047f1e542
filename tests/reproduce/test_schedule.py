"""Which run comes next: none that is finished, none that another process has, others at the chosen rate."""

import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sum_order
from command import call, refused
from filelock import FileLock

from mlpfusion.reproduce import grid, schedule, stages
from mlpfusion.reproduce.experiment import GridCell, cells, read_experiment
from mlpfusion.storage.manifest import sealed_json
from mlpfusion.tune.trainer import DivergenceError


def runs(out: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in (out / "runs").glob("*.json")}


def numbers(record: dict[str, Any]) -> list[Any]:
    """All that must be the same in a repetition: everything but times and memory."""
    changing = {"seconds", "seconds_per_step", "peak_bytes", "compress_seconds"}

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: cleaned(one) for name, one in value.items() if name not in changing}
        return [cleaned(one) for one in value] if isinstance(value, list) else value

    return [cleaned(row) for row in record["rows"]]


@pytest.mark.slow
def test_a_run_that_is_there_is_not_repeated_and_one_more_method_adds_only_its_own(recipe, tmp_path):
    out = tmp_path / "out"
    assert call("reproduce", recipe(methods=["full"], seeds=[0]), "--out", out).exit_code == 0
    before = runs(out)
    assert call("reproduce", recipe(methods=["full", "svd"], seeds=[0]), "--out", out).exit_code == 0
    after = runs(out)
    assert before.items() < after.items()
    assert len(after) == 2
    assert call("reproduce", recipe(methods=["full", "svd"], seeds=[0], epochs=1), "--out", out).exit_code == 0
    assert len(runs(out)) == 4  # other numbers, other runs


@pytest.mark.slow
def test_the_rate_is_chosen_with_the_first_seed(recipe, tmp_path):
    path = recipe(methods=["full"], learning_rate=[1e-6, 1e-2], seeds=[0, 1, 2])
    assert call("reproduce", path, "--out", tmp_path / "out").exit_code == 0
    rows = json.loads((tmp_path / "out" / "small.json").read_text())["rows"]
    tried, others = rows[:2], rows[2:]
    assert [(row["seed"], row["learning_rate"]) for row in tried] == [(0, 1e-6), (0, 1e-2)]
    best = max(tried, key=lambda row: row["run"]["selection_score"])
    assert [row["chosen"] for row in tried] == [row is best for row in tried]
    assert [(row["seed"], row["learning_rate"], row["chosen"]) for row in others] == [
        (seed, best["learning_rate"], True) for seed in (1, 2)
    ]


def test_a_run_that_diverges_is_told_and_not_tried_again(recipe, tmp_path, monkeypatch):
    def diverge(*_args: Any) -> Any:
        raise DivergenceError("the loss became nan")

    arguments = ("reproduce", recipe(methods=["full", "svd+layerwise"], seeds=[0]), "--out", tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr(stages, "distill", diverge)
        result = call(*arguments)
    assert result.exit_code == 0, result.output
    assert "- svd + layer-wise, sst2, seed 0: the loss became nan" in result.output
    before = runs(tmp_path / "out")
    assert call(*arguments).exit_code == 0
    assert runs(tmp_path / "out") == before
    assert not (tmp_path / "out" / "unfinished").exists()


@pytest.mark.slow
def test_killed_and_started_again_it_repeats_no_finished_run(recipe, tmp_path, pytestconfig):
    path, out = recipe(methods=["full", "fusion", "svd+layerwise"]), tmp_path / "killed"
    order = str(pytestconfig.getoption("--sum-order"))
    command = [sys.executable, sum_order.__file__, order, "reproduce", str(path), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(out.glob("runs/*.json"))) < 2 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = runs(out)
    assert 2 <= len(finished) < 6
    assert not (out / "small.json").exists()
    assert call("reproduce", path, "--out", out).exit_code == 0
    assert finished.items() < runs(out).items()
    assert len(runs(out)) == 6
    assert call("reproduce", path, "--out", tmp_path / "whole").exit_code == 0
    found, expected = (json.loads((folder / "small.json").read_text()) for folder in (out, tmp_path / "whole"))
    assert numbers(found) == numbers(expected)


def test_processes_that_share_a_folder_share_the_runs(recipe, tmp_path, monkeypatch):
    """Two at once: every run is made once, and both end with all of them."""
    made, together = [], threading.Barrier(2, timeout=60)

    def train(self: grid.Grid, cell: GridCell, rate: float, seed: int, states: Path, progress: Any) -> dict[str, Any]:
        made.append((cell.row.label, rate, seed))
        if len(made) <= 2:
            together.wait()  # the first run of each: at the same time
        time.sleep(0.02)
        return {"run": {"selection_score": rate, "made": len(made)}}

    monkeypatch.setattr(grid.Grid, "_train", train)
    monkeypatch.setattr(schedule, "POLL_SECONDS", 0.01)
    path = recipe(methods=["full", "fusion", "svd"], seeds=[0, 1, 2], learning_rate=[1e-4, 1e-3])
    experiment = read_experiment(str(path), {"out": str(tmp_path / "out")})
    with ThreadPoolExecutor(2) as pool:
        first, second = (pool.submit(schedule.run_experiment, experiment) for _ in range(2))
    assert len(made) == len(set(made)) == 3 * (2 + 2)
    assert first.result() == second.result()
    chosen = [(row["label"], row["learning_rate"], row["seed"]) for row in first.result()["rows"] if row["chosen"]]
    assert sorted(chosen) == [(label, 1e-3, seed) for label in ("full", "fusion", "svd") for seed in (0, 1, 2)]
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 12
    assert not (tmp_path / "out" / "unfinished").exists()


def test_what_another_process_has_begun_is_waited_for(recipe, tmp_path, monkeypatch):
    said, out = [], tmp_path / "out"
    experiment = read_experiment(str(recipe(methods=["full"], seeds=[0])), {"out": str(out)})
    (cell,) = cells(experiment)
    identity = grid.Grid(experiment).identity(cell, 1e-3, 0)
    name = grid.run_name(identity)
    (out / "runs").mkdir(parents=True)
    (out / "unfinished").mkdir()
    lock = FileLock(out / "unfinished" / f"{name}.lock")
    lock.acquire()

    def progress(done: int, total: int, what: str) -> None:
        said.append(what)
        if len(said) == 3:
            row = identity | {"run": {"selection_score": 0.5}}
            (out / "runs" / f"{name}.json").write_text(sealed_json(json.loads(json.dumps(row))))

    monkeypatch.setattr(schedule, "POLL_SECONDS", 0.01)
    record = schedule.run_experiment(experiment, progress)
    assert said == ["1 run of other processes"] * 3 + [""]
    (row,) = record["rows"]
    assert (row["seed"], row["run"], row["chosen"]) == (0, {"selection_score": 0.5}, True)
    lock.release()


@pytest.fixture
def untrained(monkeypatch) -> None:
    """Runs that take no time."""

    def train(self: grid.Grid, cell: GridCell, rate: float, seed: int, states: Path, progress: Any) -> dict[str, Any]:
        states.mkdir(parents=True, exist_ok=True)
        return {"run": {"selection_score": 0.5, "seed": seed}}

    monkeypatch.setattr(grid.Grid, "_train", train)


def test_a_run_that_is_not_what_was_written_enters_no_table(recipe, tmp_path, untrained):
    """Told before the first step, with the file and the cure."""
    path, out = recipe(methods=["full", "fusion"], seeds=[0]), tmp_path / "out"
    experiment = read_experiment(str(path), {"out": str(out)})
    expected = schedule.run_experiment(experiment)
    files = {file.name.split("-")[1]: file for file in (out / "runs").iterdir()}
    full, fusion = files["full"], files["fusion"]
    good = full.read_bytes()
    invented = json.loads(good)
    invented["run"]["selection_score"] = 0.99
    for content in (b"", b"{}", b"[]", b"null", b"\xff", b"[" * 9999, good[:-9], json.dumps(invented).encode()):
        full.write_bytes(content)
        line = refused("reproduce", path, "--out", out)
        assert f"{full} must hold what was written" in line
        assert "delete it, and the run is made again" in line
    full.write_bytes(fusion.read_bytes())  # another cell's
    assert f"{full} must have `method` None, got 'fusion', another run's" in refused("reproduce", path, "--out", out)
    full.unlink()
    assert schedule.run_experiment(experiment)["rows"] == expected["rows"]


def test_a_run_that_is_shared_stands_under_the_name_that_was_asked_for(recipe, tmp_path, untrained):
    out = tmp_path / "out"
    experiment = read_experiment(str(recipe(methods=["fusion"], seeds=[0])), {"out": str(out)})
    (cell,) = cells(experiment)
    schedule.run_experiment(experiment)
    (file,) = (out / "runs").iterdir()
    identity = grid.Grid(experiment).identity(cell, 1e-3, 0)
    assert grid.read_run(file, identity | {"label": "other", "model": "elsewhere"})["label"] == "other"


def test_what_a_killed_process_left_of_a_finished_run_goes_with_the_next_start(recipe, tmp_path, untrained):
    path, out = recipe(methods=["full"], seeds=[0]), tmp_path / "out"
    experiment = read_experiment(str(path), {"out": str(out)})
    schedule.run_experiment(experiment)
    (file,) = (out / "runs").iterdir()
    states = out / "unfinished" / file.stem
    (states / "tuning" / "checkpoint-2").mkdir(parents=True)
    (out / "unfinished" / f"{file.stem}.lock").touch()
    (out / "unfinished" / "another-experiments-run").mkdir()
    schedule.run_experiment(experiment)
    assert [entry.name for entry in (out / "unfinished").iterdir()] == ["another-experiments-run"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["minilm-table2", "minilm-table5", "minilm-table6", "minilm-dsee", "minilm-dsee-narrow"]
)
def test_the_recorded_runs_are_found_again(name, minilm, evaluation_data, monkeypatch):
    """Their files have the names of the runs that `reproduce` would make: it makes none of them again."""
    monkeypatch.setenv("MLPFUSION_DATA", str(evaluation_data))
    results = Path(__file__).parents[2] / "benchmarks" / "results" / "minilm"
    experiment = read_experiment(name, {"model": str(minilm), "device": "cpu", "out": str(results)})
    recorded = grid.Grid(experiment)
    for cell in cells(experiment):
        (rate,) = experiment.rates(cell.row)
        for seed in experiment.seeds:
            identity = recorded.identity(cell, rate, seed)
            assert grid.read_run(results / "runs" / f"{grid.run_name(identity)}.json", identity)
