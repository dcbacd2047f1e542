"""Heads taken out of a model: the same as zeros, saved and loaded, refused where they cannot go."""

import copy
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detected import detected_model, detected_outputs
from pico import others_slow, pico_model, pico_outputs
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
)
from transformers.pytorch_utils import Conv1D

from mlpfusion.errors import InputError
from mlpfusion.heads.key import KEY, heads_key, key_to_dict
from mlpfusion.heads.sites import find_heads
from mlpfusion.heads.slicing import rebuild_heads, slice_heads
from mlpfusion.heads.table import ATTENTIONS
from mlpfusion.sites.sites import base_model

QUICK = ("bert", "gpt2", "mpnet", "roberta", "llama")
each_model = pytest.mark.parametrize("name", others_slow(ATTENTIONS, QUICK))


def model_of(name: str, dtype: torch.dtype = torch.float64, auto_class: Any = AutoModel) -> Any:
    if name in ("mpnet", "camembert"):
        return detected_model(name).to(dtype)
    return pico_model(name, auto_class, dtype=dtype)


def outputs_of(model: Any, name: str) -> Tensor:
    return detected_outputs(model, name) if name in ("mpnet", "camembert") else pico_outputs(model, name)


def some_heads(model: Any) -> dict[str, list[int]]:
    """Other heads in every layer, also another number of them: 1, 2 or 3 of 4."""
    found = {}
    for place, site in enumerate(find_heads(model)):
        count = 1 + place % (site.num_heads - 1)
        found[site.path] = sorted((place + step) % site.num_heads for step in range(count))
    return found


@torch.no_grad()
def masked(model: Any, kept: dict[str, list[int]]) -> Any:
    """The model with zeros in the columns of the output maps that read the other heads."""
    model = copy.deepcopy(model)
    for site in find_heads(model):
        output: Any = base_model(model).get_submodule(site.output)
        weight = output.weight.T if isinstance(output, Conv1D) else output.weight
        gone = [head for head in range(site.num_heads) if head not in kept[site.path]]
        weight[:, site.query_rows(gone)] = 0
    return model


def assert_same(loaded: Any, model: Any) -> None:
    """All tensors are the same, bit by bit."""
    found, expected = loaded.state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@each_model
def test_a_sliced_model_is_the_one_with_zeros_for_these_heads(name):
    model = model_of(name)
    kept = some_heads(model)
    expected = outputs_of(masked(model, kept), name)
    whole = outputs_of(model, name)
    before = sum(parameter.numel() for parameter in model.parameters())
    assert slice_heads(model, kept) is model
    torch.testing.assert_close(outputs_of(model, name), expected, rtol=0, atol=1e-12)
    assert (whole - expected).abs().max() > 1e-4
    assert sum(parameter.numel() for parameter in model.parameters()) < before
    assert {site.path: site.num_heads for site in find_heads(model)} == {path: len(own) for path, own in kept.items()}


@each_model
def test_a_saved_model_loads_bit_by_bit_in_every_way(name, tmp_path):
    model = model_of(name)
    slice_heads(model, some_heads(model)).save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert_same(loaded, model)
    # Gemma has numbers that are no weights, and keeps them in fp32 when it is loaded
    torch.testing.assert_close(outputs_of(loaded, name), outputs_of(model, name), rtol=0, atol=1e-5)
    assert heads_key(loaded.config) == heads_key(model.config)
    loaded.save_pretrained(tmp_path / "again")
    assert_same(AutoModel.from_pretrained(tmp_path / "again", dtype=torch.float64), model)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    built = AutoModel.from_config(AutoConfig.from_pretrained(tmp_path))
    assert {key: value.shape for key, value in built.state_dict().items()} == shapes
    with torch.device("meta"):
        empty = AutoModel.from_config(AutoConfig.from_pretrained(tmp_path))
    assert {key: value.shape for key, value in empty.state_dict().items()} == shapes


