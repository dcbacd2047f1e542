"""Experiments that are no grid: a file with `command` runs `compare` or `dynamics` by their own options."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import call, refused
from detected import detected_model
from test_reproduce import OF_OTHERS
from tiny_task import tiny_tokenizer

from mlpfusion.commands.results.reproduce import ReproduceOptions, other_command
from mlpfusion.measure.method_list import parse_methods
from mlpfusion.measure.run_dynamics import run_dynamics
from mlpfusion.reproduce.experiment import cells, read_experiment
from mlpfusion.reproduce.named import named_experiments

COMPARE = {"title": "A", "command": "compare", "task": "sst2", "methods": ["fusion", "svd"], "max_samples": 8}
DYNAMICS = {"title": "A", "command": "dynamics", "task": "sst2", "methods": ["fusion", "svd"], "steps": 2}
DYNAMICS |= {"eval_samples": 8, "batch_size": 8, "device": "cpu"}


@pytest.fixture
def mpnet(tmp_path) -> Path:
    """A tiny MPNet, for which PEFT knows no maps to adapt."""
    detected_model("mpnet").save_pretrained(tmp_path / "mpnet")
    tiny_tokenizer().save_pretrained(tmp_path / "mpnet")
    return tmp_path / "mpnet"


def written(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def lines(name: str) -> dict[str, Any]:
    return yaml.safe_load(named_experiments()[name].read_text())


@pytest.mark.parametrize("name", OF_OTHERS)
def test_every_other_experiment_of_the_package_is_a_command_with_options(name):
    found = other_command(ReproduceOptions(name, out="somewhere"), name)
    assert found is not None
    command, told = found
    assert command.name == {"mpnet-dynamics": "dynamics"}.get(name, "compare")
    assert parse_methods(",".join(told.methods))
    assert lines(name)["title"] in call("reproduce").output


def test_what_was_typed_stands_over_the_file(tmp_path):
    file = written(tmp_path, COMPARE | {"model": "theirs", "seeds": [0, 1], "out": "theirs"})
    typed = ReproduceOptions(str(file), model="mine", out="mine", methods=("mmd",), seeds=(3,))
    found = other_command(typed, str(file))
    assert found is not None
    assert (found[1].model, found[1].out, found[1].methods, found[1].seeds) == ("mine", "mine", ("mmd",), (3,))
    assert found[1].max_samples == 8


@pytest.mark.parametrize(
    ("values", "flags", "message"),
    [
        (
            COMPARE,
            ["--tasks", "sst2,mrpc"],
            "`--tasks` must be left out for FILE, which does not take it, got sst2,mrpc",
        ),
        (COMPARE, ["--device", "cpu"], "`--device` must be left out for FILE, which does not take it, got cpu"),
        (DYNAMICS, ["--no-report"], "`--no-report` must be left out for FILE, which does not take it, got True"),
        (DYNAMICS | {"command": "tune"}, [], "`command` must be one of compare, dynamics, got 'tune'"),
        (DYNAMICS | {"command": None}, [], "`command` must be of type str, got None"),
        (DYNAMICS | {"title": 3}, [], "`title` must be of type str, got 3"),
        (DYNAMICS | {"epochs": 3}, [], "the options must have keys among"),
        (COMPARE | {"methods": ["fuson"]}, [], "`method` must be one of"),
        ({"tasks": ["sst2"], "methods": ["full"]}, ["--overwrite"], "`--overwrite` must be left out for FILE"),
    ],
)
def test_what_does_not_go_together_is_refused(values, flags, message, tmp_path):
    file, out = written(tmp_path, values | {"model": "no model"}), tmp_path / "out"
    line = refused("reproduce", file, "--out", out, *flags)
    assert message.replace("FILE", str(file)) in line
    assert not out.exists()


@pytest.mark.parametrize("values", [COMPARE, DYNAMICS], ids=lambda values: values["command"])
def test_a_folder_must_be_named(values, tmp_path):
    file = written(tmp_path, values | {"model": "no model"})
    assert refused("reproduce", file) == "Error: `out` must be given, got none"


@pytest.mark.parametrize(
    ("name", "few"),
    [
        ("mpnet-table1", {"layers": "0", "max_samples": 6, "calibration_samples": 5}),
        ("mpnet-table1-data-free", {"layers": "1", "max_samples": 6, "calibration_samples": 5}),
        ("mpnet-dynamics", {"layers": "last:1", "steps": 2, "eval_samples": 6, "batch_size": 8}),
    ],
)
def test_the_experiments_leave_what_their_commands_leave(name, few, mpnet, glue, tmp_path):
    """With fewer layers, texts, steps and methods."""
    methods = {"mpnet-table1": "svd,flap", "mpnet-dynamics": "fusion,svd"}.get(name, "ntk-match:refine_epochs=1")
    file = written(tmp_path, lines(name) | few)
    words = ["reproduce", file, "--model", mpnet, "--out", tmp_path / "out", "--seeds", 0, "--methods", methods]
    result = call(*words)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / f"{'dynamics' if 'steps' in few else 'comparison'}.json").read_text())
    labels = {row["label"] for row in record["rows"]}
    assert labels >= {"svd"} or labels == {"ntk-match refine_epochs=1"}
    assert all(label in result.stdout for label in labels)
    assert "`--out` must be empty or new" in refused(*words)
    if name == "mpnet-table1":
        own = ["--task", "sst2", "--max-samples", 6, "--calibrate-on-train", "--calibration-samples", 5, "--layers", 0]
        alone = call("compare", mpnet, *own, "--methods", methods, "--seeds", 0, "--json")
        assert [row["error"] for row in json.loads(alone.stdout)["rows"]] == [row["error"] for row in record["rows"]]
        assert call(*words, "--overwrite").exit_code == 0


@pytest.mark.slow
def test_every_method_of_table_1_takes_an_mpnet(mpnet, glue, tmp_path):
    file = written(tmp_path, lines("mpnet-table1") | {"layers": "0", "max_samples": 6, "calibration_samples": 5})
    result = call("reproduce", file, "--model", mpnet, "--out", tmp_path / "out", "--seeds", 0, "--json")
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["rows"]) == len(parse_methods("all")) + 1


def test_an_interrupted_dynamics_goes_on_where_it_was(mpnet, glue, tmp_path, monkeypatch):
    words = ["reproduce", written(tmp_path, DYNAMICS | {"model": str(mpnet)}), "--out", tmp_path / "out", "--seeds", 0]

    def interrupt(options: Any, write_report: Any, progress: Any) -> Any:
        def until(done: int, total: int, what: str) -> None:
            progress(done, total, what)
            if done > 2:
                raise KeyboardInterrupt

        return run_dynamics(options, write_report, until)

    with monkeypatch.context() as patched:
        patched.setattr("mlpfusion.measure.run_dynamics.run_dynamics", interrupt)
        assert call(*words).exit_code == 130
    (run,) = (tmp_path / "out.unfinished").glob("seed-*/complete")
    kept = run.stat().st_mtime_ns
    with monkeypatch.context() as patched:
        patched.setattr("mlpfusion.storage.record_job.remove_work", lambda out: None)
        assert call(*words).exit_code == 0
    assert run.stat().st_mtime_ns == kept
    assert len(json.loads((tmp_path / "out" / "dynamics.json").read_text())["rows"]) == 3


def test_the_grids_of_mpnet_adapt_query_and_value():
    for name, epochs in (("mpnet-table2", 1), ("mpnet-table2-small", 3)):
        experiment = read_experiment(name, {"out": "somewhere"})
        adapted = [cell.row for cell in cells(experiment) if cell.row.adapter is not None]
        assert experiment.epochs == epochs
        assert {row.label for row in adapted} == {"full + LoRA", "fusion + LoRA"}
        assert {row.adapter.targets for row in adapted if row.adapter} == {"q+v"}
        assert all(experiment.rates(row) == (5e-4,) for row in adapted)


def test_a_row_with_targets_of_its_own_keeps_them_and_a_row_without_an_adapter_has_none(tmp_path):
    grid = {"model": "m", "tasks": ["sst2"], "methods": ["full", "full+dsee=4:targets=key", "fusion+lora"]}
    file = written(tmp_path, grid | {"adapter_targets": "query"})
    rows = [cell.row for cell in cells(read_experiment(str(file), {"out": "somewhere"}))]
    assert [None if row.adapter is None else row.adapter.targets for row in rows] == [None, "key", "query"]


@pytest.mark.slow
def test_a_grid_with_adapter_targets_trains_an_mpnet(mpnet, glue, tmp_path):
    few = {"layers": ["last:1"], "max_train_samples": 32, "max_length": 16, "batch_size": 16, "seeds": [0]}
    file, out = written(tmp_path, lines("mpnet-table2") | few | {"device": "cpu"}), tmp_path / "out"
    result = call("reproduce", file, "--model", mpnet, "--out", out, "--methods", "full,full+lora=2,fusion+lora=2")
    assert result.exit_code == 0, result.output
    full, lora, fused = json.loads((out / "own.json").read_text())["rows"]
    assert lora["lora"]["targets"] == fused["lora"]["targets"] == "q+v"
    assert lora["run"]["trained_parameters"] < full["run"]["trained_parameters"] / 5
