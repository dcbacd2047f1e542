"""`mlpfusion compress --method lth --task ..`: what it leaves, and what it refuses before it reads or writes."""

import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from pico import others_slow, pico_model
from task_job import HALF
from tiny_task import save_checkpoint, tiny_tokenizer, write_files
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

import mlpfusion
from mlpfusion.cli import main
from mlpfusion.data.chosen import split_train
from mlpfusion.methods.names import method_name
from mlpfusion.methods.table import ON_TASK
from mlpfusion.options.training import Finetune

OPTIONS = {
    "lth": "learning_rate=0.005",
    "gem-miner": "rounds=2",
    "slimming": "learning_rate=0.005",
    "flop": "batch_size=8",
    "moefication": "epochs=2",
}


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(*arguments: object) -> str:
    """The one line of the error."""
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return save_checkpoint(tmp_path / "model")


@pytest.fixture
def data(tmp_path) -> list[object]:
    train, _ = write_files(tmp_path)
    return ["--train", train, "--text-column", "sentence", "--label-column", "label", "--max-length", 16]


TASK_METHODS = [method_name(method) for method in ON_TASK]


@pytest.mark.parametrize("method", others_slow(TASK_METHODS, quick=("lth",)))
def test_the_checkpoint_keeps_its_class_and_all_but_the_mlps(method, checkpoint, data, tmp_path):
    out, flags = tmp_path / "out", ["--method", method, "--option", OPTIONS[method], "--keep-ratio", 0.25]
    result = call("compress", checkpoint, out, *flags, *data, "--layers", "last:1", "--max-train-samples", 40, "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record == json.loads((out / "mlp_fusion_record.json").read_text())
    assert record["recipe"]["task"]["samples"] == 36  # without the tenth that tune holds out
    assert str(tmp_path) not in result.stdout
    assert "learned on 36 labelled training examples of custom" in (out / "README.md").read_text()
    original, compressed = AutoModel.from_pretrained(checkpoint), AutoModel.from_pretrained(out)
    assert json.loads((out / "config.json").read_text())["architectures"] == ["BertModel"]
    before, after = original.state_dict(), compressed.state_dict()
    inside = ("encoder.layer.2.intermediate.dense.", "encoder.layer.2.output.dense.")
    kept = {name for name in before if not name.startswith(inside)}
    assert kept == {name for name in after if not name.startswith(inside)}
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert not list(tmp_path.glob(".*"))
    tune = ["--validation", tmp_path / "validation.jsonl", "--epochs", 1, "--device", "cpu", "--max-train-samples", 40]
    assert call("tune", out, tmp_path / "tuned", *data, *tune).exit_code == 0


def test_a_recipe_gives_the_same_bytes_and_so_does_the_library(checkpoint, data, tmp_path):
    flags = ["--method", "lth", "--option", "learning_rate=0.005", "--keep-ratio", 0.5, "--seed", 3]
    assert call("compress", checkpoint, tmp_path / "one", *flags, *data).exit_code == 0
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {checkpoint}\nout: {tmp_path / 'two'}\nmethod: lth\noptions: {{learning_rate: 0.005}}\n"
        f"keep_ratio: 0.5\n"
        f"seed: 3\ntrain: {data[1]}\ntext_column: sentence\nlabel_column: label\nmax_length: 16\n"
    )
    result = call("compress", "--recipe", recipe)
    assert result.exit_code == 0, result.output
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


@pytest.mark.filterwarnings("ignore:the checkpoint has no pooler")
def test_a_head_that_is_there_is_used_and_other_classes_stay_what_they_are(data, tmp_path):
    flags = [*data, "--method", "gem-miner", "--option", "rounds=1", "--keep-ratio", 0.5]
    for auto_class in (AutoModelForSequenceClassification, AutoModelForMaskedLM):
        source = save_checkpoint(tmp_path / auto_class.__name__, "bert", auto_class)
        out = tmp_path / f"{auto_class.__name__}-out"
        result = call("compress", source, out, *flags)
        assert result.exit_code == 0, result.output
        names = [json.loads((folder / "config.json").read_text())["architectures"] for folder in (source, out)]
        assert names[0] == names[1]


