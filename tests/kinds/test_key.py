"""The key of a saved model: what it may name, and what becomes of a model whose key was edited."""

import copy
import json
from typing import Any

import pytest
import torch
from edit_key import change_key
from peft import LoraConfig, get_peft_model
from pico import pico_model, pico_outputs
from safetensors.torch import load_file, save_file
from task_job import HALF
from transformers import AutoModel, AutoModelForSequenceClassification

import mlpfusion
from mlpfusion.errors import InputError
from mlpfusion.kinds.key import key_from_dict
from mlpfusion.methods.on_task.moefication import MoEfication


def compressed(name: str, method: Any, **options: Any) -> Any:
    model = pico_model(name)
    mlpfusion.compress(model, method, **{"layers": "last:2", "keep_ratio": 0.25, **options})
    return model


def routed() -> Any:
    model = pico_model("bert", AutoModelForSequenceClassification)
    mlpfusion.compress(model, MoEfication(epochs=1, batch_size=64), data=HALF, layers="last:1", keep_ratio=0.25)
    return model


def as_version_1(key: dict[str, Any]) -> None:
    key.pop("checksum")
    key["version"] = 1


def swap_gate_and_up(key: dict[str, Any]) -> None:
    stack = key["architecture"]["stacks"][0]
    stack["gate"], stack["up"] = stack["up"], stack["gate"]


def test_an_edit_without_the_checksum_is_refused(tmp_path):
    compressed("llama", mlpfusion.Magnitude()).save_pretrained(tmp_path)
    change_key(tmp_path, lambda key: key["sites"].pop("layers.1"), seal=False)  # its zeros would fill
    with pytest.raises(InputError, match="must be as it was written, its checksum says that it was edited"):
        AutoModel.from_pretrained(tmp_path)


def test_a_key_of_the_first_version_still_loads_and_folds(tmp_path):
    model = compressed("bert", mlpfusion.Fusion(), layers="all")
    model.save_pretrained(tmp_path)
    change_key(tmp_path, as_version_1)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(pico_outputs(loaded, "bert"), pico_outputs(model, "bert"))
    assert not hasattr(mlpfusion.fold(loaded).config, "mlp_fusion")