@pytest.mark.parametrize(
    ("name", "auto_class"),
    [("bert", AutoModelForSequenceClassification), ("gpt2", AutoModelForCausalLM), ("opt", AutoModelForCausalLM)],
)
def test_one_checkpoint_serves_base_and_head(name, auto_class, tmp_path):
    model = model_of(name, torch.float64, auto_class)
    slice_heads(model, some_heads(model)).save_pretrained(tmp_path)
    loaded = auto_class.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert_same(loaded, model)
    torch.testing.assert_close(pico_outputs(loaded, name), pico_outputs(model, name), rtol=0, atol=1e-12)
    base = AutoModel.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert_same(base, base_model(model))
    torch.testing.assert_close(pico_outputs(base, name), pico_outputs(base_model(model), name), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_sliced_decoder_writes_with_its_cache_what_it_writes_without(name):
    model = model_of(name, torch.float64, AutoModelForCausalLM)
    slice_heads(model, some_heads(model))
    ids = torch.tensor([[5, 9, 20]])
    flags = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(model.generate(ids, **flags, use_cache=True), model.generate(ids, **flags, use_cache=False))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_both_attentions_take_the_heads_that_are_left(name, attention):
    model = model_of(name)
    slice_heads(model, some_heads(model))
    expected = pico_outputs(model, name)
    model.set_attn_implementation(attention)
    torch.testing.assert_close(pico_outputs(model, name), expected, rtol=0, atol=1e-12)


def test_gradients_reach_what_is_left():
    model = model_of("mpnet")
    slice_heads(model, some_heads(model)).train()
    model(input_ids=torch.tensor([[1, 2, 3]])).last_hidden_state.square().sum().backward()
    site = find_heads(model)[0]
    assert all(model.get_submodule(path).weight.grad.abs().sum() > 0 for path in site.maps)


ONE = "encoder.layer.0.attention.self"


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({ONE: []}, f"`kept` must hold rising numbers from 0 to 3 for {ONE}, got []"),
        ({ONE: [0, 4]}, f"`kept` must hold rising numbers from 0 to 3 for {ONE}, got [0, 4]"),
        ({ONE: [2, 1]}, f"`kept` must hold rising numbers from 0 to 3 for {ONE}, got [2, 1]"),
        ({ONE: [1, 1]}, f"`kept` must hold rising numbers from 0 to 3 for {ONE}, got [1, 1]"),
        (
            {ONE: [0], "encoder.layer.9.attention.self": [0]},
            "`kept` must name attentions of the model, encoder.layer.0",
        ),
    ],
)
def test_heads_that_are_not_there_are_refused_before_anything_changes(kept, message):
    model = model_of("bert")
    before = pico_outputs(model, "bert")
    with pytest.raises(InputError) as error:
        slice_heads(model, kept)
    assert message in str(error.value)
    assert torch.equal(pico_outputs(model, "bert"), before)
    assert heads_key(model.config) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("deberta-v2", "got deberta-v2: positions have maps of their own in every head"),
        ("gpt_neox", "got gpt_neox: the rows of query, key and value lie in turns, head by head"),
        ("olmo2", "got olmo2: a norm goes over all heads at once"),
        ("t5", "got t5: the first layer makes a bias for the heads of all layers"),
    ],
)
def test_an_architecture_whose_heads_cannot_go_is_named_with_the_reason(name, reason):
    with pytest.raises(InputError, match=reason):
        find_heads(pico_model(name))


def test_what_is_no_whole_model_in_memory_is_refused():
    model = model_of("bert")
    for wrong, message in (
        (model.encoder, "`model` must be a model of transformers, got a BertEncoder"),
        (copy.deepcopy(model).to("meta"), "`model` must hold its weights in memory"),
    ):
        with pytest.raises(InputError, match=message):
            slice_heads(wrong, {ONE: [0]})
    with pytest.raises(InputError, match="`model` must have an attention to lose heads, got BertModel"):
        find_heads(BertModel(BertConfig(num_hidden_layers=0)))


def test_heads_are_not_spread_over_processes():
    model, sliced = model_of("bert"), model_of("bert")
    key = heads_key(slice_heads(sliced, {ONE: [0]}).config)
    assert key is not None
    model.config.distributed_config = SimpleNamespace(tp_size=2)
    with pytest.raises(InputError, match="`tp_plan` must be left out for a model that lost heads"):
        rebuild_heads(model, key)
    model.config.distributed_config = SimpleNamespace(tp_size=1)
    rebuild_heads(model, key)
    assert [site.num_heads for site in find_heads(model)] == [1, 4, 4]


def test_heads_go_once():
    model = model_of("bert")
    slice_heads(model, some_heads(model))
    with pytest.raises(InputError, match="`model` must have all its heads, got one with the config key"):
        slice_heads(model, {ONE: [0]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda key: key.update(version=2), "`mlp_fusion_heads.version` must be 1, got 2; upgrade mlpfusion"),
        (lambda key: key.update(more=1), "must have exactly the keys version, source_sha256, kept, checksum"),
        (lambda key: key.update(source_sha256="0"), "`mlp_fusion_heads.source_sha256` must be 64 hexadecimal digits"),
        (lambda key: key.update(kept={}), "`mlp_fusion_heads.kept` must name between 1 and 100,000 attentions, got {}"),
        (
            lambda key: key["kept"].update(layer=[0]),
            "must name attentions encoder.layer.{}.attention.self, got ",
        ),
        (lambda key: key["kept"].update({ONE: [1, 0]}), f"must hold rising numbers of heads for {ONE}, got [1, 0]"),
        (lambda key: key["kept"].update({ONE: [0, 1.0]}), f"must hold rising numbers of heads for {ONE}, got [0, 1.0]"),
        (lambda key: key["kept"].update({ONE: [0, 3]}), "must be as it was written, its checksum says"),
    ],
)
def test_a_key_that_was_edited_is_refused(change, message, tmp_path):
    model = model_of("bert", torch.float32)
    slice_heads(model, some_heads(model)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    change(config[KEY])
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as error:
        AutoModel.from_pretrained(tmp_path)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_hidden_layers": 1}, "`mlp_fusion_heads` must name attentions of the model, got encoder.layer.1"),
        (
            {"num_attention_heads": 2},
            "`mlp_fusion_heads` wants head 3 of encoder.layer.2.attention.self, the",
        ),
    ],
)
def test_a_config_that_was_edited_is_refused(config, message, tmp_path):
    model = model_of("bert", torch.float32)
    slice_heads(model, some_heads(model)).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(saved | config))
    with pytest.raises(InputError, match=message):
        AutoModel.from_pretrained(tmp_path)


def test_the_key_says_what_was_cut():
    model, other = model_of("bert"), model_of("bert")
    slice_heads(model, {ONE: [0, 3]})
    key = heads_key(model.config)
    assert key is not None
    assert key.kept == {ONE: [0, 3]}
    other.encoder.layer[0].attention.self.query.weight.data[0, 0] += 1
    slice_heads(other, {ONE: [0, 3]})
    other_key = heads_key(other.config)
    assert other_key is not None
    assert other_key.source_sha256 != key.source_sha256
    assert key_to_dict(key) == model.config.to_dict()[KEY]
