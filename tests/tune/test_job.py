"""`mlpfusion tune`: what it leaves, and what it refuses before the first step; and the same for `mlpfusion distill`."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command import call, refused
from pico import PICO, pico_config, pico_model
from safetensors.torch import load_file, save_file
from tiny_task import TASK, save_checkpoint, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.integrations.integration_utils import is_tensorboard_available

from mlpfusion.checkpoint.open import open_for_training
from mlpfusion.data.task_model import load_for_task


def test_a_grid_with_seeds_leaves_the_best_model_and_a_record(fused, data, tmp_path):
    out = tmp_path / "out"
    result = call("tune", fused, out, *data, "--learning-rate", "1e-3,5e-3", "--seeds", "0,1", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record == json.loads((out / "mlp_fusion_tune_record.json").read_text())
    runs = {(run["learning_rate"], run["seed"]): run for run in record["runs"]}
    rate, seed = record["learning_rate"], record["saved_seed"]
    assert set(runs) == {(1e-3, 0), (5e-3, 0), (rate, 1)}
    assert runs[rate, 0]["selection_score"] == max(runs[one, 0]["selection_score"] for one in (1e-3, 5e-3))
    assert runs[rate, seed]["selection_score"] == max(runs[rate, one]["selection_score"] for one in (0, 1))
    values = [runs[rate, one]["scores"]["validation"]["accuracy"] for one in (0, 1)]
    mean, deviation = record["scores"]["validation"]["accuracy"]
    assert mean == pytest.approx(sum(values) / 2)
    assert deviation == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert "the reported splits were not used" in record["note"]
    card = (out / "README.md").read_text()
    assert f"{mean:.4f} | {deviation:.4f}" in card
    assert str(tmp_path) not in card + json.dumps(record)
    assert {entry.name for entry in tmp_path.iterdir()} >= {"out", "fused"}
    assert not list(tmp_path.glob("*unfinished*")) + list(tmp_path.glob(".*"))
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert model.config.id2label == {0: "0", 1: "1"}
    assert [name for name, _ in model.named_buffers() if name.endswith("output_scale")]


@pytest.mark.slow
def test_the_papers_habit_is_named_and_recipes_give_the_same(fused, data, tmp_path):
    flags = ["--select-on", "validation", "--seeds", "3"]
    result = call("tune", fused, tmp_path / "one", *data, *flags)
    assert result.exit_code == 0, result.output
    assert "chosen on validation, which is reported too (the paper's habit): optimistic" in result.stdout
    recipe = tmp_path / "tune.yaml"
    recipe.write_text(
        f"model: {fused}\nout: {tmp_path / 'two'}\ntrain: {data[1]}\nvalidation: {data[3]}\ntext_column: sentence\n"
        "label_column: label\nmax_length: 16\nbatch_size: 16\nepochs: 2\ndevice: cpu\nlearning_rate: 2.0e-3\n"
        "select_on: validation\nseeds: [3]\n"
    )
    result = call("tune", "--recipe", recipe)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()


def test_lora_leaves_the_adapter_and_the_merged_model(fused, data, tmp_path):
    from peft import PeftModel

    out = tmp_path / "out"
    result = call("tune", fused, out, *data, "--lora", "r=2,targets=all-linear")
    assert result.exit_code == 0, result.output
    merged = AutoModelForSequenceClassification.from_pretrained(out)
    task = replace(TASK, name="custom", label_names=("0", "1"))
    adapted = PeftModel.from_pretrained(load_for_task(open_for_training(str(fused)), task, 0), str(out / "adapter"))
    batch = dict(tiny_tokenizer()(["w1 w2 w3", "w40"], padding=True, return_tensors="pt"))
    with torch.no_grad():
        torch.testing.assert_close(merged(**batch).logits, adapted.eval()(**batch).logits, rtol=1e-4, atol=1e-5)


def test_the_head_of_a_model_and_of_what_it_was_compressed_to_is_the_same(checkpoint, fused):
    models = [load_for_task(open_for_training(str(folder)), TASK, 5) for folder in (checkpoint, fused)]
    other = load_for_task(open_for_training(str(fused)), TASK, 6)
    heads: list[Any] = [model.get_submodule("classifier").weight for model in (*models, other)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("name", ["gpt2", "t5", "modernbert"])
def test_every_kind_of_architecture_is_tuned(name, data, tmp_path):
    save_checkpoint(tmp_path / name, name)
    flags = [*data, "--epochs", 1, "--batch-size", 32]
    result = call("tune", tmp_path / name, tmp_path / "out", *flags, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["runs"][0]["steps"] == 3
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config
    assert getattr(config, "use_cache", None) == getattr(pico_config(name), "use_cache", None)


def test_models_without_the_head_are_refused(data, tmp_path):
    sizes = {"vocab_size": 67, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2}
    config = AutoConfig.for_model("granite", num_attention_heads=4, num_key_value_heads=4, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "granite")
    tiny_tokenizer().save_pretrained(tmp_path / "granite")
    message = "MODEL must be of a type that transformers has a head for sequence classification for, got granite"
    assert message in refused("tune", tmp_path / "granite", tmp_path / "out", *data)
    model = AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model("bert", **PICO["bert"][1], num_labels=3)
    )
    model.save_pretrained(tmp_path / "three")
    tiny_tokenizer().save_pretrained(tmp_path / "three")
    message = "MODEL must have a head of 2 outputs for custom, or none, got 3"
    assert message in refused("tune", tmp_path / "three", tmp_path / "out", *data)
    pico_model("bert").save_pretrained(tmp_path / "mute")
    assert "MODEL must come with a tokenizer" in refused("tune", tmp_path / "mute", tmp_path / "out", *data)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--text-column", "text"],
            "`--text-column` must be a column of .*, line 1, one of sentence, label, got 'text'",
        ),
        (["--text-column", "sentence,label"], "`label` must be text in .*, line 1"),
        (["--text-column", "a,b,c"], "`--text-column` must name one column or two, got a, b, c"),
        (["--max-length", 100], "`--max-length` must be between 8 and 64, what the model takes, got 100"),
        (["--metric-for-best-model", "bleu"], "`--metric-for-best-model` must be one of accuracy, f1, got 'bleu'"),
        (["--holdout", 0.001], "`--holdout` must leave at least 2 examples to choose on"),
        (
            ["--select-on", "last", "--learning-rate", "1e-3,2e-3"],
            "`--select-on` must be holdout or validation to choose",
        ),
        (["--seeds", "1,1"], "`--seeds` and `--learning-rate` must not repeat"),
        (["--device", "cuda"], "`--device` must be cpu or auto on this machine, got 'cuda'"),
        (["--precision", "fp16"], "`--precision` must be fp32 or bf16 on the CPU, got 'fp16'"),
        (["--lora", "r=2,targets=no-such-map"], "`lora targets` must name linear maps of the model"),
        (["--recipe", "no-such-file"], "`--recipe` must be a readable YAML file, got no-such-file"),
        (["--resume", "--overwrite"], "`--resume` and `--overwrite` must not be given together"),
        (["--task", "sst3"], "`--task` must be one of cola, mnli"),
        (["--task", "sst2"], "`--text-column` must be left out with `--task`, got sentence: sst2 has its own columns"),
        (["--layerwise-learning-rate", 1e-3], "`--layerwise` must be given with `--layerwise-learning-rate`"),
        (["--revision", "main"], "`--revision` must be left out for a folder, got 'main'"),
        (["--select-on", "last", "--holdout", 0.2], "`--holdout` must be left out for select_on=last"),
        (
            ["--select-on", "last", "--metric-for-best-model", "f1"],
            "`--metric-for-best-model` must be left out for select_on=last",
        ),
    ],
)
def test_bad_flags_are_refused_in_one_line_and_leave_nothing(flags, message, fused, data, tmp_path):
    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    before = {entry.name for entry in tmp_path.iterdir()}
    assert re.search(message, refused("tune", fused, tmp_path / "out", *data, *flags))
    assert {entry.name for entry in tmp_path.iterdir()} == before


@pytest.mark.filterwarnings("ignore::mlpfusion.errors.DamageWarning")
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named_before_any_training_and_leaves_nothing(value, fused, data, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(fused, broken)
    tensors = load_file(broken / "model.safetensors")
    name = next(name for name in tensors if name.endswith("output.dense.weight"))
    tensors[name][1, 2] = value
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    message = refused("tune", broken, tmp_path / "out", *data)
    assert f"the weights must be finite, got 1 NaN or Inf in {name} of {broken}" in message
    assert not [entry.name for entry in tmp_path.iterdir() if entry.name.startswith("out")]


def test_a_grid_goes_on_without_the_rates_that_diverge(fused, data, tmp_path, monkeypatch):
    from mlpfusion.tune import run as job

    def poisoned(model: Any, *args: Any) -> Any:
        if args[1].learning_rate > 0.1:
            with torch.no_grad():
                model.classifier.bias[0] = float("inf")
        return finetune(model, *args)

    finetune = job.finetune
    monkeypatch.setattr(job, "finetune", poisoned)
    result = call("tune", fused, tmp_path / "out", *data, "--learning-rate", "0.5,2e-3", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (record["diverged"], record["learning_rate"], len(record["runs"])) == ([0.5], 2e-3, 1)


def test_a_run_that_diverges_keeps_its_work(fused, data, tmp_path):
    line = refused("tune", fused, tmp_path / "out", *data, "--learning-rate", "0.999", "--weight-decay", "1e38")
    assert "`--learning-rate` must be small enough for a finite loss, got 0.999" in line
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.unfinished" / "settings.json").is_file()
    assert "OUT has an unfinished run in" in refused("tune", fused, tmp_path / "out", *data)
    result = call("tune", fused, tmp_path / "out", *data, "--overwrite")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "out.unfinished").exists()


@pytest.mark.slow
def test_tuning_again_from_the_result_works(fused, data, tmp_path):
    assert call("tune", fused, tmp_path / "one", *data).exit_code == 0
    result = call("tune", tmp_path / "one", tmp_path / "two", *data, "--epochs", 1)
    assert result.exit_code == 0, result.output
    assert "OUT must be empty or new" in refused("tune", fused, tmp_path / "two", *data)


def test_layerwise_tuning_comes_first_and_lowers_its_loss(checkpoint, fused, data, tmp_path):
    flags = ["--layerwise", 2, "--teacher", checkpoint, "--layerwise-learning-rate", "2e-3", "--cache", tmp_path / "c"]
    result = call("tune", fused, tmp_path / "out", *data, *flags, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["model_sha256"] == open_for_training(str(fused)).sha256  # not of the tuned blocks
    stage = json.loads(result.stdout)["layerwise"]
    assert stage["loss_after"] < stage["loss_before"]
    assert stage["train_samples"] + stage["held_out_samples"] == 86  # what was held out of train is not seen here
    assert len(list((tmp_path / "c").glob("*/states.npy"))) == 1
    assert "Eq. 6 from" in (tmp_path / "out" / "README.md").read_text()
    plain = call("tune", fused, tmp_path / "plain", *data)
    assert plain.exit_code == 0, plain.output
    files = [tmp_path / name / "model.safetensors" for name in ("out", "plain")]
    assert files[0].read_bytes() != files[1].read_bytes()


def test_distill_writes_a_complete_folder(checkpoint, fused, files, tmp_path):
    speed = ["--max-length", 16, "--batch-size", 8, "--learning-rate", "2e-3", "--device", "cpu"]
    out = tmp_path / "out"
    result = call("distill", checkpoint, fused, out, "--data", files[0], "--column", "sentence", *speed, "--json")
    assert result.exit_code == 0, result.output
    record = json.loads((out / "mlp_fusion_distill_record.json").read_text())
    assert record == json.loads(result.stdout)
    assert record["run"]["loss_after"] < record["run"]["loss_before"]
    assert record["run"]["train_samples"] == 86
    assert "held out went from" in (out / "README.md").read_text()
    assert {entry.name for entry in tmp_path.iterdir()} >= {"out", "fused"}
    assert not (tmp_path / "out.unfinished").exists()
    before, after = (load_file(folder / "model.safetensors") for folder in (fused, out))
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    expected = {
        f"encoder.layer.{n}.{m}.dense.{p}"
        for n in (1, 2)
        for m in ("intermediate", "output")
        for p in ("weight", "bias")
    }
    assert moved == expected
    retuned = call("tune", out, tmp_path / "tuned", *_file_flags(files), *speed)
    assert retuned.exit_code == 0, retuned.output


def test_logs_need_tensorboard(fused, data, tmp_path):
    if is_tensorboard_available():
        result = call("tune", fused, tmp_path / "out", *data, "--log-dir", tmp_path / "logs")
        assert result.exit_code == 0, result.output
        assert list((tmp_path / "logs" / "learning-rate-0.002-seed-0").glob("events*"))
    else:
        line = refused("tune", fused, tmp_path / "out", *data, "--log-dir", tmp_path / "logs")
        assert "`--log-dir` needs TensorBoard: pip install tensorboard" in line
        assert not (tmp_path / "out.unfinished").exists()


def _file_flags(files: tuple[Path, Path]) -> list[object]:
    columns = ["--text-column", "sentence", "--label-column", "label"]
    return ["--train", files[0], "--validation", files[1], *columns]


@pytest.mark.slow
def test_logits_are_distilled_from_a_tuned_model(checkpoint, fused, data, files, tmp_path):
    assert call("tune", checkpoint, tmp_path / "teacher", *data).exit_code == 0
    flags = ["--data", files[0], "--column", "sentence", "--max-length", 16, "--batch-size", 8, "--objective", "logits"]
    result = call("distill", tmp_path / "teacher", fused, tmp_path / "out", *flags, "--learning-rate", "2e-3")
    assert result.exit_code == 0, result.output
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "0", 1: "1"}
    assert type(model).__name__ == "BertForSequenceClassification"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "exactly one of `--data` and `--task` must be given"),
        (["--task", "sst2", "--data", "x"], "exactly one of `--data` and `--task` must be given"),
        (["--data", "none.txt"], "`--data` must be a readable file"),
        (["--task", "sst2", "--column", "x"], "`--column` must be left out with `--task`, got 'x'"),
        (["--task", "sst2", "--temperature", 3], "`--temperature` must be left out for layerwise, which has no logits"),
        (["--data", "DATA", "--column", "text"], "`--column` must be a text column of"),
        (
            ["--data", "DATA", "--column", "sentence", "--objective", "x"],
            "`--objective` must be one of layerwise, hidden",
        ),
        (["--data", "DATA", "--column", "sentence", "--objective", "logits"], "ORIGINAL must have a head for"),
        (
            ["--data", "DATA", "--column", "sentence", "--holdout", 0],
            "`--holdout` must be above 0 and below 1, got 0.0",
        ),
    ],
)
def test_bad_distillations_are_refused(flags, message, checkpoint, fused, files, tmp_path):
    given = [files[0] if flag == "DATA" else flag for flag in flags]
    line = refused("distill", checkpoint, fused, tmp_path / "out", "--max-length", 16, *given)
    assert message in line
    assert not list(tmp_path.glob("out*"))


def test_the_layerwise_stage_needs_a_teacher_that_fits(checkpoint, fused, data, tmp_path):
    out = tmp_path / "out"
    assert "`--teacher` must be given for `--layerwise`" in refused("tune", fused, out, *data, "--layerwise", 1)
    assert "`--layerwise` must be given with" in refused("tune", fused, out, *data, "--teacher", checkpoint)
    flags = ["--layerwise", 1, "--teacher", checkpoint]
    assert "`compressed` must be compressed by mlpfusion" in refused("tune", checkpoint, out, *data, *flags)
    pico_model("bert", seed=1).save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    flags = ["--layerwise", 1, "--teacher", tmp_path / "other"]
    assert "`--teacher` must be the source of the student" in refused("tune", fused, out, *data, *flags)
    assert not list(tmp_path.glob("out*"))
