"""`mlpfusion reproduce`: the grid, its report, and what is refused."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command import call, refused
from detected import detected_config
from html_page import assert_asks_for_nothing
from tiny_task import tiny_tokenizer
from transformers import AutoModel

from mlpfusion.commands.results.reproduce import ReproduceOptions, other_command
from mlpfusion.data.tasks import TASKS
from mlpfusion.data.unlabelled.data_free import data_free_batches
from mlpfusion.report.grid.chart import write_experiment_chart
from mlpfusion.report.grid.columns import columns, labels
from mlpfusion.report.grid.tables import experiment_markdown, shares
from mlpfusion.reproduce import stages
from mlpfusion.reproduce.experiment import (
    CHARTS,
    Experiment,
    cells,
    read_experiment,
)
from mlpfusion.reproduce.grid import Grid, run_name
from mlpfusion.reproduce.named import named_experiments
from mlpfusion.reproduce.rows import parse_table_row
from mlpfusion.tune.start import compressed_start

RECORDED = Path(__file__).parents[2] / "benchmarks" / "results" / "minilm" / "runs"


@pytest.mark.slow
def test_a_grid_leaves_a_table_with_every_method(recipe, tmp_path):
    result = call("reproduce", recipe(), "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / "small.json").read_text())
    assert labels(record) == ["full", "fusion", "ntk-match + layer-wise"]
    assert len(record["rows"]) == 6
    assert (tmp_path / "out" / "small.md").read_text() == experiment_markdown(record)
    assert (tmp_path / "out" / "small.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "out" / "small.html").read_text()
    assert_asks_for_nothing(page)
    assert call("report", tmp_path / "out", "--out", tmp_path / "own.html").exit_code == 0
    assert (tmp_path / "own.html").read_text() == page
    (tmp_path / "out" / "small.html").unlink()
    again = call("reproduce", recipe(), "--out", tmp_path / "out", "--no-report")  # no run is repeated
    assert again.exit_code == 0
    assert not (tmp_path / "out" / "small.html").exists()
    full, fused, matched = (row for row in record["rows"] if row["seed"] == 0)
    assert full["parameters"] > fused["parameters"] == matched["parameters"]
    assert matched["distill"]["loss_after"] < matched["distill"]["loss_before"]
    (column,) = columns(record)
    score = fused["run"]["scores"]["validation"]["accuracy"] / full["run"]["scores"]["validation"]["accuracy"]
    assert shares(record, "fusion", column)[0] == pytest.approx(100 * score)
    assert not (tmp_path / "out" / "unfinished").exists()
    assert str(tmp_path) not in (tmp_path / "out" / "small.json").read_text()


@pytest.mark.slow
def test_every_chart_is_drawn_of_every_grid(recipe, tmp_path):
    path = recipe(
        methods=["full", "fusion"], layers=["last:1", "last:2"], keep_ratio=[0.25, 0.5], tasks=["sst2", "mrpc"],
        select_on="last", eval_steps=2,
    )  # fmt: skip
    assert call("reproduce", path, "--out", tmp_path / "out", "--seeds", 0).exit_code == 0
    record = json.loads((tmp_path / "out" / "small.json").read_text())
    assert len(columns(record)) == 8
    sizes = set()
    for chart in CHARTS:
        (file,) = write_experiment_chart(record | {"chart": chart}, tmp_path / f"{chart}.png")
        sizes.add(file.stat().st_size)
    assert len(sizes) == len(CHARTS)


@pytest.mark.slow
def test_the_head_and_the_examples_are_the_same_for_all(recipe, tmp_path):
    """Full width fusion is the model itself: it must get the scores and losses of the full model, bit by bit."""
    path = recipe(methods=["full", "neuron-pruning"], keep_ratio=[1.0], seeds=[3])
    assert call("reproduce", path, "--out", tmp_path / "out").exit_code == 0
    full, kept = json.loads((tmp_path / "out" / "small.json").read_text())["rows"]
    for name in ("scores", "training_loss", "epochs"):
        assert full["run"][name] == kept["run"][name]


@pytest.mark.slow
def test_lora_has_rates_of_its_own_and_trains_its_factors_only(recipe, tmp_path):
    path = recipe(methods=["full", "fusion+lora=4"], seeds=[0], lora_learning_rate=[1e-2])
    assert call("reproduce", path, "--out", tmp_path / "out").exit_code == 0
    full, lora = json.loads((tmp_path / "out" / "small.json").read_text())["rows"]
    assert (lora["label"], lora["learning_rate"], full["learning_rate"]) == ("fusion + LoRA", 1e-2, 1e-3)
    assert lora["run"]["trained_parameters"] < full["run"]["trained_parameters"] / 5


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"methods": ["fuson"]}, "`method` must be one of"),
        ({"methods": ["fusion", "fusion"]}, "`methods` must not repeat"),
        ({"methods": ["all"]}, "`method` must be one of"),
        ({"methods": ["full+layerwise"]}, "`methods` must have additions among lora[=R], dsee[=RANK]"),
        (
            {"methods": ["fusion+layerwise=x"]},
            "`methods` must have additions among lora[=R], dsee[=RANK], layerwise[=EPOCHS]",
        ),
        ({"methods": ["fusion+data-free"]}, "`methods` must have additions among lora[=R], dsee[=RANK], layerwise"),
        (
            {"methods": ["ntk-match+data-free=8"]},
            "`methods` must have additions among lora[=R], dsee[=RANK], data-free, layerwise",
        ),
        ({"methods": ["magnitude+lora"]}, "`methods` must have lora and dsee with methods that mask nothing"),
        ({"methods": ["fusion+lora=0"]}, "`lora r` must be a whole number of at least 1"),
        ({"methods": ["fusion+lora=4:beta=1"]}, "`lora` must be NAME=VALUE among r, alpha, dropout, targets"),
        ({"methods": ["fusion+dsee=0"]}, "`dsee rank` must be a whole number of at least 1"),
        ({"methods": ["full+dsee=4:omega=best"]}, "`dsee omega` must be one of decompose"),
        ({"methods": ["magnitude+dsee"]}, "`methods` must have lora and dsee with methods that mask nothing"),
        ({"tasks": ["sst3"]}, "`task` must be one of"),
        ({"tasks": []}, "`tasks` must be given"),
        ({"tasks": ["cola"]}, "CoLA"),
        ({"layers": ["7"]}, "`layers` must"),
        ({"keep_ratio": [0.0]}, "`keep_ratio` must"),
        ({"keep_ratio": [1.5]}, "`keep_ratio` must"),
        ({"learning_rate": [2.0]}, "`learning_rate` must be above 0 and below 1"),
        ({"chart": "recovery"}, "`chart` must not be recovery without `eval_steps`"),
        ({"eval_steps": 5}, "`eval_steps` must be left out for select_on=holdout"),
        ({"select_on": "last", "learning_rate": [1e-4, 1e-3]}, "`select_on` must be holdout or validation"),
        (
            {"select_on": "last", "methods": ["full+lora"], "lora_learning_rate": [1e-3, 2e-3]},
            "`select_on` must be holdout or validation",
        ),
        ({"chart": "pie"}, "`chart` must be one of"),
        ({"calibration_samples": 0}, "`calibration_samples` must be at least 1"),
        ({"model": "/nowhere"}, "`model` must"),
        ({"epochs": "two"}, "`epochs` must be of type int"),
        ({"epoch": 2}, "the options must have keys among"),
        ({"freeze_router": True}, "`freeze_router` must be left out for bert, which has no mixture of experts"),
    ],
)
def test_what_is_wrong_is_told_before_the_first_run(recipe, tmp_path, changed, part):
    assert part in refused("reproduce", recipe(**changed), "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_dsee_trains_its_updates_only_and_says_what_they_are(recipe, tmp_path):
    path = recipe(methods=["full+dsee=2:sparse=8:omega=random"], seeds=[0], lora_learning_rate=[1e-2])
    assert call("reproduce", path, "--out", tmp_path / "out").exit_code == 0
    (row,) = json.loads((tmp_path / "out" / "small.json").read_text())["rows"]
    assert (row["label"], row["learning_rate"]) == ("full + DSEE sparse=8 omega=random", 1e-2)
    assert (row["lora"], row["dsee"]["support"]["sparse"]) == (None, 8)
    assert row["run"]["dsee"]["sparse_parameters"] == 8 * 6  # query and value of three layers


@pytest.mark.slow
def test_a_row_without_text_is_calibrated_as_without_a_grid(recipe, tmp_path, monkeypatch):
    seen = []

    def start(source: Any, *args: Any, **options: Any) -> Any:
        seen.append((source, options["calibration"]))
        return compressed_start(source, *args, **options)

    monkeypatch.setattr(stages, "compressed_start", start)
    path = recipe(methods=["ntk-match", "ntk-match+data-free"], seeds=[0], select_on="last", epochs=1)
    assert call("reproduce", path, "--out", tmp_path / "out").exit_code == 0
    record = json.loads((tmp_path / "out" / "small.json").read_text())
    assert labels(record) == ["ntk-match", "ntk-match, no text"]
    with_text, without = record["rows"]
    assert without.keys() - with_text.keys() == {"data_free"}
    (source, texts), (_, made) = seen
    model = AutoModel.from_pretrained(source.folder)
    expected = data_free_batches(model, source.tokenizer, 8, seed=0)
    assert len(expected) == len(made)
    for one, other in zip(made, expected, strict=True):
        torch.testing.assert_close(one["input_ids"], other["input_ids"], rtol=0, atol=0)
    assert any(not torch.equal(one["input_ids"], other["input_ids"]) for one, other in zip(texts, made, strict=True))


def test_a_model_type_without_targets_of_lora_is_told_as_that(recipe, tmp_path):
    methods = ["full+lora", "fusion"]
    AutoModel.from_config(detected_config("mpnet")).save_pretrained(tmp_path / "mpnet")
    tiny_tokenizer().save_pretrained(tmp_path / "mpnet")
    path, out = recipe(methods=methods, model=str(tmp_path / "mpnet")), tmp_path / "out"
    message = refused("reproduce", path, "--out", out)
    assert "`lora targets` must be given for mpnet, of which PEFT knows none, as targets=all-linear" in message


def test_a_folder_of_something_else_is_refused(recipe, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    assert "`--out` must be new, empty, or the folder of an experiment" in refused(
        "reproduce", recipe(), "--out", tmp_path / "out"
    )


def test_an_unknown_recipe_is_told_which_there_are():
    line = refused("reproduce", "table9", "--out", "x")
    assert "EXPERIMENT must be a YAML file or one of" in line
    assert "table2" in line


def test_without_a_recipe_all_are_listed():
    result = call("reproduce")
    assert result.exit_code == 0
    assert all(name in result.output for name in named_experiments())


OF_OTHERS = ("mpnet-table1", "mpnet-table1-1024", "mpnet-table1-data-free", "mpnet-dynamics")


@pytest.mark.parametrize("name", [name for name in named_experiments() if name not in OF_OTHERS])
def test_every_other_recipe_of_the_package_is_a_valid_grid(name):
    assert other_command(ReproduceOptions(name, out="somewhere"), name) is None
    experiment = read_experiment(name, {"out": "somewhere"})
    assert experiment.title
    found = list(cells(experiment))
    assert {cell.task for cell in found} == set(experiment.tasks) <= TASKS.keys()
    assert any(cell.row.method is None for cell in found)


@pytest.mark.parametrize("name", ["minilm-table2", "minilm-table5", "minilm-table6"])
def test_recorded_runs_keep_their_names(name):
    """A name is a hash of all options: one that is new would have every run made again."""
    rows = {file.stem: json.loads(file.read_text()) for file in RECORDED.glob("*.json")}
    experiment = read_experiment(name, {"out": "somewhere"})
    of_task = {row["task"]: row for row in rows.values()}
    source: Any = SimpleNamespace(sha256=next(iter(rows.values()))["model_sha256"], row_for_identity=dict)
    tasks: Any = {
        (task, experiment.model): (SimpleNamespace(max_length=row["max_length"]), row["data_sha256"])
        for task, row in of_task.items()
    }
    grid = Grid(experiment, {(experiment.model, ()): source}, tasks)
    for cell in cells(experiment):
        for seed in experiment.seeds:
            assert run_name(grid.identity(cell, experiment.rates(cell.row)[0], seed)) in rows


def test_the_full_model_has_one_cell_whatever_varies():
    experiment = Experiment(model="m", tasks=("sst2",), methods=("full", "svd"), keep_ratio=(0.25, 0.5))
    assert [(cell.row.label, cell.keep_ratio) for cell in cells(experiment)] == [
        ("full", 1.0),
        ("svd", 0.25),
        ("svd", 0.5),
    ]


def test_entries_say_what_they_are():
    entry = parse_table_row("fusion:refine=false+layerwise=2", "m")
    assert entry.label == "fusion refine=False + layer-wise, 2 epochs"
    assert parse_table_row("full+lora=4", "m").label == "full + LoRA"
    for_all, own = (parse_table_row(f"full+{adapter}", "m") for adapter in ("lora", "lora=4:targets=key"))
    assert for_all.with_targets("query+value").label == "full + LoRA"  # those of all rows are not told
    assert own.with_targets("query+value").label == "full + LoRA targets=key"
