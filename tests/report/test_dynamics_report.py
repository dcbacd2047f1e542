"""`mlpfusion dynamics` from checkpoint to report: the record, the tables, the chart, what it refuses, and a kill."""

import json
import multiprocessing
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from tiny_task import TASK, examples, save_checkpoint, sentences

from mlpfusion.checkpoint.open import open_for_training
from mlpfusion.cli import main
from mlpfusion.commands.command import not_told
from mlpfusion.commands.results import dynamics
from mlpfusion.data.task import TaskData
from mlpfusion.data.task_model import load_for_task
from mlpfusion.data.tasks import encode_task
from mlpfusion.measure.run_dynamics import Runner
from mlpfusion.methods.names import method_from_name
from mlpfusion.options.dynamics import DynamicsOptions
from mlpfusion.options.fields import from_plain
from mlpfusion.report.dynamics import distance_table, first_steps, loss_table, write_dynamics_chart

METHODS = "fusion,svd,ntk-match:refine_epochs=1"


@pytest.fixture
def fields(tmp_path) -> dict[str, Any]:
    paths = {}
    for split, count, seed in (("train", 64, 0), ("validation", 30, 1)):
        paths[split] = tmp_path / f"{split}.jsonl"
        rows = [{"sentence": text, "label": label} for text, label in zip(*sentences(count, seed), strict=True)]
        paths[split].write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = save_checkpoint(tmp_path / "model")
    return {
        "model": str(model),
        "out": str(tmp_path / "out"),
        "train": str(paths["train"]),
        "validation": str(paths["validation"]),
        "text_column": ("sentence",),
        "label_column": "label",
        "max_length": 16,
        "methods": tuple(METHODS.split(",")),
        "layers": "last:2",
        "steps": 2,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "seeds": (0, 1),
        "eval_samples": 20,
        "calibration_samples": 16,
        "device": "cpu",
    }


def report(fields: dict[str, Any]) -> dict[str, Any]:
    return dynamics.run(from_plain(DynamicsOptions, fields), not_told)


def call(fields: dict[str, Any], *flags: object) -> Result:
    texts = {name: ",".join(map(str, value)) if isinstance(value, tuple) else value for name, value in fields.items()}
    options = [
        (f"--{name.replace('_', '-')}", *([] if value is True else [str(value)]))
        for name, value in texts.items()
        if name != "model"
    ]
    arguments = ["dynamics", fields["model"], *(text for option in options for text in option), *map(str, flags)]
    return CliRunner().invoke(main, arguments)


def without_clock(record: dict[str, Any]) -> dict[str, Any]:
    return record | {"rows": [row | {"seconds_per_step": 0} for row in record["rows"]]}


def test_the_command_leaves_record_tables_and_chart(fields, tmp_path):
    result = call(fields, "--json")
    assert result.exit_code == 0, result.output
    out, record = tmp_path / "out", json.loads(result.stdout)
    assert {file.name for file in out.iterdir()} == {
        "dynamics.json", "dynamics.md", "dynamics.png", "mlp_fusion_files.json"
    }  # fmt: skip
    assert record == json.loads((out / "dynamics.json").read_text())
    assert str(tmp_path) not in result.stdout
    names = ["full", "fusion", "svd", "ntk-match refine_epochs=1"]
    assert [(row["label"], row["seed"]) for row in record["rows"]] == [
        (name, seed) for seed in (0, 1) for name in names
    ]
    assert record["measured_at"] == [1, 2]
    assert record["held_out"]["samples"] == 20
    assert {"torch", "transformers"} <= set(record["versions"])
    assert (record["device"], record["threads"]) == ("cpu", torch.get_num_threads())
    for row in record["rows"]:
        assert len(row["training_loss"]) == 2
        assert (max(row["distance"]) == 0) == (row["label"] == "full")
        assert (row["parameters"] < record["rows"][0]["parameters"]) == (row["label"] != "full")
    first = {row["label"]: row["distance"] for row in record["rows"] if row["seed"] == 0}
    second = {row["label"]: row["distance"] for row in record["rows"] if row["seed"] == 1}
    assert all(first[name] != second[name] for name in names[1:])
    text = (out / "dynamics.md").read_text()
    assert all(f"\n| {name} | " in text for name in names)


