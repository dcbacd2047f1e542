"""`mlpfusion slice-heads`: what is written, what the record says, what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import saved_adapter
from command import call, refused
from detected import detected_model
from peft import IA3Config, PeftModel, get_peft_model
from pico import HIDDEN, pico_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_head_choice import IDS, trained_adapter
from tiny_task import save_checkpoint, write_files
from transformers import AutoModel, AutoModelForSequenceClassification

from mlpfusion.dsee.structured.record import HEADS_RECORD_FILE
from mlpfusion.heads.key import heads_key
from mlpfusion.measure.flops import forward_flops
from mlpfusion.tune.record import TUNE_RECORD_FILE

ADAPTER = "adapter_model.safetensors"


def sliced(model: Path, out: Path, *flags: object) -> dict[str, Any]:
    """The record that the command leaves."""
    result = call("slice-heads", model, out, *flags, "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record == json.loads((out / HEADS_RECORD_FILE).read_text())
    return record


@pytest.fixture
def model(tmp_path) -> Path:
    return save_checkpoint(tmp_path / "model", "bert", AutoModelForSequenceClassification)


@pytest.fixture
def data(tmp_path) -> list[object]:
    """The flags of `mlpfusion tune` for a small task."""
    train, validation = write_files(tmp_path)
    columns = ["--text-column", "sentence", "--label-column", "label", "--max-length", 16]
    speed = ["--batch-size", 16, "--epochs", 1, "--device", "cpu", "--learning-rate", "2e-3"]
    return ["--train", train, "--validation", validation, *columns, *speed]


@pytest.fixture
def tuned(model, data, tmp_path) -> Path:
    """The model after the first stage, the adapter beside it."""
    return first_stage(model, data, tmp_path / "tuned", "dsee")


def first_stage(model: Path, data: list[object], out: Path, kind: str) -> Path:
    """The folder `out` with the model after the first stage, its adapter beside it."""
    told = {"dsee": ("--dsee", "rank=2,sparse=8,omega=magnitude"), "lora": ("--lora", "r=2,alpha=8")}
    result = call("tune", model, out, *data, *told[kind])
    assert result.exit_code == 0, result.output
    return out


@pytest.mark.parametrize("kind", ["dsee", "lora"])
def test_the_heads_of_the_smallest_update_go_and_the_adapter_fits(kind, model, data, tmp_path):
    tuned, out = first_stage(model, data, tmp_path / "tuned", kind), tmp_path / "out"
    record = sliced(model, out, "--drop-heads", 1, "--adapter", tuned / "adapter")
    assert record["scored_by"] == "update"
    assert record["recipe"] == {"model": "model", "drop_heads": 1, "scope": "layer"}
    for layer in record["layers"]:
        lowest = min(range(4), key=lambda head: layer["scores"][head])
        assert layer["kept"] == [head for head in range(4) if head != lowest]
    small = AutoModelForSequenceClassification.from_pretrained(out)
    key = heads_key(small.config)
    assert key is not None
    assert key.kept == {layer["path"]: layer["kept"] for layer in record["layers"]}
    assert record["source_sha256"] == key.source_sha256
    assert record["sliced"]["parameters"] == sum(parameter.numel() for parameter in small.parameters())
    assert record["original"]["parameters"] - record["sliced"]["parameters"] == 3 * (4 * HIDDEN * 8 + 3 * 8)
    costs, tensors = record["costs"], load_file(out / "adapter" / ADAPTER)
    assert costs["tokens"] == 64  # positions of the model
    assert costs["after"] == forward_flops(small.bert, 64).dense
    assert costs["before"] == forward_flops(AutoModel.from_pretrained(model), 64).dense
    numbers = sum(tensor.numel() for name, tensor in tensors.items() if "dsee_update" in name or ".lora_" in name)
    numbers -= sum(tensor.numel() for name, tensor in tensors.items() if name.endswith("omega"))
    assert costs["adapter"] == 2 * 64 * numbers
    plain = forward_flops(small, 64).dense
    adapted = PeftModel.from_pretrained(small, str(out / "adapter"))
    assert forward_flops(adapted, 64).dense - plain == costs["adapter"]
    trained = load_file(tuned / "adapter" / ADAPTER)
    assert all(torch.equal(tensors[name], trained[name]) for name in trained if "classifier" in name)
    assert json.loads((out / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(out)


def test_what_was_not_cut_stays_byte_for_byte(model, tmp_path):
    sliced(model, tmp_path / "out", "--drop-heads", 2)
    cut = ("query", "key", "value", "attention.output.dense")
    with (
        safe_open(model / "model.safetensors", "pt") as before,
        safe_open(tmp_path / "out" / "model.safetensors", "pt") as after,
    ):
        assert set(before.keys()) == set(after.keys())
        for name in before.keys():  # noqa: SIM118, it is no dictionary
            is_cut = name.rpartition(".")[0].endswith(cut) and not name.endswith("attention.output.dense.bias")
            assert torch.equal(before.get_tensor(name), after.get_tensor(name)) != is_cut
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    assert not (tmp_path / "out" / "adapter").exists()


@pytest.mark.parametrize("name", ["bert", "gpt2", "mpnet"])
def test_without_an_adapter_the_weights_score(name, tmp_path):
    model = detected_model(name) if name == "mpnet" else pico_model(name)
    model.save_pretrained(tmp_path / "model")
    record = sliced(tmp_path / "model", tmp_path / "out", "--drop-heads", 1)
    assert record["scored_by"] == "weights"
    first = record["layers"][0]
    if name == "gpt2":
        weight = model.h[0].attn.c_attn.weight.T
        query, value = weight[:HIDDEN], weight[2 * HIDDEN :]
    else:
        attention, names = model.get_submodule(first["path"]), ("q", "v") if name == "mpnet" else ("query", "value")
        query, value = (attention.get_submodule(part).weight for part in names)
    both = (query.abs().sum(1) + value.abs().sum(1)).detach()
    expected = both.view(4, 8).sum(1).tolist()
    assert first["scores"] == pytest.approx(expected, rel=1e-5)
    assert "with fewer heads" in (tmp_path / "out" / "README.md").read_text()
    assert "smallest weights of query and value" in (tmp_path / "out" / "README.md").read_text()


def test_a_global_scope_takes_as_many_in_all(model, tuned, tmp_path):
    record = sliced(model, tmp_path / "out", "--drop-heads", 2, "--scope", "global", "--adapter", tuned / "adapter")
    assert sum(len(layer["kept"]) for layer in record["layers"]) == 3 * 2
    assert all(layer["kept"] for layer in record["layers"])
    small = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    adapted = PeftModel.from_pretrained(small, str(tmp_path / "out" / "adapter")).eval()
    assert adapted(input_ids=IDS).logits.isfinite().all()


def test_mlps_are_narrowed_after_it(model, tmp_path):
    sliced(model, tmp_path / "out", "--drop-heads", 1)
    done = call("compress", tmp_path / "out", tmp_path / "both", "--method", "neuron-pruning", "--keep-ratio", 0.75)
    assert done.exit_code == 0, done.output
    small, both = (AutoModel.from_pretrained(tmp_path / name) for name in ("out", "both"))
    assert heads_key(both.config) == heads_key(small.config)
    assert forward_flops(both, 16).dense < forward_flops(small, 16).dense
    assert (tmp_path / "both" / HEADS_RECORD_FILE).is_file()


@pytest.mark.slow
def test_a_sliced_model_is_tuned_anew(model, data, tmp_path):
    sliced(model, tmp_path / "out", "--drop-heads", 1)
    result = call("tune", tmp_path / "out", tmp_path / "again", *data, "--dsee", "rank=2,sparse=8,omega=magnitude")
    assert result.exit_code == 0, result.output
    small, tuned = (AutoModelForSequenceClassification.from_pretrained(tmp_path / name) for name in ("out", "again"))
    assert heads_key(tuned.config) == heads_key(small.config)
    assert tuned.bert.encoder.layer[0].attention.self.query.weight.shape == (24, 32)


@pytest.mark.parametrize("kind", ["dsee", "lora"])
def test_the_sliced_adapter_trains_again_where_it_lies(kind, model, data, tmp_path):
    tuned, out, again = first_stage(model, data, tmp_path / "tuned", kind), tmp_path / "out", tmp_path / "again"
    sliced(model, out, "--drop-heads", 1, "--adapter", tuned / "adapter")
    assert "whose adapter is not merged" in refused("compress", out, tmp_path / "small", "--keep-ratio", 0.5)
    result = call("tune", out, again, *data, "--adapter", out / "adapter")
    assert result.exit_code == 0, result.output
    (run,) = json.loads((again / TUNE_RECORD_FILE).read_text())["runs"]
    assert set(run["before"]) == {"validation"}
    kept, trained = load_file(out / "model.safetensors"), load_file(again / "model.safetensors")
    maps = [name for name in kept if "attention.self" in name]
    assert all(torch.equal(kept[name], trained[name]) for name in maps)
    before, after = (load_file(folder / "adapter" / ADAPTER) for folder in (out, again))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before if "query" in name)
    other = refused("tune", model, tmp_path / "no", *data, "--adapter", out / "adapter")
    assert "`--adapter` must be one for this model" in other


def test_people_read_what_was_done(model, tuned, tmp_path):
    result = call("slice-heads", model, tmp_path / "out", "--drop-heads", 1, "--adapter", tuned / "adapter")
    assert "encoder.layer.2.attention.self" in result.output
    assert "% saved;" in result.output
    assert "out/adapter is the adapter without them" in result.output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--drop-heads", 0), "`--drop-heads` must be between 1 and 3, an attention has 4 heads and keeps one, got 0"),
        (("--drop-heads", 4), "`--drop-heads` must be between 1 and 3, an attention has 4 heads and keeps one, got 4"),
        (("--drop-heads", 1, "--scope", "all"), "`--scope` must be layer or global, got 'all'"),
    ],
)
def test_bad_numbers_are_refused_in_one_line_and_leave_nothing(flags, message, model, tmp_path):
    assert message in refused("slice-heads", model, tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_models_that_cannot_lose_heads_are_refused(model, tmp_path):
    pico_model("t5").save_pretrained(tmp_path / "t5")
    said = refused("slice-heads", tmp_path / "t5", tmp_path / "out", "--drop-heads", 1)
    assert "got t5: the first layer makes a bias for the heads of all layers" in said
    sliced(model, tmp_path / "once", "--drop-heads", 1)
    said = refused("slice-heads", tmp_path / "once", tmp_path / "out", "--drop-heads", 1)
    assert "MODEL must have all its heads, got one with the config key `mlp_fusion_heads`" in said
    assert not (tmp_path / "out").exists()


def said_of(model: Path, adapter: Path, tmp_path: Path) -> str:
    said = refused("slice-heads", model, tmp_path / "out", "--drop-heads", 1, "--adapter", adapter)
    assert not (tmp_path / "out").exists()
    return said


def test_an_adapter_that_is_merged_or_of_another_model_is_refused(model, tuned, tmp_path):
    said = said_of(tuned, tuned / "adapter", tmp_path)
    assert f"MODEL must be the one that the adapter was trained on, got {tuned}, into which it is merged" in said
    assert f"got {tuned}; give {tuned / 'adapter'}" in said_of(model, tuned, tmp_path)
    shutil.copytree(tuned, tmp_path / "moved")
    said = said_of(tuned, tmp_path / "moved" / "adapter", tmp_path)
    assert "`--adapter` must lie on the weights that it was trained on, got a model with other ones" in said


@pytest.fixture
def adapter(tmp_path) -> Path:
    """An adapter for the pico BERT without a record beside it."""
    trained_adapter("bert", tmp_path / "own" / "adapter")
    return tmp_path / "own" / "adapter"


def test_an_adapter_beside_its_own_weights_is_not_taken_for_a_merged_one(model, tmp_path):
    """As `sparsify` and `tune --adapter` leave both."""
    own = saved_adapter(model, tmp_path / "own")
    result = call("sparsify", model, tmp_path / "sparse", "--adapter", own)
    assert result.exit_code == 0, result.output
    record = sliced(
        tmp_path / "sparse", tmp_path / "out", "--drop-heads", 1, "--adapter", tmp_path / "sparse" / "adapter"
    )
    assert record["scored_by"] == "update"
    assert (tmp_path / "out" / "adapter").is_dir()


@pytest.mark.parametrize("kind", ["dsee", "lora"])
def test_an_adapter_without_a_record_beside_it_is_taken(kind, model, tmp_path):
    adapter = tmp_path / "own" / "adapter"
    trained_adapter("bert", adapter, kind)
    assert sliced(model, tmp_path / "out", "--drop-heads", 1, "--adapter", adapter)["scored_by"] == "update"


def change(adapter: Path, name: str, value: Any) -> None:
    tensors = load_file(adapter / ADAPTER)
    place = "base_model.model.encoder.layer.0.attention.self.query.dsee_update."
    if value is None:
        del tensors[place + name]
    else:
        tensors[place + name] = value(tensors[place + name])
    save_file(tensors, adapter / ADAPTER, {"format": "pt"})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("S", None, "one for this model, base_model.model.encoder.layer.0.attention.self.query.dsee_update.S of shape"),
        ("B", lambda b: b[:, :-1].clone(), "query.dsee_update.B of shape [1, 32, 3], got [1, 31, 3]"),
        ("omega", lambda omega: omega + 32, "must have positions inside the 32 x 32 entries of encoder.layer.0"),
        ("A", lambda a: a * torch.nan, "must be finite, got 96 NaN or Inf in base_model.model.encoder.layer.0"),
    ],
)
def test_an_adapter_of_another_shape_or_without_numbers_is_refused(name, value, message, model, adapter, tmp_path):
    change(adapter, name, value)
    assert message in said_of(model, adapter, tmp_path)


def test_what_is_no_adapter_for_the_model_is_refused(model, adapter, tmp_path):
    assert "`--adapter` must be a folder with adapter_config.json and" in said_of(model, tmp_path / "none", tmp_path)
    other: Any = get_peft_model(pico_model("bert"), IA3Config())
    other.save_pretrained(tmp_path / "other")
    assert "`--adapter` must be one of DSEE or LORA, got 'IA3'" in said_of(model, tmp_path / "other", tmp_path)
    trained_adapter("gpt2", tmp_path / "gpt2")
    assert "`--adapter` must be one for this model" in said_of(model, tmp_path / "gpt2", tmp_path)
    trained_adapter("bert", tmp_path / "outer", target_modules=["intermediate.dense"])
    said = said_of(model, tmp_path / "outer", tmp_path)
    assert "must have an update of query or value at encoder.layer.0.attention.self to score its heads" in said
    trained_adapter("bert", tmp_path / "biased", "lora", bias="lora_only")
    assert "`--adapter` must be a LoRA without biases for heads to go" in said_of(model, tmp_path / "biased", tmp_path)
    (adapter / ADAPTER).write_bytes(b"nothing")
    assert f"{ADAPTER} must be a whole safetensors file" in said_of(model, adapter, tmp_path)
