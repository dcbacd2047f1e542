"""`mlpfusion tune --dsee`: what trains, what is left, what the record says."""

import json
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from command import call, refused
from peft import PeftModel
from pico import HIDDEN, pico_model
from safetensors.torch import load_file
from tiny_task import TASK, make_task, save_checkpoint, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import mlpfusion
from mlpfusion.checkpoint.open import open_for_training
from mlpfusion.data.chosen import split_train
from mlpfusion.data.task_model import load_for_task
from mlpfusion.dsee.adapter.layer import DseeLayer
from mlpfusion.dsee.gradients import loss_gradients
from mlpfusion.errors import InputError
from mlpfusion.options.adapters.dsee import Dsee, Support
from mlpfusion.options.adapters.lora import Lora
from mlpfusion.options.training import Finetune
from mlpfusion.tune.finetune import finetune
from mlpfusion.tune.record import run_from_dict

RANDOM = Support(sparse=8, omega="random")
FAST = Finetune(learning_rate=2e-3, epochs=1, batch_size=8, device="cpu", dsee=Dsee(2, support=RANDOM))


def fused(name: str = "bert") -> Any:
    model = pico_model(name, AutoModelForSequenceClassification)
    mlpfusion.compress(model, mlpfusion.Fusion(), layers="last:2", keep_ratio=0.25)
    return model


def unmerged(monkeypatch: Any, model: Any, config: Finetune = FAST) -> Any:
    """The model and the record of a run, with the adapter still beside the weights."""
    monkeypatch.setattr(sys.modules["mlpfusion.tune.adapter"], "merge_adapter", lambda adapted: adapted)
    return finetune(model, make_task(), config)


