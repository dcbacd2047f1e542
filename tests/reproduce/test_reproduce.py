"""`mlpfusion reproduce`: the grid, its report, what is refused, and that no finished run is repeated."""

import gzip
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
import yaml
from command import call, refused
from filelock import FileLock
from tiny_task import save_checkpoint, sentences

from mlpfusion.reproduce import grid, schedule
from mlpfusion.reproduce.chart import write_experiment_chart
from mlpfusion.reproduce.experiment import CHARTS, Cell, Experiment, cells, named_recipes, parse_entry, read_experiment
from mlpfusion.reproduce.report import columns, experiment_markdown, labels, shares
from mlpfusion.tasks.glue import GLUE
from mlpfusion.tune.trainer import DivergenceError

SMALL = {
    "title": "A small grid",
    "tasks": ["sst2"],
    "methods": ["full", "fusion", "ntk-match+layerwise"],
    "layers": ["last:1"],
    "learning_rate": [1e-3],
    "seeds": [0, 1],
    "epochs": 2,
    "batch_size": 16,
    "max_length": 16,
    "calibration_samples": 8,
    "device": "cpu",
}


@pytest.fixture
def glue(tmp_path, monkeypatch) -> Path:
    """SST-2 and MRPC with the words of the tiny task, where the code looks for them."""
    for task, columns_ in (("SST-2", ("sentence",)), ("MRPC", ("sentence1", "sentence2"))):
        folder = tmp_path / "data" / "glue" / task
        folder.mkdir(parents=True)
        for split, count, seed in (("train", 64, 0), ("validation", 40, 1)):
            texts, answers = sentences(count, seed)
            rows = [
                dict.fromkeys(columns_, text) | {"label": label} for text, label in zip(texts, answers, strict=True)
            ]
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{split}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    monkeypatch.setenv("MLPFUSION_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def recipe(tmp_path, glue) -> Any:
    """Writes a recipe; a function of what is different."""
    model = save_checkpoint(tmp_path / "model")

    def write(**changed: Any) -> Path:
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump(SMALL | {"model": str(model)} | changed))
        return path

    return write


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