def test_all_models_of_a_seed_have_the_same_head_and_other_parts_only_in_the_blocks(fields):
    source = open_for_training(fields["model"])
    data = encode_task(
        TaskData(TASK, examples(64, 0), {"validation": examples(8, 1)}, ""), source.tokenizer, max_length=16
    )
    runner = Runner(from_plain(DynamicsOptions, fields), source, data, None, None)
    full = load_for_task(source, TASK, 3).state_dict()
    for name in ("fusion", "svd", "ntk-match"):
        small = runner.start(method_from_name(name), 3)[0].state_dict()
        shared = [key for key in full if not re.search(r"\.\d+\.(intermediate|output)\.dense", key)]
        assert {"classifier.weight", "classifier.bias"} <= set(shared)
        assert all(torch.equal(small[key], full[key]) for key in shared)
        assert small.keys() != full.keys() or any(small[key].shape != full[key].shape for key in full)


def test_texts_of_a_file_calibrate_too(fields, tmp_path):
    chosen = fields | {"methods": ("ntk-match:refine_epochs=1",), "seeds": (0,)}
    plain = report(chosen)
    assert plain["calibration"] == {"samples": 16, "source": "training split, unlabelled"}
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(sentences(40, 7)[0]))
    told = chosen | {"out": str(tmp_path / "two"), "calibration": str(texts)}
    other = report(told)
    assert other["calibration"]["file"] == "texts.txt"
    assert other["rows"][0]["training_loss"] == plain["rows"][0]["training_loss"]
    assert other["rows"][1]["distance"] != plain["rows"][1]["distance"]