def test_a_run_leaves_the_adapter_and_the_merged_model_and_says_what_trained(fused, data, tmp_path):
    out = tmp_path / "out"
    result = call("tune", fused, out, *data, "--dsee", "rank=2,sparse=8", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["recipe"]["dsee"] == "rank=2,sparse=8"
    run = run_from_dict(record["runs"][0])
    assert run.dsee is not None
    assert (run.dsee.rank, run.dsee.scaling) == (2, 16.0)
    assert (run.dsee.low_rank_parameters, run.dsee.sparse_parameters) == (6 * 2 * 2 * HIDDEN, 6 * 8)
    assert len(run.dsee.in_largest) == 6
    head = 2 * HIDDEN + 2
    assert run.trained_parameters == run.dsee.low_rank_parameters + run.dsee.sparse_parameters + head
    merged = AutoModelForSequenceClassification.from_pretrained(out)
    task = replace(TASK, name="custom", label_names=("0", "1"))
    adapted = PeftModel.from_pretrained(load_for_task(open_for_training(str(fused)), task, 0), str(out / "adapter"))
    batch = dict(tiny_tokenizer()(["w1 w2 w3", "w40"], padding=True, return_tensors="pt"))
    with torch.no_grad():
        torch.testing.assert_close(merged(**batch).logits, adapted.eval()(**batch).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_the_weights_under_the_adapter_stay_bit_by_bit(name, monkeypatch):
    model = fused_model = fused(name)
    before = {key: value.clone() for key, value in fused_model.state_dict().items()}
    adapted, record = unmerged(monkeypatch, model)
    assert record.dsee is not None
    after = {
        key.removeprefix("base_model.model.").replace("base_layer.", "").replace("original_module.", ""): value
        for key, value in adapted.state_dict().items()
        if "dsee_update" not in key and "modules_to_save" not in key
    }
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    updates = [layer.update_of("default") for layer in adapted.modules() if isinstance(layer, DseeLayer)]
    assert updates
    for update in updates:
        assert update.S.count_nonzero() == len(update.S)
        assert update.B.count_nonzero() > update.B.numel() / 2


def test_the_positions_follow_their_own_seed_and_the_factors_that_of_the_run(monkeypatch):
    def omegas(seed: int, omega_seed: int) -> list[Any]:
        support = replace(RANDOM, omega_seed=omega_seed)
        adapted, _ = unmerged(monkeypatch, fused(), replace(FAST, seed=seed, dsee=Dsee(2, support=support)))
        return [layer.update_of("default") for layer in adapted.modules() if isinstance(layer, DseeLayer)]

    first, other_run, other_positions = omegas(0, 0), omegas(1, 0), omegas(0, 1)
    assert all(torch.equal(one.omega, two.omega) for one, two in zip(first, other_run, strict=True))
    assert not any(torch.equal(one.omega, two.omega) for one, two in zip(first, other_positions, strict=True))
    assert not torch.equal(first[0].A, other_run[0].A)


def test_the_gradient_is_that_of_the_first_examples_to_train_on(monkeypatch):
    task, model = make_task(), fused()
    config = replace(FAST, dsee=Dsee(2, support=Support(sparse=8, omega="gradient", samples=20)))
    train, _ = split_train(task, config)
    expected = loss_gradients(model.double(), [task.collate(train.items[:20])])
    adapted, _ = unmerged(monkeypatch, fused(), config)
    layers = {path: layer for path, layer in adapted.named_modules() if isinstance(layer, DseeLayer)}
    assert {path.removeprefix("base_model.model.") for path in layers} == expected.keys()
    for path, layer in layers.items():
        largest = expected[path.removeprefix("base_model.model.")].abs().flatten().topk(8).indices
        rows, columns = layer.update_of("default").omega
        assert set((rows * HIDDEN + columns).tolist()) == set(largest.tolist())


def test_what_merging_would_spoil_and_two_adapters_are_refused():
    model = pico_model("bert", AutoModelForSequenceClassification)
    mlpfusion.compress(model, mlpfusion.Magnitude(), keep_ratio=0.5)
    with pytest.raises(InputError, match="`dsee` must be left out for a masked model"):
        finetune(model, make_task(), FAST)
    with pytest.raises(InputError, match="`dsee` must be left out with `lora`, got both"):
        replace(FAST, lora=Lora())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("rank=2,sparse=0", "`dsee sparse` must be a whole number of at least 1, got 0"),
        ("rank=2,sparse=1025", "`dsee sparse` must be at most 1024, the entries of bert.encoder.layer.0.attention"),
        ("omega=largest", "`dsee omega` must be one of decompose, magnitude, random, gradient, got 'largest'"),
        (
            "targets=word_embeddings",
            "`dsee targets` must name maps of type Linear or Conv1D, not quantised, got Embedding",
        ),
        ("targets=no-such-map", "`dsee targets` must name linear maps of the model: "),
        ("rounds=9", "`dsee rounds` must leave the rank below 32, the smaller side of bert.encoder"),
        ("rnk=2", "`--dsee` must be NAME=VALUE among rank, alpha, targets, sparse, "),
    ],
)
def test_bad_values_are_refused_in_one_line_and_leave_nothing(option, message, checkpoint, data, tmp_path):
    before = {entry.name for entry in tmp_path.iterdir()}
    assert message in refused("tune", checkpoint, tmp_path / "out", *data, "--dsee", option)
    assert {entry.name for entry in tmp_path.iterdir()} == before


def test_a_file_of_options_says_the_same(checkpoint, data, tmp_path):
    call("tune", checkpoint, tmp_path / "one", *data, "--epochs", 1, "--dsee", "rank=2,sparse=8,omega=magnitude")
    file = tmp_path / "tune.yaml"
    file.write_text("dsee: rank=2,sparse=8,omega=magnitude\nepochs: 1\n")
    place = data.index("--epochs")
    result = call("tune", checkpoint, tmp_path / "two", *data[:place], *data[place + 2 :], "--config", file)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_decoder_trains_the_rows_of_new_tokens_beside_the_adapter(tmp_path, monkeypatch):
    from test_generation_tasks import webnlg_folder

    webnlg_folder(tmp_path, monkeypatch)
    model = save_checkpoint(tmp_path / "model", "gpt2", AutoModelForCausalLM)
    flags = ["--epochs", 1, "--batch-size", 2, "--select-on", "last", "--max-new-tokens", 2, "--device", "cpu"]
    result = call(
        *("tune", model, tmp_path / "out", "--task", "webnlg", *flags),
        *("--learning-rate", 1e-2, "--dsee", "rank=2,sparse=8"),
    )
    assert result.exit_code == 0, result.output
    adapter = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    assert [name for name in adapter if "token_adapter.trainable_tokens_delta" in name], list(adapter)
    assert len([name for name in adapter if name.endswith("dsee_update.omega")]) == 3
