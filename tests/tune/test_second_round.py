"""`mlpfusion tune --adapter`: an adapter trains again, the weights under it and their zeros stay."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import dsee, logits, saved_adapter
from command import call, refused
from peft import LoraConfig
from pico import HIDDEN
from safetensors.torch import load_file
from tiny_task import make_task, save_checkpoint
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, TrainerCallback

import mlpfusion
from mlpfusion.checkpoint.open import open_checkpoint, open_for_training
from mlpfusion.data.task_model import load_for_task
from mlpfusion.errors import InputError
from mlpfusion.measure.evaluation.task import task_scores
from mlpfusion.options.adapters.continued import Continued
from mlpfusion.options.adapters.lora import Lora
from mlpfusion.options.training import Finetune
from mlpfusion.tune.finetune import RunContext, finetune
from mlpfusion.tune.record import TUNE_RECORD_FILE, tune_record_from_dict

SPARSITY = "mlp_fusion_sparsity_record.json"


@pytest.fixture
def sparse(checkpoint, tmp_path) -> Path:
    """A checkpoint with zeros, its adapter beside it."""
    return made_sparse(checkpoint, tmp_path)


def made_sparse(checkpoint: Path, folder: Path, config: Any = None) -> Path:
    adapter = saved_adapter(checkpoint, folder / "first-adapter", config)
    flags = ("--updated-ratio", 0.5, "--other-ratio", 0.3)
    result = call("sparsify", checkpoint, folder / "sparse", "--adapter", adapter, *flags)
    assert result.exit_code == 0, result.output
    return folder / "sparse"


def tuned(sparse: Path, out: Path, data: list[object], *flags: object) -> dict[str, Any]:
    result = call("tune", sparse, out, *data, "--adapter", sparse / "adapter", *flags, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("kind", ["dsee", "lora"])
def test_the_zeros_stay_and_the_adapter_trains(kind, checkpoint, data, tmp_path):
    lora = LoraConfig(r=4, task_type="SEQ_CLS")  # pyright: ignore[reportArgumentType]
    sparse, out = made_sparse(checkpoint, tmp_path, lora if kind == "lora" else dsee()), tmp_path / "out"
    record = tune_record_from_dict(tuned(sparse, out, data, "--epochs", 1))
    before, after = weights(sparse), weights(out)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        "classifier.weight",
        "classifier.bias",
    }
    assert (out / SPARSITY).read_bytes() == (sparse / SPARSITY).read_bytes()
    old, new = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (sparse, out))
    assert {name for name in old if torch.equal(old[name], new[name])} == {name for name in old if "omega" in name}
    assert (record.runs[0].dsee is not None) == (kind == "dsee")
    assert record.runs[0].trained_parameters == sum(t.numel() for name, t in new.items() if "omega" not in name)
    loaded, first = mlpfusion.load_adapted(out), mlpfusion.load_adapted(sparse)
    assert not torch.allclose(logits(loaded), logits(first))
    assert record.scores["validation"]["accuracy"][0] == task_scores_of(loaded)["accuracy"]
    assert record.before is not None
    assert record.before["validation"]["accuracy"][0] == task_scores_of(first)["accuracy"]
    card = (out / "README.md").read_text()
    assert "mlpfusion.load_adapted" in card
    assert "An adapter was trained again: accuracy on validation from " in card


def task_scores_of(adapted: Any) -> dict[str, float]:
    data = make_task()
    return task_scores(adapted.get_base_model(), data, data.evaluation["validation"])


def test_evaluate_reads_the_adapter_beside_the_weights(sparse, data, tmp_path):
    record = tuned(sparse, tmp_path / "out", data, "--epochs", 1)
    files = [*data[2:8], *data[8:10]]
    assert "--validation" in files
    for folder, scores in ((sparse, record["before"]), (tmp_path / "out", record["scores"])):
        result = call("evaluate", folder, *files, "--json")
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)["scores"]["validation"]
        assert found == {name: mean for name, (mean, _) in scores["validation"].items()}


@pytest.mark.slow
def test_merging_is_for_those_who_ask(sparse, data, tmp_path):
    tuned(sparse, tmp_path / "out", data, "--epochs", 1)
    tuned(sparse, tmp_path / "merged", data, "--epochs", 1, "--merge")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    expected = logits(mlpfusion.load_adapted(tmp_path / "out"))
    torch.testing.assert_close(logits(merged.eval()), expected, rtol=1e-4, atol=1e-5)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert (weights(tmp_path / "out")[name] == 0).any()
    assert (weights(tmp_path / "merged")[name] != 0).all()
    assert not (tmp_path / "merged" / SPARSITY).exists()
    open_checkpoint(str(tmp_path / "merged"))  # a whole model
    message = (
        f"MODEL must be the one that the adapter was trained on, got {tmp_path / 'merged'}, into which it is merged"
    )
    adapter = tmp_path / "merged" / "adapter"
    assert message in refused("tune", tmp_path / "merged", tmp_path / "x", *data, "--adapter", adapter)
    tuned_again = call("tune", sparse, tmp_path / "y", *data, "--epochs", 1, "--adapter", adapter)
    assert tuned_again.exit_code == 0, tuned_again.output


class Mover(TrainerCallback):
    """Moves a weight under the adapter once the training is over."""

    def on_train_end(self, *args: Any, model: Any, **kwargs: Any) -> None:
        model.get_base_model().bert.encoder.layer[0].output.dense.weight.data[0, 0] += 1e-3


class Stopper(TrainerCallback):
    """Ends the process, as it were, in the second epoch."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.epoch > 1:
            raise KeyboardInterrupt