@pytest.mark.slow
def test_block_by_block_changes_the_calibrated_methods_and_no_other(fields, tmp_path):
    chosen = fields | {"seeds": (0,)}
    plain = report(chosen)
    result = call(chosen | {"out": str(tmp_path / "two")}, "--sequential", "--json")
    assert result.exit_code == 0, result.output
    other = json.loads(result.stdout)
    assert (plain["recipe"]["sequential"], other["recipe"]["sequential"]) == (False, True)
    same = {a["label"]: a["distance"] == b["distance"] for a, b in zip(plain["rows"], other["rows"], strict=True)}
    assert same == {"full": True, "fusion": True, "svd": True, "ntk-match refine_epochs=1": False}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("fusion", "svd"), "sequential": True}, "`--sequential` must be left out .*, got fusion,svd"),
        ({"methods": ("fusion", "svd"), "calibration": "x.txt"}, "`--calibration` must be left out where no method"),
        ({"methods": ("fusion", "svd"), "calibration_samples": 3}, "`--calibration-samples` must be left out where no"),
        ({"methods": ("magnitude", "nirvana"), "sequential": True}, "`--sequential` must be left out for nirvana"),
        ({"column": "text"}, "`--column` must be left out without `--calibration`, got 'text'"),
        ({"methods": ("fusion", "nonsense")}, "`method` must be one of fusion, .*, got 'nonsense'"),
        ({"methods": ("fusion", "fusion")}, "`--methods` must not repeat, got fusion,fusion"),
        ({"seeds": (1, 1)}, "`--seeds` must not repeat, got 1,1"),
        ({"seeds": (-1,)}, "`--seeds` must be at least 0, got -1"),
        ({"steps": 0}, "`--steps` must be at least 1, got 0"),
        ({"eval_samples": 0}, "`--eval-samples` must be at least 1, got 0"),
        ({"calibration_samples": 0}, "`--calibration-samples` must be at least 1, got 0"),
        ({"keep_ratio": 0.0}, "`--keep-ratio` must be .*, got 0.0"),
        ({"layers": "7"}, "`--layers`.* 7"),
        ({"device": "gpu"}, "`--device` must be auto, cpu or cuda, got 'gpu'"),
        ({"label_column": "nothing"}, "`--label-column` must be a column of .*, got 'nothing'"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_any_work(fields, changes, message, tmp_path):
    before = set(tmp_path.iterdir())
    result = call(fields | changes)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1
    assert re.search(message, result.stderr), result.stderr
    assert set(tmp_path.iterdir()) == before


def test_a_finished_report_is_not_overwritten_unless_asked_for(fields, tmp_path):
    chosen = fields | {"methods": ("fusion",), "seeds": (0,), "calibration_samples": 256}
    assert call(chosen).exit_code == 0
    result = call(chosen)
    assert result.exit_code == 2
    assert "`--out` must be empty or new" in result.stderr
    assert call(chosen | {"steps": 3}, "--overwrite").exit_code == 0
    assert json.loads((tmp_path / "out" / "dynamics.json").read_text())["measured_at"] == [1, 2, 3]


def dynamics_and_die(fields: dict[str, Any], moment: int | None, runs: Any, touches: Any) -> None:
    """In the child: counts the runs that are started and the touches of the folder; kills itself at `moment`."""
    import mlpfusion.measure.run_dynamics as module

    whole, folder = module.train_path, str(Path(fields["out"]).parent)

    def counted(*args: Any, **options: Any) -> Any:
        runs.value += 1
        return whole(*args, **options)

    def touch(event: str, args: tuple[Any, ...]) -> None:
        if event in {"os.rename", "os.mkdir", "os.remove", "shutil.rmtree"} and str(args[0]).startswith(folder):
            touches.value += 1
            if touches.value == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    module.train_path = counted
    sys.addaudithook(touch)
    report(fields)


@pytest.mark.slow
def test_killed_and_started_again_it_repeats_no_finished_run(fields, tmp_path):
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlpfusion.measure.run_dynamics", "transformers.models.bert.modeling_bert"])
    chosen = fields | {"methods": ("fusion", "clustering"), "seeds": (0,), "calibration_samples": 256}

    def start(moment: int | None, out: Path) -> tuple[int, int, int]:
        runs, touches = context.Value("i", 0), context.Value("i", 0)
        process = context.Process(target=dynamics_and_die, args=(chosen | {"out": str(out)}, moment, runs, touches))
        process.start()
        process.join()
        return process.exitcode, runs.value, touches.value

    code, runs, moments = start(None, tmp_path / "whole" / "out")
    assert (code, runs) == (0, 3)
    expected = without_clock(json.loads((tmp_path / "whole" / "out" / "dynamics.json").read_text()))
    assert moments >= 8
    for moment in (moments // 4, moments // 2, moments - 2):
        out = tmp_path / f"killed-{moment}" / "out"
        assert start(moment, out)[0] == -signal.SIGKILL
        complete = len(list(Path(f"{out}.unfinished").glob("seed-*")))
        finished = (out / "dynamics.json").is_file()
        code, runs, _ = start(None, out) if not finished or Path(f"{out}.unfinished").exists() else (0, 0, 0)
        assert code == 0
        assert runs == (0 if finished else 3 - complete)
        assert without_clock(json.loads((out / "dynamics.json").read_text())) == expected
        assert not Path(f"{out}.unfinished").exists()


def made_up(num_methods: int, seeds: tuple[int, ...]) -> dict[str, Any]:
    rows = [
        {
            "label": name,
            "seed": seed,
            "distance": [(index + seed) / 10, (index + seed) / 5, index / 4, index / 4],
            "length": [1.0] * 4,
            "training_loss": [0.7 - step / 50 for step in range(20)],
            "trained_parameters": 1234567,
            "seconds_per_step": 0.25,
        }
        for seed in seeds
        for index, name in enumerate(["full", *(f"method-{number}" for number in range(num_methods))])
    ]
    return {"measured_at": [1, 2, 7, 20], "recipe": {"steps": 20}, "rows": rows}


def test_the_tables_have_means_and_deviations_over_the_seeds():
    record = made_up(2, (0, 1))
    lines = distance_table(record).splitlines()
    assert lines[0] == "| method | mean of 1 to 10 | step 1 | step 2 | step 20 |"
    assert lines[2].startswith("| method-0 | 0.233 +- 0.071 | 0.150 +- 0.071 | 0.300 +- 0.141 | 0.250 +- 0.000 |")
    assert first_steps(record, "method-1") == pytest.approx([(0.2 + 0.4 + 0.5) / 3, (0.3 + 0.6 + 0.5) / 3])
    assert loss_table(record).splitlines()[2] == "| full | 0.610 +- 0.000 | 0.410 +- 0.000 | 1,234,567 | 0.25 |"


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_the_chart_is_drawn_for_one_seed_and_more_methods_than_colours(seeds, tmp_path):
    (path,) = write_dynamics_chart(made_up(12, seeds), tmp_path / "chart.png")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