def test_the_dtype_of_the_checkpoint_stays(data, tmp_path):
    model = pico_model("bert", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    tiny_tokenizer().save_pretrained(tmp_path / "half")
    flags = ["--method", "lth", "--option", "learning_rate=0.005", "--keep-ratio", 0.25]
    assert call("compress", tmp_path / "half", tmp_path / "out", *flags, *data).exit_code == 0
    loaded = AutoModel.from_pretrained(tmp_path / "out")
    for name, value in loaded.named_parameters():
        original = model.get_parameter(name)
        assert value.dtype == torch.bfloat16
        assert bool(((value == original) | (value == 0)).all())


def test_what_does_not_fit_together_is_one_line_before_anything_is_written(checkpoint, data, tmp_path, monkeypatch):
    monkeypatch.setattr("mlpfusion.compression.checkpoint.load_for_task", lambda *_: pytest.fail("weights were read"))
    monkeypatch.setattr("mlpfusion.checkpoint.open.load_model", lambda *_: pytest.fail("weights were read"))
    out = tmp_path / "out"
    train = data[1]
    bad, empty = tmp_path / "bad.jsonl", tmp_path / "empty.jsonl"
    bad.write_text('{"sentence": "w1", "label": 1.5}\n')
    empty.write_text("")
    lth = ["--method", "lth", "--keep-ratio", 0.25]
    columns = ["--text-column", "sentence", "--label-column", "label"]
    for arguments, message in [
        ([*lth], "`--task` must be given for lth, or `--train` with `--text-column` and `--label-column`"),
        ([*lth, "--train", train], "`--task` must be given for lth, or `--train` with"),
        ([*lth, "--task", "sst3"], "`--task` must be one of cola, .*, got 'sst3'"),
        (["--method", "fusion", "--keep-ratio", 0.25, *data], "`--train` must be left out for fusion"),
        (["--method", "fusion", "--keep-ratio", 0.25, "--task", "sst2"], "`--task` must be left out for fusion"),
        (["--method", "lht", "--keep-ratio", 0.25], "`--method` must be one of fusion, .*, lth, .*, got 'lht'"),
        (["--method", "lth", *data], "`--keep-ratio` must be given for lth, got none"),
        (["--method", "lth", "--width", 8, *data], "`--width` must be left out for lth"),
        (["--method", "flop", "--budget", "50%", *data], "`--budget` must be left out for flop"),
        ([*lth, *data, "--calibration", train], "`--calibration` must be left out for lth, which learns on a task"),
        ([*lth, *data, "--option", "rate=1"], "options of lth must be among .*, got 'rate'"),
        ([*lth, *data, "--option", "rounds=0"], "`rounds` of lth must be at least 1, got 0"),
        ([*lth, *data, "--layers", "last:7"], "`--layers last:N` must have N between 1 and 3, got 7"),
        ([*lth, *data, "--max-train-samples", 0], "`--max-train-samples` must be at least 1, got 0"),
        ([*lth, *data, "--max-length", 4], "`--max-length` must be between 8 and 64, what the model takes, got 4"),
        ([*lth, *data, "--text-column", "text"], "`--text-column` must be a column of .*, line 1, .*, got 'text'"),
        ([*lth, "--train", bad, *columns], "`label` must be text or a whole number for a class, got 1.5"),
        ([*lth, "--train", empty, *columns], "`--train` must hold at least one row, got none in .*empty.jsonl"),
    ]:
        line = refused("compress", checkpoint, out, *arguments)
        assert re.search(message, line), line
    assert not out.exists()
    assert not list(tmp_path.glob(".*"))


def test_compare_and_measure_say_why_they_cannot(checkpoint, data, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("w1 w2 w3\nw4 w5\n")
    line = refused("compare", checkpoint, "--data", texts, "--methods", "fusion,lth")
    assert "`--methods` must need no labels here, got lth, which learns on a task: `mlpfusion compress --task`" in line
    out = tmp_path / "out"
    flags = ["--method", "moefication", "--option", "epochs=1", "--keep-ratio", 0.25]
    assert call("compress", checkpoint, out, *flags, *data).exit_code == 0
    assert "got one whose experts a router chooses" in refused("measure", checkpoint, out, "--data", texts)


def test_what_is_held_out_by_tune_is_not_learned_on():
    train, held_out = split_train(HALF, Finetune(max_train_samples=40))
    assert held_out is not None
    assert (len(train), len(held_out)) == (36, 4)


def test_the_public_names_are_those_of_the_table():
    assert {getattr(mlpfusion, name) for name in ("LTH", "GemMiner", "Slimming", "FLOP", "MoEfication")} == set(ON_TASK)
    assert TASK_METHODS == ["lth", "gem-miner", "slimming", "flop", "moefication"]