def second_round(checkpoint: Path, adapter: Path, context: RunContext) -> tuple[Any, Any]:
    data = make_task()
    config = Finetune(2e-3, epochs=2, batch_size=32, device="cpu", continued=Continued(str(adapter)))
    return finetune(load_for_task(open_for_training(str(checkpoint)), data.task, 0), data, config, context)


def test_a_weight_that_moves_ends_the_run(checkpoint, tmp_path):
    adapter = saved_adapter(checkpoint, tmp_path / "adapter")
    with pytest.raises(InputError, match="the weights under `adapter` must stay as they are, got other ones after"):
        second_round(checkpoint, adapter, RunContext(callbacks=[Mover()]))


@pytest.mark.slow
def test_a_stopped_round_goes_on_as_if_it_had_not_been(checkpoint, tmp_path):
    adapter = saved_adapter(checkpoint, tmp_path / "adapter")
    whole, expected = second_round(checkpoint, adapter, RunContext(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        second_round(checkpoint, adapter, RunContext(tmp_path / "stopped", callbacks=[Stopper()]))
    resumed, found = second_round(checkpoint, adapter, RunContext(tmp_path / "stopped"))
    assert (found.before, found.scores, found.epochs) == (expected.before, expected.scores, expected.epochs)
    assert same_bytes(tmp_path / "whole" / "adapter", tmp_path / "stopped" / "adapter")
    values = whole.state_dict()
    assert all(torch.equal(value, values[name]) for name, value in resumed.state_dict().items())


def same_bytes(one: Path, two: Path) -> bool:
    return all((two / file.name).read_bytes() == file.read_bytes() for file in one.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--dsee", "rank=2,sparse=8"],
            "`--adapter` must be left out with `--lora` and `--dsee`, which make a new one",
        ),
        (["--lora", "r=2"], "`--adapter` must be left out with `--lora` and `--dsee`, which make a new one"),
        (["--layerwise", 1, "--teacher", "x"], "`--layerwise` must be left out with `--adapter`: it moves the weights"),
    ],
)
def test_what_an_adapter_in_a_folder_excludes(flags, message, sparse, data, tmp_path):
    before = {entry.name for entry in tmp_path.iterdir()}
    assert message in refused("tune", sparse, tmp_path / "out", *data, "--adapter", sparse / "adapter", *flags)
    assert {entry.name for entry in tmp_path.iterdir()} == before


