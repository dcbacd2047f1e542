"""The counted FLOPs are those of the formulas."""

from typing import Any

import pytest
import torch
from detected import detected_model
from peft import LoraConfig, get_peft_model
from pico import HIDDEN, VOCAB, WIDTH, pico_model, pico_outputs, sites_of
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, BertModel

import mlpfusion
from mlpfusion.compression.budget.amount import count_flops, flops_inputs
from mlpfusion.dsee.adapter.config import DseeConfig
from mlpfusion.errors import InputError
from mlpfusion.heads.key import KEY, HeadsKey, key_to_dict
from mlpfusion.measure.flops import Flops, forward_flops
from mlpfusion.options.adapters.dsee import Support

T, LAYERS = 7, 3


def layer_flops(hidden: int, width: int, tokens: int) -> int:
    """Of a plain layer: four maps of attention, scores and contexts, two maps of the MLP."""
    return 2 * tokens * (4 * hidden**2 + 2 * tokens * hidden + 2 * hidden * width)


@pytest.mark.parametrize(
    ("name", "auto", "head"),
    [
        ("bert", AutoModel, 2 * HIDDEN**2),  # the pooler sees one token
        ("distilbert", AutoModel, 0),
        ("gpt2", AutoModelForCausalLM, 2 * T * HIDDEN * VOCAB),
    ],
)
def test_the_flops_of_a_model_are_those_of_its_maps_and_its_attention(name, auto, head):
    expected = LAYERS * layer_flops(HIDDEN, WIDTH, T) + head
    assert forward_flops(pico_model(name, auto), T) == Flops(expected, expected)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "gemma2", "modernbert", "t5", "bart"])
def test_a_budget_counts_the_same(name):
    """It runs the model instead, with numbers."""
    model = pico_model(name)
    counted, _ = count_flops(model, [[site] for site in sites_of(model)])
    assert forward_flops(model, flops_inputs(model)["input_ids"].shape[1]).dense == counted


def test_a_model_that_adds_a_bias_to_the_scores_counts_the_same():
    assert forward_flops(detected_model("mpnet"), T).dense == 2 * layer_flops(HIDDEN, WIDTH, T) + 2 * HIDDEN**2


def test_query_heads_count_where_they_share_keys():
    model = pico_model("llama")  # 4 heads of 8, 2 of keys
    layer = 2 * T * (2 * HIDDEN**2 + 2 * HIDDEN * 16 + 2 * T * HIDDEN + 3 * HIDDEN * WIDTH)
    counted = forward_flops(model, T).dense
    # an older transformers makes the angles of positions by a product of 4 frequencies and T places
    assert counted in (LAYERS * layer, LAYERS * layer + 2 * 4 * T)


def test_an_adapter_counts_until_it_is_merged():
    model = pico_model("bert")
    plain = forward_flops(model, T).dense
    config = DseeConfig(r=4, support=Support(sparse=8, omega="random"))
    adapted: Any = get_peft_model(model, config)
    more = LAYERS * 2 * 2 * T * (2 * 4 * HIDDEN + 8)
    assert forward_flops(adapted, T).dense == plain + more
    with adapted.disable_adapter():
        assert forward_flops(adapted, T).dense == plain
    assert forward_flops(adapted.merge_and_unload(), T).dense == plain
    lora: Any = get_peft_model(pico_model("bert"), LoraConfig(r=4))
    assert forward_flops(lora, T).dense == plain + LAYERS * 2 * 2 * T * 2 * 4 * HIDDEN


def test_zeros_are_told_apart_and_the_model_stays_as_it_was():
    model = pico_model("bert")
    before, outputs = forward_flops(model, T), pico_outputs(model, "bert")
    mlpfusion.compress(model, mlpfusion.Magnitude(), keep_ratio=0.25)
    found = forward_flops(model, T)
    zeros = sum(int((module.weight == 0).sum()) for module in model.modules() if isinstance(module, nn.Linear))
    assert found == Flops(before.dense, before.dense - 2 * T * zeros)
    assert zeros == pytest.approx(LAYERS * 2 * HIDDEN * WIDTH * 0.75, rel=0.01)
    assert not torch.equal(pico_outputs(model, "bert"), outputs)
    assert all(not parameter.is_meta for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_narrower_mlps_cost_less_and_a_model_without_numbers_the_same():
    model = pico_model("gpt2")
    mlpfusion.compress(model, mlpfusion.Fusion(), width=14)
    expected = LAYERS * layer_flops(HIDDEN, 14, T)
    assert forward_flops(model, T).dense == expected
    with torch.device("meta"):
        empty = AutoModel.from_config(model.config)
    assert forward_flops(empty, T) == Flops(expected, expected)


def test_a_model_without_ids_is_refused_by_name():
    with pytest.raises(InputError, match="`model` must be a model of text for its FLOPs to be counted, got 'vit'"):
        forward_flops(pico_model("vit"), T)


def bert_base(heads: int, width: int) -> Any:
    """Two layers of BERT-base with fewer heads, or neurons, without numbers: shares of FLOPs are those of twelve."""
    config = BertConfig(intermediate_size=width, num_hidden_layers=2)
    kept = {f"encoder.layer.{layer}.attention.self": list(range(heads)) for layer in range(2)}
    setattr(config, KEY, key_to_dict(HeadsKey(kept, "0" * 64)))
    with torch.device("meta"):
        return BertModel(config, add_pooling_layer=False)


@pytest.mark.parametrize(
    ("heads", "width", "unmerged", "merged"),
    [
        (9, 3072, 8.2, 8.8),
        (9, 2304, 24.4, 25.0),
        (12, 1843, 25.3, 26.0),
        (9, 1843, 34.1, 34.7),
        (8, 1843, 37.1, 37.7),
    ],
)
def test_the_share_that_dsee_saves_of_bert_base(heads, width, unmerged, merged):
    """Of the original model, which has no adapter."""
    whole, small = forward_flops(bert_base(12, 3072), 128).dense, bert_base(heads, width)
    assert whole == 2 * layer_flops(768, 3072, 128)
    assert round(100 * (1 - forward_flops(small, 128).dense / whole), 1) == merged
    adapted: Any = get_peft_model(small, DseeConfig(r=16, support=Support(sparse=64, omega="magnitude")))
    assert round(100 * (1 - forward_flops(adapted, 128).dense / whole), 1) == unmerged