def test_a_grid_leaves_a_table_with_every_method(recipe, tmp_path):
    result = call("reproduce", recipe(), "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / "small.json").read_text())
    assert labels(record) == ["full", "fusion", "ntk-match + layer-wise"]
    assert len(record["rows"]) == 6
    assert (tmp_path / "out" / "small.md").read_text() == experiment_markdown(record)
    assert (tmp_path / "out" / "small.png").read_bytes().startswith(b"\x89PNG")
    full, fused, matched = (row for row in record["rows"] if row["seed"] == 0)
    assert full["parameters"] > fused["parameters"] == matched["parameters"]
    assert matched["distill"]["loss_after"] < matched["distill"]["loss_before"]
    (column,) = columns(record)
    score = fused["run"]["scores"]["validation"]["accuracy"] / full["run"]["scores"]["validation"]["accuracy"]
    assert shares(record, "fusion", column)[0] == pytest.approx(100 * score)
    assert not (tmp_path / "out" / "unfinished").exists()
    assert str(tmp_path) not in (tmp_path / "out" / "small.json").read_text()


def test_every_chart_is_drawn_of_every_grid(recipe, tmp_path):
    path = recipe(
        methods=["full", "fusion"], layers=["last:1", "last:2"], keep_ratio=[0.25, 0.5], tasks=["sst2", "mrpc"]
    )
    assert call("reproduce", path, "--out", tmp_path / "out", "--seeds", 0).exit_code == 0
    record = json.loads((tmp_path / "out" / "small.json").read_text())
    assert len(columns(record)) == 8
    sizes = set()
    for chart in CHARTS:
        (file,) = write_experiment_chart(record | {"chart": chart}, tmp_path / f"{chart}.png")
        sizes.add(file.stat().st_size)
    assert len(sizes) == len(CHARTS)


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


def test_the_head_and_the_examples_are_the_same_for_all(recipe, tmp_path):
    """Full width fusion is the model itself: it must get the scores and losses of the full model, bit by bit."""
    path = recipe(methods=["full", "neuron-pruning"], keep_ratio=[1.0], seeds=[3])
    assert call("reproduce", path, "--out", tmp_path / "out").exit_code == 0
    full, kept = json.loads((tmp_path / "out" / "small.json").read_text())["rows"]
    for name in ("scores", "training_loss", "epochs"):
        assert full["run"][name] == kept["run"][name]


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


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_lora_has_rates_of_its_own_and_trains_its_factors_only(recipe, tmp_path):
    path = recipe(methods=["full", "fusion+lora=4"], seeds=[0], lora_learning_rate=[1e-2])
    assert call("reproduce", path, "--out", tmp_path / "out").exit_code == 0
    full, lora = json.loads((tmp_path / "out" / "small.json").read_text())["rows"]
    assert (lora["label"], lora["learning_rate"], full["learning_rate"]) == ("fusion + LoRA", 1e-2, 1e-3)
    assert lora["run"]["trained_parameters"] < full["run"]["trained_parameters"] / 5


def test_a_run_that_diverges_is_told_and_not_tried_again(recipe, tmp_path, monkeypatch):
    def diverge(*_args: Any) -> Any:
        raise DivergenceError("the loss became nan")

    arguments = ("reproduce", recipe(methods=["full", "svd+layerwise"], seeds=[0]), "--out", tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr(grid, "distill", diverge)
        result = call(*arguments)
    assert result.exit_code == 0, result.output
    assert "- svd + layer-wise, sst2, seed 0: the loss became nan" in result.output
    before = runs(tmp_path / "out")
    assert call(*arguments).exit_code == 0
    assert runs(tmp_path / "out") == before
    assert not (tmp_path / "out" / "unfinished").exists()


def test_killed_and_started_again_it_repeats_no_finished_run(recipe, tmp_path):
    path, out = recipe(methods=["full", "fusion", "svd+layerwise"]), tmp_path / "killed"
    command = [sys.executable, "-m", "mlpfusion", "reproduce", str(path), "--out", str(out)]
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

    def train(self: grid.Grid, cell: Cell, rate: float, seed: int, states: Path, progress: Any) -> dict[str, Any]:
        made.append((cell.entry.label, rate, seed))
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
    name = grid.run_name(grid.Grid(experiment).identity(cell, 1e-3, 0))
    (out / "runs").mkdir(parents=True)
    (out / "unfinished").mkdir()
    lock = FileLock(out / "unfinished" / f"{name}.lock")
    lock.acquire()

    def progress(done: int, total: int, what: str) -> None:
        said.append(what)
        if len(said) == 3:
            (out / "runs" / f"{name}.json").write_text(json.dumps({"seed": 0, "run": {"selection_score": 0.5}}))

    monkeypatch.setattr(schedule, "POLL_SECONDS", 0.01)
    record = schedule.run_experiment(experiment, progress)
    assert said == ["1 run of other processes"] * 3 + [""]
    assert record["rows"] == [{"seed": 0, "run": {"selection_score": 0.5}, "chosen": True}]
    lock.release()


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"methods": ["fuson"]}, "`method` must be one of"),
        ({"methods": ["fusion", "fusion"]}, "`methods` must not repeat"),
        ({"methods": ["all"]}, "`method` must be one of"),
        ({"methods": ["full+layerwise"]}, "`methods` must have additions among lora[=R]"),
        ({"methods": ["fusion+layerwise=x"]}, "`methods` must have additions among lora[=R], layerwise[=EPOCHS]"),
        ({"methods": ["magnitude+lora"]}, "`methods` must have lora with methods that mask nothing"),
        ({"methods": ["fusion+lora=0"]}, "`lora r` must be a whole number of at least 1"),
        ({"tasks": ["sst3"]}, "`task` must be one of"),
        ({"tasks": []}, "`tasks` must be given"),
        ({"tasks": ["cola"]}, "CoLA"),
        ({"layers": ["7"]}, "`layers` must"),
        ({"keep_ratio": [0.0]}, "`keep_ratio` must"),
        ({"keep_ratio": [1.5]}, "`keep_ratio` must"),
        ({"learning_rate": [2.0]}, "`learning_rate` must be above 0 and below 1"),
        ({"select_on": "last", "learning_rate": [1e-4, 1e-3]}, "`select_on` must be holdout or validation"),
        ({"chart": "pie"}, "`chart` must be one of"),
        ({"calibration_samples": 0}, "`calibration_samples` must be at least 1"),
        ({"model": "/nowhere"}, "`model` must"),
        ({"epochs": "two"}, "`epochs` must be of type int"),
        ({"epoch": 2}, "a recipe must have keys among"),
    ],
)
def test_what_is_wrong_is_told_before_the_first_run(recipe, tmp_path, changed, part):
    assert part in refused("reproduce", recipe(**changed), "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused(recipe, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    assert "`out` must be new, empty, or the folder of an experiment" in refused(
        "reproduce", recipe(), "--out", tmp_path / "out"
    )


def test_an_unknown_recipe_is_told_which_there_are():
    line = refused("reproduce", "table3", "--out", "x")
    assert "`recipe` must be a YAML file or one of" in line
    assert "table2" in line


def test_without_a_recipe_all_are_listed():
    result = call("reproduce")
    assert result.exit_code == 0
    assert all(name in result.output for name in named_recipes())


@pytest.mark.parametrize("name", named_recipes())
def test_every_recipe_of_the_package_is_a_valid_grid(name):
    experiment = read_experiment(name, {"out": "somewhere"})
    assert experiment.title
    found = list(cells(experiment))
    assert {cell.task for cell in found} == set(experiment.tasks) <= GLUE.keys()
    assert any(cell.entry.method is None for cell in found)


def test_the_full_model_has_one_cell_whatever_varies():
    experiment = Experiment(model="m", tasks=("sst2",), methods=("full", "svd"), keep_ratio=(0.25, 0.5))
    assert [(cell.entry.label, cell.keep_ratio) for cell in cells(experiment)] == [
        ("full", 1.0),
        ("svd", 0.25),
        ("svd", 0.5),
    ]


def test_entries_say_what_they_are():
    entry = parse_entry("fusion:refine=false+layerwise=2", "m")
    assert entry.label == "fusion refine=False + layer-wise, 2 epochs"
    assert parse_entry("full+lora=4", "m").label == "full + LoRA"