def test_adapters_that_are_not_of_the_model_are_refused_and_leave_nothing(sparse, checkpoint, data, tmp_path):
    save_checkpoint(tmp_path / "gpt2", "gpt2")
    causal = tmp_path / "causal"
    shutil.copytree(tmp_path / "first-adapter", causal)
    config = json.loads((causal / "adapter_config.json").read_text())
    (causal / "adapter_config.json").write_text(json.dumps(config | {"task_type": "CAUSAL_LM"}))
    other = "`--adapter` must lie on the weights that it was trained on, got a model with other ones: another model"
    before = {entry.name for entry in tmp_path.iterdir()}
    for model, adapter, message in (
        (checkpoint, tmp_path, "`--adapter` must be a folder with adapter_config.json and adapter_model.safetensors"),
        (tmp_path / "gpt2", sparse / "adapter", "`--adapter` must be one for this model"),
        (checkpoint, sparse / "adapter", other),
        (sparse, tmp_path / "first-adapter", other),
        (checkpoint, causal, "`--adapter` must have the task_type SEQ_CLS for custom, got CAUSAL_LM"),
    ):
        assert message in refused("tune", model, tmp_path / "out", *data, "--adapter", adapter)
    assert "MODEL must hold all that it computes, got " in refused("tune", sparse, tmp_path / "out", *data)
    message = "`--merge` must be left out without `--adapter`: a new adapter is always merged"
    assert message in refused("tune", checkpoint, tmp_path / "out", *data, "--merge")
    assert {entry.name for entry in tmp_path.iterdir()} == before


def test_two_adapters_are_refused():
    with pytest.raises(InputError, match="`adapter` must be left out with `lora` and `dsee`"):
        Finetune(lora=Lora(), continued=Continued("adapter"))
    assert replace(Finetune(), continued=Continued("adapter")).adapter is None


def test_the_first_stage_says_on_which_weights_its_adapter_lies(checkpoint, data, tmp_path):
    flags = ("--epochs", 1, "--dsee", "rank=2,sparse=8,omega=magnitude")
    assert call("tune", checkpoint, tmp_path / "tuned", *data, *flags).exit_code == 0
    adapter = tmp_path / "tuned" / "adapter"
    result = call("sparsify", checkpoint, tmp_path / "sparse", "--adapter", adapter)
    assert result.exit_code == 0, result.output
    said = refused("sparsify", tmp_path / "tuned", tmp_path / "x", "--adapter", adapter)
    assert f"MODEL must be the one that the adapter was trained on, got {tmp_path / 'tuned'}, into which it is" in said
    config = json.loads((tmp_path / "sparse" / "config.json").read_text())
    assert config["id2label"] == json.loads((tmp_path / "tuned" / "config.json").read_text())["id2label"]
    assert (tmp_path / "sparse" / TUNE_RECORD_FILE).exists()


@pytest.mark.slow
def test_a_decoder_with_new_tokens_goes_through_both_stages(tmp_path, monkeypatch):
    from test_generation_tasks import webnlg_folder

    webnlg_folder(tmp_path, monkeypatch)
    model = save_checkpoint(tmp_path / "model", "gpt2", AutoModelForCausalLM)
    flags = ["--epochs", 1, "--batch-size", 2, "--select-on", "last", "--max-new-tokens", 2, "--device", "cpu"]
    flags += ["--task", "webnlg", "--learning-rate", 1e-2]
    first, sparse, second = (tmp_path / name for name in ("first", "sparse", "second"))
    result = call("tune", model, first, *flags, "--dsee", "rank=2,sparse=8")
    assert result.exit_code == 0, result.output
    result = call("sparsify", model, sparse, "--adapter", first / "adapter", "--updated-ratio", 0.5)
    assert result.exit_code == 0, result.output
    record = json.loads((sparse / SPARSITY).read_text())
    assert {rows["stop"] - rows["start"] for rows in record["maps"] if rows["path"].endswith("c_attn")} == {HIDDEN}
    # without zeros: the adapter, its new tokens too, computes what the merged model of the first stage does
    flags_none = ("--updated-ratio", 1e-9, "--other-ratio", 0)
    assert call("sparsify", model, tmp_path / "none", "--adapter", first / "adapter", *flags_none).exit_code == 0
    merged, whole = AutoModelForCausalLM.from_pretrained(first), mlpfusion.load_adapted(tmp_path / "none")
    ids = torch.arange(merged.config.vocab_size - 8, merged.config.vocab_size)[None]
    with torch.no_grad():
        torch.testing.assert_close(whole(ids).logits, merged.eval()(ids).logits, rtol=1e-4, atol=1e-5)
    result = call("tune", sparse, second, *flags, "--adapter", sparse / "adapter")
    assert result.exit_code == 0, result.output
    before, after = weights(sparse), weights(second)
    for rows in record["maps"]:
        name = f"{rows['path']}.weight"
        assert torch.equal(before[name], after[name])
    tokens = "base_model.model.transformer.wte.token_adapter.trainable_tokens_delta"
    old, new = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (sparse, second))
    assert not torch.equal(old[tokens], new[tokens])
