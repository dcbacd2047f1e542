"""Scores of a checkpoint on a task, from the command line: those that `tune` gives for what it saved."""

import json

import pytest
from command import call, refused
from pico import pico_model
from tiny_task import save_checkpoint, sentences, write_files
from tiny_texts import webnlg_folder
from transformers import AutoModelForCausalLM

from mlpfusion.generation import run as generation_run

CPU = ["--device", "cpu"]


def tuned_scores(folder):
    return json.loads((folder / "mlp_fusion_tune_record.json").read_text())["runs"][0]["scores"]


def test_a_classifier_scores_what_tune_says(tmp_path):
    model, (train, validation) = save_checkpoint(tmp_path / "model"), write_files(tmp_path)
    columns = ["--text-column", "sentence", "--label-column", "label", "--max-length", 16]
    flags = ["--train", train, "--validation", validation, *columns, "--epochs", 2, "--learning-rate", "2e-3", *CPU]
    assert call("tune", model, tmp_path / "out", *flags).exit_code == 0
    result = call("evaluate", tmp_path / "out", "--validation", validation, *columns, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["scores"] == tuned_scores(tmp_path / "out")
    bare = refused("evaluate", model, "--validation", validation, *columns)
    assert "MODEL must have a trained head for custom" in bare


def test_a_language_model_scores_what_tune_says(tmp_path):
    model = save_checkpoint(tmp_path / "model", "llama", AutoModelForCausalLM)
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(sentences(80, 0)[0]))
    task = ["--task", "language-modelling", "--validation", file, "--max-length", 16]
    flags = ["--train", file, "--epochs", 1, *CPU]
    assert call("tune", model, tmp_path / "out", *task, *flags).exit_code == 0
    found = json.loads(call("evaluate", tmp_path / "out", *task, "--json").stdout)["scores"]["validation"]
    assert found == pytest.approx(tuned_scores(tmp_path / "out")["validation"], rel=1e-6)


def test_the_training_split_is_not_read(tmp_path, monkeypatch):
    webnlg_folder(tmp_path, monkeypatch)
    model = save_checkpoint(tmp_path / "model", "gpt2", AutoModelForCausalLM)
    flags = ["--task", "webnlg", "--max-new-tokens", 3]
    assert call("tune", model, tmp_path / "out", *flags, "--epochs", 1, *CPU).exit_code == 0
    (tmp_path / "data/webnlg/train.jsonl.gz").unlink()
    result = call("evaluate", tmp_path / "out", *flags, "--json")
    assert result.exit_code == 0, result.output
    assert list(json.loads(result.stdout)["scores"]) == ["validation", "test", "test SEEN", "test UNSEEN"]


@pytest.fixture
def generator(tmp_path):
    """A decoder that writes something, and the flags of a task for it."""
    model = pico_model("gpt2", AutoModelForCausalLM)
    folder = save_checkpoint(tmp_path / "model", "gpt2", AutoModelForCausalLM)
    model.save_pretrained(folder)
    rows = [{"source": f"w{number % 9} w{number % 7}", "target": f"w{number}"} for number in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, ["--task", "generation", "--validation", tmp_path / "rows.jsonl", "--max-new-tokens", 4]


def test_texts_are_kept_and_shown(generator, tmp_path):
    model, flags = generator
    result = call("evaluate", model, *flags, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert result.output.count("reference  w") == 3
    lines = [json.loads(line) for line in (tmp_path / "out/validation.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    record = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert record["cut"] == {"validation": sum(not line["ended"] for line in lines)}
    assert record["decoding"]["max_new_tokens"] == 4
    assert record["signatures"]["ter"].startswith("nrefs:1")
    assert not list(tmp_path.glob("*unfinished*"))
    again = call("evaluate", model, *flags, "--json")
    assert json.loads(again.stdout)["scores"] == record["scores"]


def test_a_former_evaluation_is_replaced_when_told_so(generator, tmp_path):
    model, flags = generator
    out = ("--out", tmp_path / "out")
    assert call("evaluate", model, *flags, *out).exit_code == 0
    before = (tmp_path / "out/evaluation.json").read_bytes()
    flags[-1] = 2
    assert "--overwrite replaces it" in refused("evaluate", model, *flags, *out)
    assert (tmp_path / "out/evaluation.json").read_bytes() == before
    assert call("evaluate", model, *flags, *out, "--overwrite").exit_code == 0
    assert json.loads((tmp_path / "out/evaluation.json").read_text())["decoding"]["max_new_tokens"] == 2
    assert not list(tmp_path.glob("*unfinished*"))


def test_a_stopped_evaluation_goes_on_where_it_was(generator, tmp_path, monkeypatch):
    model, flags = generator
    flags = [*flags, "--decode-batch", 1]
    assert call("evaluate", model, *flags, "--out", tmp_path / "whole").exit_code == 0
    whole, made = (tmp_path / "whole/validation.jsonl").read_bytes(), []
    line = generation_run._line

    def stop(written):
        made.append(written.number)
        if len(made) == 5:
            raise KeyboardInterrupt
        return line(written)

    with monkeypatch.context() as patch:
        patch.setattr(generation_run, "_line", stop)
        assert call("evaluate", model, *flags, "--out", tmp_path / "out").exit_code != 0
    assert not (tmp_path / "out").exists()
    calls, write_batch = [], generation_run.Decoder._batch

    def counted(*arguments):
        calls.append(arguments)
        return write_batch(*arguments)

    monkeypatch.setattr(generation_run.Decoder, "_batch", counted)
    assert call("evaluate", model, *flags, "--out", tmp_path / "out").exit_code == 0
    assert len(calls) == 12 - 4
    assert (tmp_path / "out/validation.jsonl").read_bytes() == whole


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "exactly one of `--data`, `--task` and `--lm-eval` must be given"),
        (["--data", "a.txt", "--task", "sst2"], "exactly one of `--data`, `--task` and `--lm-eval` must be given"),
        (["--task", "sst2", "--window", 64], "`--window` must be left out with `--task`, got 64"),
        (["--task", "sst2", "--new-head"], "`--new-head` must be left out with `--task`, got True"),
        (["--data", "a.txt", "--out", "x"], "`--out` must be left out with `--data`, got x"),
        (["--data", "a.txt", "--num-beams", 2], "`--num-beams` must be left out with `--data`, got 2"),
    ],
)
def test_what_does_not_go_together_is_refused(flags, message):
    assert message in refused("evaluate", "model", *flags)