def test_a_lost_router_and_one_that_is_not_finite_are_refused(tmp_path):
    routed().save_pretrained(tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    for name in [name for name in whole if name.endswith(("router_in_bits", "router_out_bits"))]:
        rest = {other: value for other, value in whole.items() if other != name}
        save_file(rest, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(InputError, match=f"must hold the router of every routed block and no other, see {name}"):
            AutoModelForSequenceClassification.from_pretrained(tmp_path)
        broken = whole[name].clone()
        broken.view(-1)[:8] = -1  # the bits of NaN in every type
        save_file(rest | {name: broken}, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(InputError, match="the `router_(in|out)` at .* must be finite, got NaN or Inf"):
            AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_another_number_of_chosen_experts_is_refused(tmp_path):
    model = routed()
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(pico_outputs(again, "bert"), pico_outputs(model, "bert"))
    change_key(tmp_path, lambda key: key["sites"]["encoder.layer.2"].update(num_selected=2))
    with pytest.raises(InputError, match="must choose 1 experts at encoder.layer.2, as many as .*, got 2"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_routed_files_of_older_versions_hold_no_number_and_load(tmp_path):
    model = routed()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if name.endswith("intermediate.dense.weight") and weights[name].numel() == 1)
    save_file(weights | {name: torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    change_key(tmp_path, as_version_1)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(pico_outputs(loaded, "bert"), pico_outputs(model, "bert"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap_gate_and_up, "`architecture` must be that of the table for llama"),
        (lambda key: key["architecture"]["stacks"][0].update(width_key="vocab_size"), "must be that of the table"),
        (lambda key: key["sites"].update({"foo.2": key["sites"].pop("layers.2")}), "must name layers layers.{}, got"),
        (lambda key: key["sites"].update({"layers.02": key["sites"].pop("layers.2")}), "must name layers layers.{}"),
        (lambda key: key["architecture"]["stacks"][0].update(layer="layers.{}{"), "between names with dots"),
        (lambda key: key["architecture"]["stacks"][0].update(layer="{}{:d}"), "between names with dots"),
        (lambda key: key["architecture"]["stacks"][0].update(activation="mlp"), "must be another module than"),
        (lambda key: key["architecture"]["stacks"][0].update(activation="mlp.up_proj"), "must be another module than"),
        (lambda key: key["architecture"]["stacks"][0].update(up="x" * 300), "`up` of a stack must be names of modules"),
        (lambda key: key.update(method="\x1b]0;owned\x07"), "the name of a method and a seed"),
        (lambda key: key.update(method="[/x]"), "the name of a method and a seed"),
        (lambda key: key.update(seed=10**30), "the name of a method and a seed"),
        (lambda key: key["sites"]["layers.2"].update(num_zeros=2**60), "must be a whole number of at least 0"),
    ],
)
def test_a_key_that_names_what_it_must_not_is_refused(change, message, tmp_path):
    compressed("llama", mlpfusion.Magnitude()).save_pretrained(tmp_path)
    change_key(tmp_path, change)
    with pytest.raises(InputError, match=message) as caught:
        AutoModel.from_pretrained(tmp_path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_a_deep_or_large_key_is_refused():
    key = compressed("llama", mlpfusion.Magnitude()).config.mlp_fusion
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    for name in ("method", "sites", "architecture", "source_sha256", "seed"):
        with pytest.raises(InputError):
            key_from_dict(key | {name: deep})
    entry = key["sites"]["layers.1"]
    with pytest.raises(InputError, match="`mlp_fusion.sites` must name between 1 and 100,000 layers"):
        key_from_dict(key | {"sites": {f"layers.{number}": entry for number in range(100_001)}})


@pytest.mark.parametrize("name", ["bert", "t5", "bart", "llama"])
@pytest.mark.parametrize("depth", [20, 1000, 100_000])
def test_a_deep_key_of_a_config_in_memory_is_refused_before_a_model_is_built(depth, name):
    config = compressed(name, mlpfusion.Fusion(), layers="all").config
    key, deep = config.mlp_fusion, {}
    for _ in range(depth):
        deep = {"a": deep}
    for bad in (deep, {"version": deep}, key | {"sites": deep}, key | {"architecture": {"stacks": [deep]}}):
        config.mlp_fusion = bad
        with pytest.raises(InputError, match="`mlp_fusion|a stack must have keys"):
            AutoModel.from_config(config)
    config.mlp_fusion = key


def test_a_masked_model_without_its_key_is_a_plain_model(tmp_path):
    model = compressed("llama", mlpfusion.Magnitude())
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"mlp_fusion": None}))
    loaded = AutoModel.from_pretrained(tmp_path)
    assert {type(module) for module in loaded.modules()} == {type(module) for module in pico_model("llama").modules()}
    assert torch.equal(pico_outputs(loaded, "llama"), pico_outputs(model, "llama"))


def test_the_cure_of_filled_zeros_that_the_error_names_is_one(tmp_path):
    model = compressed("llama", mlpfusion.Magnitude())
    with torch.no_grad():
        model.layers[2].mlp.up_proj.weight.add_(0.1)
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="remove the entry `mlp_fusion` from the config.json"):
        AutoModel.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("mlp_fusion")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert torch.equal(pico_outputs(AutoModel.from_pretrained(tmp_path), "llama"), pico_outputs(model, "llama"))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_peft_wrapper_and_adapters_in_the_blocks_are_refused_with_the_cure():
    model = compressed("llama", mlpfusion.Fusion())
    before = copy.deepcopy(model.config.mlp_fusion)
    lora: Any = get_peft_model(model, LoraConfig(r=2, target_modules=["up_proj"]))
    for function in (mlpfusion.fold, lambda one: mlpfusion.compress(one, mlpfusion.Fusion(), width=4)):
        with pytest.raises(InputError, match="must be a model of transformers, got a PeftModel: merge its"):
            function(lora)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match="must be nn.Linear or Conv1D, got Linear of peft; merge adapters"):
        mlpfusion.fold(model)
    assert model.config.mlp_fusion == before
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    merged = lora.merge_and_unload()
    with pytest.warns(UserWarning, match="the layers have different widths"):
        mlpfusion.fold(merged)


def test_a_model_with_routed_experts_is_refused_before_anything_is_folded():
    model = routed()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match="its blocks are routed to experts"):
        mlpfusion.fold(model)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
