"""What a model costs, as the rows of a grid tell it."""

import pytest
import torch
from adapted import dsee, under_adapter
from detected import detected_model
from mixtures import switch_model
from pico import pico_model
from tiny_task import make_task, save_checkpoint
from transformers import AutoModelForSequenceClassification

from mlpfusion import MoEfication
from mlpfusion.compression.compress import compress
from mlpfusion.dsee.masks import set_zeros
from mlpfusion.measure.flops import forward_flops
from mlpfusion.options.adapters.sparsity import Sparsity
from mlpfusion.record import model_size
from mlpfusion.reproduce.cost import cost_of


def test_a_plain_model_is_counted_as_it_is():
    model = pico_model("bert", AutoModelForSequenceClassification)
    weight = model.bert.encoder.layer[0].output.dense.weight
    weight.data[0, :5] = 0
    cost, flops = cost_of(model, 16), forward_flops(model, 16)
    assert (cost.tokens, cost.flops, cost.flops_without_zeros) == (16, flops.dense, flops.without_zeros)
    assert cost.flops is not None
    assert cost.flops - flops.without_zeros >= 2 * 16 * 5
    size = model_size(model)
    assert (cost.parameters, cost.bytes) == (size.parameters, size.bytes)
    zeros = sum(int((parameter == 0).sum()) for parameter in model.parameters())
    assert cost.parameters - cost.nonzero_parameters == zeros >= 5


def test_an_adapter_beside_the_weights_counts_and_its_head_once(tmp_path):
    model = save_checkpoint(tmp_path / "model")
    adapted = under_adapter(model, dsee())
    plain = AutoModelForSequenceClassification.from_pretrained(model)
    before, whole = cost_of(adapted, 16), cost_of(plain, 16)
    updates = sum(value.numel() for name, value in adapted.named_parameters() if "dsee_update" in name)
    assert before.parameters == whole.parameters + updates
    assert before.flops is not None
    assert before.flops == forward_flops(adapted, 16).dense
    lost = sum(rows.masked for rows in set_zeros(adapted, Sparsity(updated_ratio=0.5, other_ratio=0.3)))
    after = cost_of(adapted, 16)
    assert before.nonzero_parameters - after.nonzero_parameters == lost > 0
    assert (after.flops, after.bytes, after.parameters) == (before.flops, before.bytes, before.parameters)
    assert after.flops_without_zeros is not None
    assert after.flops_without_zeros < before.flops


@pytest.mark.parametrize("name", ["moefication", "switch", "xlm"])
def test_flops_that_depend_on_the_text_are_left_out(name):
    if name == "moefication":
        model = pico_model("bert", AutoModelForSequenceClassification)
        compress(model, MoEfication(), data=make_task(), keep_ratio=0.25, layers="last:1")
    else:
        model = switch_model() if name == "switch" else detected_model(name)
    cost = cost_of(model, 16)
    assert (cost.flops, cost.flops_without_zeros) == (None, None)
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert torch.is_grad_enabled()
