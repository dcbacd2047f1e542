"""The key of the width: proven by building on the meta device, and believed nowhere."""

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from detected import DETECTED, WITHOUT_KEY, detected_config, detected_model, detected_outputs, loaded
from edit_key import change_key
from pico import PICO, pico_model, pico_outputs
from transformers import AutoModel

import mlpfusion
from mlpfusion.checkpoint.read import empty_model
from mlpfusion.errors import InputError
from mlpfusion.sites.detect import detect_architecture
from mlpfusion.sites.sites import find_sites
from mlpfusion.sites.table import Architecture, Stack, architecture_from_dict, architecture_to_dict
from mlpfusion.sites.width_keys import with_proven_keys

USUAL = ("albert", "dinov2", "t5gemma", "funnel", "gemma3", "gptj", "mbart", "phi3", "whisper")


def row_of(name: str) -> Architecture:
    row = detect_architecture(empty_model(detected_config(name)))
    assert row is not None
    return row


def keys(row: Architecture) -> dict[str, str | None]:
    return {stack.layer: stack.width_key for stack in row.stacks}


def test_every_stack_gets_the_key_that_moves_it_and_no_other():
    for name in ("mbart", "pegasus", "m2m_100", "marian", "whisper"):
        sides = {f"{side}.layers.{{}}": f"{side}_ffn_dim" for side in ("encoder", "decoder")}
        assert keys(row_of(name)) == sides, name
    for name in ("gptj", "codegen", "gpt_bigcode"):  # the key is empty in these configs
        assert keys(row_of(name)) == {"h.{}": "n_inner"}, name
    for name in WITHOUT_KEY:
        assert set(keys(row_of(name)).values()) == {None}, name
    both = {"encoder.layers.{}": "encoder.intermediate_size", "decoder.layers.{}": "intermediate_size"}
    assert keys(row_of("t5gemma")) == both, "the encoder's key is in a config inside"
    blocks = ("encoder.blocks.0.{}", "encoder.blocks.1.{}", "decoder.layers.{}")
    assert keys(row_of("funnel")) == dict.fromkeys(blocks, "d_inner")


def test_a_key_that_moves_something_else_as_well_is_not_proven():
    config = detected_config("mpnet")
    config.intermediate_size = config.vocab_size  # the same number: only the build can tell the two apart
    row = detect_architecture(empty_model(config))
    assert row is not None
    assert row.stacks[0].width_key == "intermediate_size"
    model = pico_model("opt")
    sites = find_sites(model, row_with(model, "ffn_dim"))
    assert with_proven_keys(model, row_with(model, None), sites) == row_with(model, None)


def row_with(model: Any, width_key: str | None) -> Architecture:
    return Architecture((Stack("decoder.layers.{}", "fc1", "fc2", "activation_fn", width_key=width_key),))


@pytest.mark.parametrize(
    "name", [name if name in USUAL else pytest.param(name, marks=pytest.mark.exhaustive) for name in DETECTED]
)
def test_a_folded_model_of_a_proposed_row_loads_without_the_key_or_keeps_it(name, tmp_path):
    model, row = detected_model(name), row_of(name)
    mlpfusion.compress(model, mlpfusion.Fusion(), width=14, architecture=row)
    expected = detected_outputs(model, name)
    if name in WITHOUT_KEY:
        with pytest.warns(UserWarning, match="no entry of the config is known to hold the width of .* still needs"):
            mlpfusion.fold(model)
    else:
        mlpfusion.fold(model)
    assert hasattr(model.config, "mlp_fusion") == (name in WITHOUT_KEY)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(detected_outputs(loaded(tmp_path, name), name), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("key", ["encoder_ffn_dim", "vocab_size", "num_hidden_layers", None])
def test_a_wrong_width_key_never_costs_the_model(key, tmp_path):
    model = detected_model("mbart")  # encoder and decoder have one width, so the wrong key looks right
    if key == "vocab_size":
        model.resize_token_embeddings(56, mean_resizing=False)
    row = Architecture(tuple(replace(stack, width_key=key) for stack in row_of("mbart").stacks))
    if key == "num_hidden_layers":
        with pytest.raises(InputError, match="`width_key` of .* must be null or name the entry .*'num_hidden_layers'"):
            mlpfusion.compress(model, mlpfusion.Fusion(), width=14, architecture=row)
        assert not hasattr(model.config, "mlp_fusion")
        return
    mlpfusion.compress(model, mlpfusion.Fusion(), width=14, architecture=row)
    expected = detected_outputs(model, "mbart")
    with pytest.warns(UserWarning, match="so the folded model still needs `import mlpfusion`"):
        mlpfusion.fold(model)
    assert model.config.vocab_size == (56 if key == "vocab_size" else 67)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(detected_outputs(loaded(tmp_path, "mbart"), "mbart"), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "name",
    ["vocab_size", "num_hidden_layers", "typo", "to_dict", "__class__", "__dict__", "__class__.typo", "a.vocab_size"],
)
def test_an_edited_key_may_name_no_other_entry_of_the_config(name, tmp_path):
    model = detected_model("mbart")
    mlpfusion.compress(model, mlpfusion.Fusion(), width=14, architecture=row_of("mbart"))
    model.save_pretrained(tmp_path)
    change_key(tmp_path, lambda key: [stack.update(width_key=name) for stack in key["architecture"]["stacks"]])
    with pytest.raises(InputError, match="must name in `width_key` the entry of the config that holds the original"):
        loaded(tmp_path, "mbart")


@pytest.mark.parametrize("name", PICO)
def test_the_keys_of_the_table_are_proven_too(name):
    model = pico_model(name)
    row = detect_architecture(model)
    sites = find_sites(model, row) if row else []
    assert row == with_proven_keys(model, row, sites) if row else False
    assert all(stack.width_key for stack in (row.stacks if row else ()))


def test_a_row_whose_width_key_is_null_survives_its_yaml_form():
    row = row_of("dinov2")
    assert architecture_from_dict(architecture_to_dict(row)) == row


@pytest.mark.parametrize("method", [mlpfusion.SVD(), mlpfusion.Magnitude()], ids=lambda method: type(method).__name__)
def test_factors_and_zeros_fold_to_a_stock_model_without_a_width_key(method, tmp_path):
    model = detected_model("xlm")
    mlpfusion.compress(model, method, keep_ratio=0.5, layers="last:1", architecture=row_of("xlm"))
    expected = detected_outputs(model, "xlm")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the factors were multiplied")
        mlpfusion.fold(model)
    model.save_pretrained(tmp_path)
    assert "mlp_fusion" not in (tmp_path / "config.json").read_text()
    torch.testing.assert_close(detected_outputs(AutoModel.from_pretrained(tmp_path), "xlm"), expected)


def test_a_model_that_its_class_does_not_build_keeps_its_key(tmp_path):
    model = pico_model("llama")
    mlpfusion.compress(model, mlpfusion.Fusion(), width=14)
    model.register_buffer("extra", torch.zeros(3))
    with pytest.warns(
        UserWarning, match=r"LlamaModel does not build .* \(extra has \(3,\), it makes no place\), so the"
    ):
        mlpfusion.fold(model)
    assert model.config.mlp_fusion["sites"]["layers.0"]["scale"] == "none"
    assert model.config.intermediate_size == 56
    assert pico_outputs(model, "llama").isfinite().all()
