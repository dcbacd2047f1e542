"""Magnitude pruning of a whole model: which weights become zero, in one round and in several."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from mixtures import switch_model
from peft import LoraConfig, get_peft_model
from pico import HIDDEN, WIDTH, pico_model
from test_zeros import OTHERS, UNDER
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from mlpfusion.dsee.magnitude import Pruning, check_prunable, layer_maps, zero_smallest
from mlpfusion.dsee.masks import maskable_rows
from mlpfusion.errors import InputError
from mlpfusion.options.adapters.sparsity import Sparsity

NAMES = ["bert", "gpt2"]
POOL = {name: UNDER + others for name, others in OTHERS.items()}


def classifier(name: str = "bert") -> PreTrainedModel:
    return pico_model(name, AutoModelForSequenceClassification)


def pool(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights that may become zero, copied."""
    return {path: linear.weight.detach().clone() for path, linear in layer_maps(model).items()}


@pytest.mark.parametrize("name", [*NAMES, "switch"])
def test_the_pool_is_that_of_the_second_stage_of_dsee(name):
    def model() -> Any:
        return switch_model() if name == "switch" else classifier(name)

    config = LoraConfig(r=2, target_modules=["q", "query", "attn.c_attn"], fan_in_fan_out=name == "gpt2")
    adapted = get_peft_model(model(), config)
    assert list(layer_maps(model())) == [rows.path for rows in maskable_rows(adapted, Sparsity())]


@pytest.mark.parametrize("name", NAMES)
def test_exactly_the_smallest_weights_of_all_maps_together_become_zero(name):
    model = classifier(name).double()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    maps = list(layer_maps(model))
    assert zero_smallest(model, 0.3) == round(0.3 * POOL[name])
    after = model.state_dict()
    zeroed = torch.cat([(after[f"{path}.weight"] == 0).flatten() for path in maps])
    sizes = torch.cat([before[f"{path}.weight"].abs().flatten() for path in maps])
    assert (len(zeroed), int(zeroed.sum())) == (POOL[name], round(0.3 * POOL[name]))
    assert sizes[zeroed].max() <= sizes[~zeroed].min()
    assert before.keys() == after.keys()
    for key, value in after.items():
        stays = value != 0 if key.removesuffix(".weight") in maps else torch.ones_like(value, dtype=torch.bool)
        assert torch.equal(value[stays], before[key][stays])


def test_equal_weights_go_in_the_order_of_the_model():
    model = classifier()
    for linear in layer_maps(model).values():
        linear.weight.data.fill_(1.0)
    assert zero_smallest(model, 0.25) == POOL["bert"] // 4
    zeroed = torch.cat([(weight == 0).flatten() for weight in pool(model).values()])
    assert torch.equal(zeroed, torch.arange(POOL["bert"]) < POOL["bert"] // 4)


def test_a_later_round_keeps_the_zeros_of_the_one_before():
    model, (first, second) = classifier(), Pruning(0.6, rounds=2).shares()
    zero_smallest(model, first)
    before = pool(model)
    with torch.no_grad():  # the weights that are left may have become smaller than any that were zeroed
        for linear in layer_maps(model).values():
            linear.weight.mul_(1e-6)
    assert zero_smallest(model, second) == round(0.6 * POOL["bert"])
    assert all(bool((after[before[path] == 0] == 0).all()) for path, after in pool(model).items())


def test_every_round_takes_the_same_part_of_what_is_left():
    shares = (0.0, *Pruning(0.488, rounds=3).shares())
    left = [(1 - after) / (1 - before) for before, after in pairwise(shares)]
    assert left == pytest.approx([0.8] * 3, rel=1e-12)
    assert shares[-1] == 0.488
    assert Pruning(0.2).shares() == (0.2,)


class _OtherLinear(nn.Linear):
    """A linear map whose forward pass is not known to read the weight alone."""


def test_maps_of_another_class_and_models_without_layers_are_refused():
    model = classifier()
    layer: Any = model.get_submodule("bert.encoder.layer.1.intermediate")
    layer.dense = _OtherLinear(HIDDEN, WIDTH)
    before = pool(model)
    message = "`model` must have layers of Linear or Conv1D to be pruned, got _OtherLinear at bert.encoder.layer.1"
    with pytest.raises(InputError, match=message):
        zero_smallest(model, 0.5)
    assert all(torch.equal(before[path], after) for path, after in pool(model).items())
    model.get_submodule("bert.encoder").layer = nn.ModuleList()
    bert: Any = model.get_submodule("bert")
    bert.pooler = None
    with pytest.raises(InputError, match="got BertForSequenceClassification with none"):
        check_prunable(model)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0.0,), "`zeros ratio` must be above 0 and below 1, got 0"),
        ((1.0,), "`zeros ratio` must be above 0 and below 1, got 1"),
        ((0.5, 0), "`zeros rounds` must be a whole number of at least 1, got 0"),
    ],
)
def test_shares_and_rounds_that_cannot_be_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        Pruning(*values)
