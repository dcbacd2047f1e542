"""What is read is what was checked: no weight is invented in silence, none is dropped, no config hangs or crashes."""

import hashlib
import json
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from command import call, refused
from pico import pico_model
from safetensors.torch import load_file, save_file
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
)

from mlpfusion.checkpoint.config import CONFIG_ERRORS
from mlpfusion.checkpoint.read import empty_model, load_model, read_config
from mlpfusion.checkpoint.weights import check_weights, weight_files
from mlpfusion.errors import DamageWarning, InputError

CUT = ("--width", 20, "--layers", "last:1")


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bert") / "model"
    pico_model("bert", _PreTraining).save_pretrained(folder)
    return folder


class _PreTraining:
    """An Auto class of one class."""

    from_config = staticmethod(BertForPreTraining._from_config)


@pytest.fixture
def checkpoint(bert, tmp_path) -> Path:
    """A copy to spoil: the layout of the first BERT, an encoder with a pooler and two heads."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in bert.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def change_tensors(folder: Path, change: Any) -> None:
    tensors = tensors_of(folder)
    save_file(change(tensors), folder / "model.safetensors", {"format": "pt"})


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def test_a_pooler_and_a_head_that_the_named_class_lacks_are_kept(checkpoint, tmp_path):
    change_config(checkpoint, architectures=["BertForMaskedLM"])
    assert call("compress", checkpoint, tmp_path / "out", *CUT).exit_code == 0
    source, out = tensors_of(checkpoint), tensors_of(tmp_path / "out")
    for name in ("bert.pooler.dense.weight", "cls.seq_relationship.weight", "cls.predictions.transform.dense.weight"):
        assert torch.equal(out[name], source[name])
    assert json.loads((tmp_path / "out/config.json").read_text())["architectures"] == ["BertForMaskedLM"]
    record = json.loads((tmp_path / "out/mlp_fusion_record.json").read_text())
    assert record["original"]["parameters"] == sum(t.numel() for t in source.values())
    whole = sum(t.numel() for t in out.values() if t.is_floating_point())
    assert record["compressed"]["parameters"] == whole
    assert "AutoModelForMaskedLM" in (tmp_path / "out/README.md").read_text()


def test_a_head_that_the_file_lacks_is_not_made_up(checkpoint, tmp_path):
    change_tensors(checkpoint, lambda tensors: {n: t for n, t in tensors.items() if not n.startswith("cls.")})
    change_config(checkpoint, architectures=["BertForSequenceClassification"])
    for name in ("a", "b"):
        torch.manual_seed(len(name))
        assert call("compress", checkpoint, tmp_path / name, *CUT).exit_code == 0
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    new = tensors_of(tmp_path / "a").keys() - tensors_of(checkpoint).keys()
    assert new == {"bert.encoder.layer.2.intermediate.intermediate_act_fn.output_scale"}
    assert isinstance(load_model(checkpoint, read_config(checkpoint)), BertModel)
    assert "from transformers import AutoModel\n" in (tmp_path / "a/README.md").read_text()


@pytest.mark.parametrize("kind", [None, BertForSequenceClassification])
@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("bert.embeddings.word_embeddings.weight", "lacks 1: bert.embeddings.word_embeddings.weight"),
        ("bert.embeddings.LayerNorm", "lacks 2: bert.embeddings.LayerNorm.bias"),
        ("bert.encoder.layer", "bert.encoder.layer.0.attention.output.LayerNorm.bias"),
    ],
)
def test_a_base_model_that_lacks_a_weight_is_refused(lost, named, kind, checkpoint):
    change_tensors(checkpoint, lambda tensors: {n: t for n, t in tensors.items() if not n.startswith(lost)})
    change_config(checkpoint, tie_word_embeddings=False)
    with pytest.raises(InputError, match="must hold all weights of the base model") as error:
        load_model(checkpoint, read_config(checkpoint), kind=kind)
    assert named in str(error.value)


def test_a_pooler_may_be_missing_and_is_not_written(checkpoint, tmp_path):
    change_tensors(checkpoint, lambda tensors: {n: t for n, t in tensors.items() if "pooler" not in n})
    assert call("compress", checkpoint, tmp_path / "out", *CUT).exit_code == 0
    assert not [name for name in tensors_of(tmp_path / "out") if "pooler" in name]


def test_more_layers_than_the_config_says_are_refused(checkpoint, tmp_path):
    change_config(checkpoint, num_hidden_layers=2)
    line = refused("compress", checkpoint, tmp_path / "out", *CUT)
    assert "there is no place for 16: bert.encoder.layer.2.attention.output.LayerNorm.bias" in line


def test_the_file_that_is_checked_is_the_file_that_is_loaded(checkpoint):
    tensors = tensors_of(checkpoint)
    save_file({n: t + 1 for n, t in tensors.items()}, checkpoint / "other.safetensors", {"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "other.safetensors")}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    name = "bert.pooler.dense.bias"
    for files in (["model.safetensors"], ["other.safetensors"]):
        assert [file.name for file in weight_files(checkpoint)] == files
        loaded = BertForPreTraining.from_pretrained(checkpoint).state_dict()[name]
        assert torch.equal(loaded, load_file(checkpoint / files[0])[name])
        (checkpoint / "model.safetensors").unlink(missing_ok=True)


def test_a_bit_of_a_result_that_flipped_is_told_when_it_is_read(checkpoint, tmp_path):
    out = tmp_path / "out"
    assert call("compress", checkpoint, out, *CUT).exit_code == 0
    listed = json.loads((out / "mlp_fusion_files.json").read_text())
    assert listed.keys() == {file.name for file in out.iterdir()}
    digest = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    assert {name: value for name, value in listed.items() if value} == {"model.safetensors": digest}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (file,) = check_weights(out)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.warns(DamageWarning, match="model.safetensors is not the file that was written"):
        check_weights(out)


def test_shards_stay_shards_and_a_tensor_in_two_is_refused(checkpoint, tmp_path):
    pico_model("bert").save_pretrained(checkpoint, max_shard_size="40KB")
    (checkpoint / "model.safetensors").unlink()
    change_config(checkpoint, architectures=["BertModel"])
    assert call("compress", checkpoint, tmp_path / "out", *CUT).exit_code == 0
    names = [file.name for file in check_weights(checkpoint)]
    assert len(names) > 2
    assert [file.name for file in check_weights(tmp_path / "out")] == names
    _, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    first = load_file(checkpoint / names[0])
    save_file(first | load_file(checkpoint / names[1]), checkpoint / names[1], {"format": "pt"})
    assert f"is in {names[0]} and {names[1]}" in refused("compress", checkpoint, tmp_path / "again", *CUT)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (
            "pytorch_model.bin",
            "pickled weights are never read, got pytorch_model.bin: `AutoModel.from_pretrained(folder)",
        ),
        ("model.fp16.safetensors", "got model.fp16.safetensors: rename the variant that you want"),
        ("bert-tiny.safetensors", "got bert-tiny.safetensors: rename the variant that you want"),
        ("pytorch_model.bin.index.json", "pickled weights are never read, got pytorch_model.bin.index.json: `Auto"),
        ("bert.gguf", "model.safetensors.index.json; weights of another format are not read, got bert.gguf"),
        ("weights", "model.safetensors.index.json; got no file of weights"),
    ],
)
def test_weights_of_another_name_are_refused_with_the_cure(file, message, checkpoint, tmp_path):
    (checkpoint / "model.safetensors").rename(checkpoint / file)
    assert message in refused("compress", checkpoint, tmp_path / "out", *CUT)


@pytest.mark.parametrize("command", [("inspect",), ("compress", "out", *CUT)])
def test_an_adapter_is_refused_with_the_cure(command, checkpoint, tmp_path):
    (checkpoint / "adapter_config.json").write_text("{}")
    name, *rest = command
    for _ in range(2):  # beside a full model, then alone
        line = refused(name, checkpoint, *(tmp_path / "out" if one == "out" else one for one in rest))
        assert "it holds adapter_config.json: merge the adapter into its base first" in line
        (checkpoint / "config.json").unlink(missing_ok=True)


HOSTILE = [
    {"num_labels": 10**9},
    {"num_hidden_layers": 10**6},
    {"num_hidden_layers": 1e30},
    {"intermediate_size": "56"},
    {"intermediate_size": 0},
    {"intermediate_size": -5},
    {"intermediate_size": None},
    {"num_attention_heads": 5},
    {"hidden_act": "nosuch"},
    {"pad_token_id": 10**9},
    {"vocab_size": 0},
    {"layer_norm_eps": -1},
    {"dtype": "int8"},
    {"dtype": 5},
    {"attn_implementation": "kernels-community/flash-attn"},
    {"_attn_implementation": "nosuch"},
    {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    {"transformers_weights": "other.safetensors"},
    {"architectures": 5},
    {"architectures": ["BertTokenizer"]},
    {"id2label": {"0": {"a": 1}}, "num_labels": "x"},
]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("values", HOSTILE, ids=str)
def test_a_hostile_config_is_refused_or_harmless_before_weights_are_read(values, checkpoint):
    change_config(checkpoint, **values)
    try:
        model = empty_model(read_config(checkpoint))
    except InputError:
        return
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("values", HOSTILE, ids=str)
def test_a_hostile_config_ends_every_command_in_one_line(values, checkpoint, tmp_path):
    change_config(checkpoint, **values)
    for command in (("inspect", checkpoint), ("compress", checkpoint, tmp_path / "out", *CUT)):
        result = call(*command)
        assert result.exit_code in (0, 2), result.exception
        assert result.exit_code == 0 or result.stderr.count("\n") == 1


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_an_mlp_without_neurons_is_refused(checkpoint, tmp_path):
    change_config(checkpoint, intermediate_size=0)
    for command in (("inspect", checkpoint), ("compress", checkpoint, tmp_path / "out", *CUT)):
        message = "the MLP at encoder.layer.0 must have neurons, its output.dense has shape (32, 0)"
        assert message in refused(*command)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"attn_implementation": "kernels-community/flash-attn"}, "name an implementation of transformers"),
        ({"experts_implementation": "somebody/code"}, "name an implementation of transformers"),
        ({"transformers_weights": "other.safetensors"}, "must not name `transformers_weights`"),
        ({"num_hidden_layers": 5000}, "`num_hidden_layers` of .* must be at most 4,096, got 5000"),
        ({"num_labels": 10**9}, "`num_labels` of .* must be at most 1,000,000, got 1000000000"),
    ],
    ids=str,
)
def test_code_of_the_hub_other_files_and_endless_loops_are_refused_by_name(values, named, checkpoint):
    change_config(checkpoint, **values)
    with pytest.raises(InputError, match=named):
        read_config(checkpoint)


@pytest.mark.parametrize("name", sorted({"gemma4_text", "granite_swa", "doge"} & {*CONFIG_MAPPING}))  # some are new
def test_large_numbers_that_no_loop_runs_over_are_taken(name, tmp_path):
    AutoConfig.for_model(name).save_pretrained(tmp_path)
    assert read_config(tmp_path).model_type == name


@pytest.mark.exhaustive
def test_the_default_config_of_every_model_type_is_taken(tmp_path):
    for name in CONFIG_MAPPING:
        try:
            AutoConfig.for_model(name).save_pretrained(tmp_path)
        except CONFIG_ERRORS:
            continue  # has no default, or needs a package
        with suppress(InputError):
            read_config(tmp_path)
            continue
        with pytest.raises(InputError, match="must be a config that transformers knows"):
            read_config(tmp_path)


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a":' * 10**5, "{}", "[]", '{"model_type": 5}', '{"model_type": "x"}'])
def test_a_config_that_is_none_is_refused(text, checkpoint):
    (checkpoint / "config.json").write_text(text)
    with pytest.raises(InputError):
        read_config(checkpoint)


@pytest.mark.parametrize("depth", [32, 500, 100_000])
@pytest.mark.parametrize("entry", ["mlp_fusion", "task_specific_params", "id2label"])
def test_a_config_without_a_bottom_is_refused(entry, depth, checkpoint):
    text = (checkpoint / "config.json").read_text().rstrip().removesuffix("}")
    for opened, closed in (("[", "]"), ('{"a":', "}")):
        deep = opened * depth + "1" + closed * depth
        (checkpoint / "config.json").write_text(f'{text}, "{entry}": {deep}}}')
        with pytest.raises(InputError, match=r"config.json must be at most 32 levels deep, got more"):
            read_config(checkpoint)


def test_a_config_out_of_proportion_to_its_weights_is_refused_before_they_are_read(checkpoint, tmp_path, monkeypatch):
    change_config(checkpoint, intermediate_size=10**12)
    monkeypatch.setattr("mlpfusion.checkpoint.open.load_model", lambda *_: pytest.fail("weights were read"))
    line = refused("compress", checkpoint, tmp_path / "out", *CUT)
    assert "bert.encoder.layer.0.intermediate.dense.bias has shape (56,), the config asks for (1000000000000,)" in line


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("", "which is neither"),
        ("https://huggingface.co/google/bert/tree/main", "give the id, google/bert"),
        ("FILE", "give the folder of the file"),
        ("model/model.safetensors", "give the folder of the file"),  # of the form of a Hub id
    ],
)
def test_a_name_that_is_no_model_is_refused_with_the_cure(name, cure, checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint.parent)
    line = refused("inspect", checkpoint / "config.json" if name == "FILE" else name)
    assert "must be a folder, a GGUF file or a Hub id" in line
    assert cure in line


def test_a_pooler_that_a_head_stands_on_and_nobody_trained_is_told(checkpoint):
    change_tensors(checkpoint, lambda tensors: {n: t for n, t in tensors.items() if "pooler" not in n})
    with pytest.warns(UserWarning, match="has no pooler, it was drawn at random: 2: bert.pooler.dense.bias"):
        load_model(checkpoint, read_config(checkpoint), kind=BertForSequenceClassification)
