"""Rows of a grid with a second stage: zeros under an adapter or in a full model, or heads that go by an adapter."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import call, refused
from filelock import FileLock
from pico import HIDDEN, WIDTH, pico_config
from test_schedule import numbers

from mlpfusion.errors import InputError
from mlpfusion.reproduce import grid, schedule, stages
from mlpfusion.reproduce.experiment import cells, read_experiment
from mlpfusion.reproduce.rows import parse_table_row
from mlpfusion.tune.record import TUNE_RECORD_FILE

DSEE = "dsee=2:sparse=8:omega=magnitude"
FIRST = "sst2-full-dsee-sparse-8-omega-magnitude-all-1-seed-0-"
UNDER, OTHERS = 6 * HIDDEN * HIDDEN, 3 * (2 * HIDDEN * HIDDEN + 2 * WIDTH * HIDDEN) + HIDDEN * HIDDEN
TOGETHER = "`methods` must have zeros with full, lora or dsee"
TUNE = ("--task", "sst2", "--learning-rate", 1e-2, "--select-on", "last", "--epochs", 3, "--batch-size", 16)


@pytest.fixture
def small(recipe) -> Callable[..., Path]:
    """Writes a recipe of one seed in which nothing is chosen; a function of the methods."""

    def write(*methods: str, **changed: Any) -> Path:
        fixed = {"seeds": [0], "epochs": 3, "select_on": "last", "lora_learning_rate": [1e-2]}
        return recipe(methods=list(methods), **fixed | changed)

    return write


def made(path: Path, out: Path) -> list[dict[str, Any]]:
    """The rows of a grid."""
    result = call("reproduce", path, "--out", out)
    assert result.exit_code == 0, result.output
    return json.loads((out / "small.json").read_text())["rows"]


@pytest.fixture
def first_runs(monkeypatch) -> list[str]:
    """The labels of the rows whose first stage was trained."""
    trained: list[str] = []

    def first(job: stages.Job, folder: Path) -> Any:
        before = (folder / "result").is_dir()
        result = stages.first_stage(job, folder)
        trained.extend([] if before else [job.cell.row.label])
        return result

    monkeypatch.setattr(grid, "first_stage", first)
    return trained


@pytest.mark.slow
def test_zeros_stay_and_heads_are_gone_in_the_cost_of_a_run(small, first_runs, tmp_path):
    methods = ("full", f"full+{DSEE}", f"full+{DSEE}+zeros=0.5", f"full+{DSEE}+heads=1", "full+lora=2+zeros=0.2")
    rows = made(small(*methods), tmp_path / "out")
    full, whole, zeros, heads, lora = rows
    assert first_runs == ["full + DSEE sparse=8 omega=magnitude", "full + LoRA + 20 % zeros"]
    for row in (full, whole):
        assert row["cost"]["parameters"] == row["cost"]["nonzero_parameters"] == full["parameters"]
        assert row["cost"]["bytes"] == 4 * full["parameters"]
        assert row["cost"]["flops"] == row["cost"]["flops_without_zeros"] == full["cost"]["flops"]
        assert "first" not in row
    for row, ratio in ((zeros, 0.5), (lora, 0.2)):
        lost = round(ratio * UNDER) + round(ratio * OTHERS)
        assert row["cost"]["parameters"] - row["cost"]["nonzero_parameters"] == lost
        assert row["cost"]["flops"] > full["cost"]["flops"] > row["cost"]["flops_without_zeros"]
    adapter = whole["run"]["trained_parameters"] - 2 * (HIDDEN + 1)  # without the head
    assert zeros["cost"]["parameters"] == full["parameters"] + adapter
    assert heads["cost"]["parameters"] < full["parameters"]
    assert heads["cost"]["flops"] < full["cost"]["flops"]
    for row in (zeros, heads):
        assert row["first"] == whole["run"]["scores"]
        assert set(row["run"]["before"]) == {"validation"}
    assert heads["run"]["trained_parameters"] < whole["run"]["trained_parameters"]
    assert not (tmp_path / "out" / "first").exists()
    assert not (tmp_path / "out" / "unfinished").exists()


@pytest.mark.slow
def test_a_grid_without_second_stages_has_the_same_numbers(small, tmp_path):
    """Whether the adapter of the first stage is kept or merged changes none."""
    alone = made(small(f"fusion+{DSEE}"), tmp_path / "alone")
    shared = made(small(f"fusion+{DSEE}", f"fusion+{DSEE}+zeros=0.5"), tmp_path / "shared")
    (expected,), (found, _) = numbers({"rows": alone}), numbers({"rows": shared})
    assert found == expected


@pytest.mark.slow
def test_a_pruned_model_trains_on_with_its_zeros(small, first_runs, tmp_path):
    alone = made(small("full"), tmp_path / "alone")
    rows = made(small("full+zeros=0.5", "full", "full+zeros=0.75:rounds=2"), tmp_path / "out")
    once, full, twice = rows
    (expected,), (_, found, _) = numbers({"rows": alone}), numbers({"rows": rows})
    assert found == expected  # it trains and is saved for the others to begin with
    assert first_runs == ["full + 50 % zeros"]
    for row, ratio in ((once, 0.5), (twice, 0.75)):
        cost = row["cost"]
        assert cost["parameters"] == row["run"]["trained_parameters"] == full["cost"]["parameters"]
        assert cost["parameters"] - cost["nonzero_parameters"] == round(ratio * (UNDER + OTHERS))
        assert cost["flops"] == full["cost"]["flops"] > cost["flops_without_zeros"]
        assert row["first"] == full["run"]["scores"]
        assert set(row["run"]["before"]) == {"validation"}
    assert "rounds" not in once
    (before,) = twice["rounds"]
    # the first round of two takes as much as the one round
    assert [before[name] for name in ("before", "scores", "training_loss")] == [
        once["run"][name] for name in ("before", "scores", "training_loss")
    ]
    assert twice["run"]["training_loss"] != before["training_loss"]
    assert not (tmp_path / "out" / "first").exists()


@pytest.mark.slow
def test_without_an_adapter_heads_go_by_their_coefficients(small, first_runs, tmp_path):
    """EarlyBERT's two parts, neurons and heads, and heads of the full model alone."""
    slim, both, heads = made(small("slimming", "slimming+heads=1", "full+heads=1"), tmp_path / "out")
    assert first_runs == ["slimming", "full - 1 head a layer"]
    size = HIDDEN // pico_config("bert").num_attention_heads
    for less, more in ((both, slim["parameters"]), (heads, heads["parameters"])):
        assert more - less["cost"]["parameters"] == 3 * size * (4 * HIDDEN + 3)
        assert less["run"]["trained_parameters"] == less["cost"]["parameters"]
        assert set(less["run"]["before"]) == {"validation"}
    assert both["first"] == slim["run"]["scores"]
    assert both["cost"]["flops"] < slim["cost"]["flops"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("addition", "command"),
    [
        ("zeros=0.5:criterion=wab", ("sparsify", "--updated-ratio", 0.5, "--other-ratio", 0.5, "--criterion", "wab")),
        ("heads=1", ("slice-heads", "--drop-heads", 1)),
        ("heads=2:scope=global", ("slice-heads", "--drop-heads", 2, "--scope", "global")),
    ],
)
def test_the_second_stage_is_that_of_the_commands(addition, command, small, tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "_drop", lambda folder: None)
    (row,) = made(small(f"neuron-pruning+{DSEE}+{addition}"), tmp_path / "out")
    (first,) = (tmp_path / "out" / "first").glob("*/result")
    name, *flags = command
    less, again = tmp_path / "less", tmp_path / "again"
    result = call(name, first, less, "--adapter", first / "adapter", *flags)
    assert result.exit_code == 0, result.output
    speed = ("--max-length", 16, "--device", "cpu")
    result = call("tune", less, again, "--adapter", less / "adapter", *TUNE, *speed)
    assert result.exit_code == 0, result.output
    (expected,) = json.loads((again / TUNE_RECORD_FILE).read_text())["runs"]
    for entry in ("before", "scores", "training_loss", "trained_parameters", "dsee"):
        assert row["run"][entry] == expected[entry]
    assert row["run"]["training_loss"]
    stored = sum(file.stat().st_size for file in again.rglob("*.safetensors"))
    assert 0 < stored - row["cost"]["bytes"] < 40_000  # names of tensors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("additions", "steps", "later"),  # a stage tells 13 times where it is; `later` stages come after the killed one
    [
        (f"{DSEE}+zeros=0.5", 7, 1),
        (f"{DSEE}+zeros=0.5", 20, 0),
        (f"{DSEE}+heads=1", 7, 1),
        (f"{DSEE}+heads=1", 20, 0),
        ("zeros=0.5", 7, 1),
        ("zeros=0.5:rounds=2", 20, 1),
        ("zeros=0.5:rounds=2", 33, 0),
    ],
)
def test_a_killed_run_goes_on_to_the_same_row(additions, steps, later, small, tmp_path):
    path = small(f"full+{additions}")
    expected = made(path, tmp_path / "whole")
    said: list[str] = []

    def progress(done: int, total: int, what: str) -> None:
        said.append(what)
        if len(said) == steps:
            raise KeyboardInterrupt

    experiment = read_experiment(str(path), {"out": str(tmp_path / "killed")})
    with pytest.raises(KeyboardInterrupt):
        schedule.run_experiment(experiment, progress)
    assert len(list((tmp_path / "killed" / "first").glob("*/result"))) == (steps > 13)
    said.clear()
    (row,) = schedule.run_experiment(experiment, lambda done, total, what: said.append(what))["rows"]
    assert sum("step 0 of 12" in what for what in said) == later
    assert numbers({"rows": [row]}) == numbers({"rows": expected})
    assert not (tmp_path / "killed" / "first").exists()


