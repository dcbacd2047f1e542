"""`compare` on the texts of a task: one command line for every kind."""

import json
from typing import Any

import pytest
from command import call, refused
from tiny_task import save_checkpoint, sentences, write_files
from tiny_texts import rows, webnlg_folder, write_rows
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from mlpfusion.checkpoint.open import open_checkpoint
from mlpfusion.compression.calibration.traces import trace_calibration
from mlpfusion.data.measured import task_texts
from mlpfusion.measure import comparison
from mlpfusion.options.task import TaskOptions

QUICK = ["--methods", "fusion", "--seeds", 0, "--json"]
CLS, SEP, FIRST = 1, 2, 4  # ids of [CLS], [SEP], w0


def compared(*arguments: object) -> dict[str, Any]:
    result = call("compare", *arguments, *QUICK)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def error_of(record: dict[str, Any]) -> float:
    return record["rows"][0]["error"]["output_error"]


def test_a_labelled_task_gives_what_its_texts_give(tmp_path):
    model, (_, validation) = save_checkpoint(tmp_path / "model"), write_files(tmp_path)
    columns = ["--validation", validation, "--text-column", "sentence", "--label-column", "label"]
    task = compared(model, *columns, "--max-samples", 16)
    texts = compared(model, "--data", validation, "--column", "sentence", "--max-samples", 16)
    assert (task["data"], task["samples"]) == ("custom validation: validation.jsonl", 16)
    assert error_of(task) == pytest.approx(error_of(texts), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "auto_class", "kind"),
    [
        ("llama", AutoModelForCausalLM, "language-modelling"),
        ("llama", AutoModelForCausalLM, "generation"),
        ("t5", AutoModelForSeq2SeqLM, "generation"),
    ],
)
def test_tasks_with_labelled_tokens_take_the_flags_of_tune(name, auto_class, kind, tmp_path):
    model = save_checkpoint(tmp_path / "model", name, auto_class)
    flags = write_rows(tmp_path, 8)[2:6]
    if kind == "language-modelling":
        (tmp_path / "texts.txt").write_text("\n".join(sentences(80, 0)[0]))
        flags = ["--train", "unread", "--validation", tmp_path / "texts.txt", "--max-length", 16]
    found = compared(model, "--task", kind, *flags, "--max-samples", 6)
    assert found["samples"] == 6
    assert found["data"].startswith(f"{kind} validation: ")
    assert 0 < error_of(found) < 3


def options(folder: Any, **told: Any) -> tuple[TaskOptions, str]:
    write_rows(folder)
    return TaskOptions(task="generation", **told), str(folder / "validation.jsonl")


def test_a_decoder_reads_a_source_with_its_text(tmp_path):
    source = open_checkpoint(str(save_checkpoint(tmp_path / "model", "llama", AutoModelForCausalLM)))
    found = task_texts(source, *options(tmp_path), max_samples=1)
    (first,) = rows(1, 12)
    assert first == {"source": "w0", "target": "w0 w0"}
    (batch,) = found.batches
    assert batch["input_ids"].tolist() == [[CLS, FIRST, FIRST, FIRST, SEP]]
    assert set(batch) == {"input_ids", "attention_mask"}


def test_the_decoder_of_an_encoder_decoder_reads_the_text(tmp_path):
    source = open_checkpoint(str(save_checkpoint(tmp_path / "model", "t5", AutoModelForSeq2SeqLM)))
    found = task_texts(source, *options(tmp_path), max_samples=3)
    (batch,) = found.batches
    sources = [
        [CLS, FIRST, SEP, 0, 0],
        [CLS, FIRST + 7, FIRST + 8, SEP, 0],
        [CLS, FIRST + 2, FIRST + 3, FIRST + 4, SEP],
    ]
    assert batch["input_ids"].tolist() == sources
    texts = [[0, FIRST, FIRST], [0, FIRST + 7, FIRST + 7], [0, FIRST + 2, FIRST + 2]]
    assert batch["decoder_input_ids"].tolist() == texts  # behind the start token, without the end
    assert batch["decoder_attention_mask"].all()