@pytest.mark.slow
def test_a_first_stage_of_another_process_is_waited_for(small, tmp_path):
    out = tmp_path / "out"
    experiment = read_experiment(str(small(f"full+{DSEE}", f"full+{DSEE}+zeros=0.5")), {"out": str(out)})
    whole, zeros = cells(experiment)
    runs = grid.Grid(experiment)
    name = grid.run_name(runs.identity(whole, 1e-2, 0))
    for folder in ("runs", "first"):
        (out / folder).mkdir(parents=True)
    lock = FileLock(out / "first" / f"{name}.lock")
    lock.acquire()
    assert runs.run(zeros, 1e-2, 0, lambda done, total, what: None) is None
    assert runs.run(whole, 1e-2, 0, lambda done, total, what: None) is None
    grid.sweep(out)
    assert lock.is_locked
    lock.release()
    row = runs.run(zeros, 1e-2, 0, lambda done, total, what: None)
    assert row is not None
    assert (out / "first" / name / "result" / "adapter").is_dir()  # the other row begins with it
    assert runs.run(whole, 1e-2, 0, lambda done, total, what: None) is not None
    assert not (out / "first" / name).exists()


def test_only_a_second_stage_is_new_in_the_identity_of_a_run(small, tmp_path):
    pruned = ("full", "full+zeros=0.5", "full+zeros=0.5:rounds=2")
    methods = (f"full+{DSEE}", f"full+{DSEE}+zeros=0.5", f"full+{DSEE}+heads=1", *pruned)
    experiment = read_experiment(str(small(*methods)), {"out": str(tmp_path / "out")})
    runs = grid.Grid(experiment)
    whole, zeros, heads, full, once, twice = (runs.identity(cell, 1e-2, 0) for cell in cells(experiment))
    assert zeros.keys() - whole.keys() == {"zeros"}
    assert heads.keys() - whole.keys() == {"heads"}
    assert once.keys() - full.keys() == twice.keys() - full.keys() == {"zeros"}
    assert len({grid.run_name(one) for one in (whole, zeros, heads, full, once, twice)}) == 6
    assert grid.run_name(whole).startswith(FIRST)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("fusion+zeros=0.2", f"{TOGETHER}, got 'fusion+zeros=0.2'"),
        ("full+zeros=1.2", "`zeros` must be above 0 and below 1, got '1.2'"),
        ("full+zeros=0.2:criterion=w", "`zeros` must be NAME=VALUE among ratio, rounds, divided by commas, got"),
        ("full+zeros=0.2:rounds=0", "`zeros rounds` must be a whole number of at least 1, got 0"),
        ("full+zeros=0.2:rounds=few", "`zeros rounds` must be a number, got 'few'"),
        ("magnitude+dsee+zeros=0.2", "`methods` must have lora and dsee with methods that mask nothing, got"),
        ("full+dsee+zeros=1.2", "`zeros` must be above 0 and below 1, got '1.2'"),
        ("full+dsee+zeros=0.0", "`zeros` must be above 0 and below 1, got '0.0'"),
        ("full+dsee+zeros", "`zeros` must be above 0 and below 1, got ''"),
        ("full+dsee+zeros=0.2:criterion=best", "`criterion` must be one of abs, ab, wab, w, random, got 'best'"),
        ("full+dsee+zeros=0.2:heads=2", "`zeros` must be NAME=VALUE among criterion, updated_ratio, other_ratio, seed"),
        ("full+dsee+heads=0", "`heads` must be a whole number of at least 1, got '0'"),
        ("full+dsee+heads=few", "`heads` must be a whole number of at least 1, got 'few'"),
        ("full+dsee+heads=1:scope=all", "`scope` must be layer or global, got 'all'"),
        ("full+dsee+zeros=0.2+heads=1", "`methods` must have zeros or heads once, not both, got"),
        ("full+dsee+heads=1+heads=2", "`methods` must have zeros or heads once, not both, got"),
        (f"full+{DSEE}+heads=99", "`heads` must be between 1 and 3, an attention has 4 heads and keeps one, got 99"),
        (
            f"full+{DSEE}:targets=intermediate.dense+heads=1",
            "`adapter` must have an update of query or value at encoder.layer.0.attention.self to score its heads",
        ),
        (
            f"full+{DSEE}:targets=all-linear+zeros=0.2",
            "`other_ratio` must be 0 for an adapter on all linear maps of the layers, got 0.2",
        ),
        ("full+pizza", "`methods` must have additions among lora[=R], dsee[=RANK], zeros=RATIO, heads=N in"),
    ],
)
def test_additions_that_cannot_be_are_told_before_the_first_run(method, message, small, tmp_path):
    assert message in refused("reproduce", small(method), "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_be_pruned_is_told_before_the_first_run(small, tmp_path, monkeypatch):
    def refuse(model: Any) -> None:
        raise InputError(f"`model` must be another, got {type(model).__name__} on {model.device}")

    monkeypatch.setattr(stages, "check_prunable", refuse)
    said = refused("reproduce", small("full+zeros=0.5"), "--out", tmp_path / "out")
    assert "got BertForSequenceClassification on meta" in said
    assert not (tmp_path / "out").exists()


def test_labels_say_what_goes():
    for text, label in (
        ("full+lora+zeros=.25", "full + LoRA + 25 % zeros"),
        ("full+zeros=0.5", "full + 50 % zeros"),
        ("full+zeros=0.5:rounds=3", "full + 50 % zeros rounds=3"),
        ("full+dsee+zeros=0.2:other_ratio=0.5:criterion=random:seed=3", "20 and 50 % zeros criterion=random seed=3"),
        ("fusion+dsee+heads=1", "fusion + DSEE - 1 head a layer"),
        ("fusion+dsee+heads=3:scope=global", "fusion + DSEE - 3 heads a layer, global"),
    ):
        assert parse_table_row(text, "m").label.endswith(label)