def test_webnlg_is_read_with_segments(tmp_path, monkeypatch):
    webnlg_folder(tmp_path, monkeypatch)
    model = save_checkpoint(tmp_path / "model", "gpt2", AutoModelForCausalLM)
    task = ["--task", "webnlg", "--device", "cpu", "--epochs", 1, "--max-new-tokens", 2]
    assert "must have the special tokens of webnlg" in refused("compare", model, "--task", "webnlg")
    assert call("tune", model, tmp_path / "out", *task, "--learning-rate", "1e-2").exit_code == 0
    plain = compared(tmp_path / "out", "--task", "webnlg")
    segments = compared(tmp_path / "out", "--task", "webnlg", "--segment-ids")
    assert segments["data"] == "webnlg validation: webnlg of MLPFUSION_DATA, with segment ids"
    assert error_of(segments) != error_of(plain)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "exactly one of `--data` and `--task` must be given"),
        (["--data", "a.txt", "--task", "sst2"], "exactly one of `--data` and `--task` must be given"),
        (["--data", "a.txt", "--validation", "b.txt"], "exactly one of `--data` and `--task` must be given"),
        (["--task", "sst2", "--column", "x"], "`--column` must be left out with `--task`, got 'x'"),
        (["--task", "sst2", "--new-head"], "`--new-head` must be left out with `--task`, got True"),
        (["--task", "sst2", "--authors-quirks"], "`--authors-quirks` must be left out with `--task`, got True"),
        (["--task", "generation"], "`--validation` must be given for generation"),
        (["--task", "sst2", "--max-samples", 0], "`--max-samples` must be at least 1, got 0"),
    ],
)
def test_what_does_not_go_together_is_refused(flags, message, tmp_path):
    assert message in refused("compare", save_checkpoint(tmp_path / "model"), *flags)


def test_the_training_split_calibrates_without_its_labels(tmp_path, monkeypatch):
    model, (train, validation) = save_checkpoint(tmp_path / "model"), write_files(tmp_path)
    kept = [json.loads(line) for line in train.read_text().splitlines()]
    train.write_text("".join(json.dumps(row) + "\n" for row in kept if row["label"] == 1))  # words 30 to 59
    with train.open("a") as file:
        file.write('{"sentence": "w59", "label": 0}\n')
    seen = list[Any]()

    def spy(model: Any, sites: Any, batches: Any, *more: Any) -> Any:
        seen.extend(batches)
        return trace_calibration(model, sites, batches, *more)

    monkeypatch.setattr(comparison, "trace_calibration", spy)
    task = ["--train", train, "--validation", validation, "--text-column", "sentence", "--label-column", "label"]
    flags = ["--methods", "maintain-output", "--seeds", 0, "--max-samples", 8, "--json"]
    record = json.loads(
        call("compare", model, *task, *flags, "--calibrate-on-train", "--calibration-samples", 9).stdout
    )
    assert sum(len(batch["input_ids"]) for batch in seen) == 9
    assert {name for batch in seen for name in batch} <= {"input_ids", "token_type_ids", "attention_mask"}
    assert {int(word) for batch in seen for word in batch["input_ids"].flatten()} <= {0, CLS, SEP, *range(34, 64)}
    assert record["calibration"]["file"] == "custom train: train.jsonl"
    assert record["calibration"]["samples"] == 9
    seen.clear()
    assert "calibration" not in compared(model, *task, "--calibrate-on-train")  # of methods that see nothing
    assert not seen
    call("compare", model, *task, *flags)  # made up, without the flag
    assert any(FIRST <= int(word) < 34 for batch in seen for word in batch["input_ids"].flatten())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--data", "TEXTS", "--calibrate-on-train"],
            "`--calibrate-on-train` must be left out with `--data`, got True",
        ),
        (
            ["--task", "sst2", "--calibrate-on-train", "--calibration", "TEXTS"],
            "`--calibrate-on-train` must be left out with `--calibration`, got True",
        ),
        (
            ["--task", "sst2", "--calibrate-on-train", "--calibration-samples", "0"],
            "`--calibration-samples` must be at least 1, got 0",
        ),
    ],
)
def test_where_the_training_split_cannot_calibrate_the_flag_is_refused(flags, message, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("w1 w2\n")
    words = [texts if flag == "TEXTS" else flag for flag in flags]
    assert message in refused("compare", save_checkpoint(tmp_path / "model"), *words)
