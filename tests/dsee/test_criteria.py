"""The score of every entry under an adapter, against the formulas."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from pico import pico_model
from torch import Tensor
from transformers import AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from mlpfusion.dsee.adapter.config import DseeConfig
from mlpfusion.dsee.adapter.layer import DseeLayer
from mlpfusion.dsee.criteria import update_scores
from mlpfusion.errors import InputError
from mlpfusion.options.adapters.dsee import Support
from mlpfusion.options.adapters.sparsity import Sparsity


def dsee() -> DseeConfig:
    return DseeConfig(r=4, alpha=6.0, support=Support(sparse=8, omega="random"), task_type="SEQ_CLS")


def adapted(name: str, config: Any = None) -> dict[str, Any]:
    """The adapted maps of a classifier in float64, with other numbers in all that trains."""
    model = pico_model(name, AutoModelForSequenceClassification).double()
    wrapped: Any = get_peft_model(model, config or dsee())
    generator = torch.Generator().manual_seed(0)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=generator)
    return {path: module for path, module in wrapped.named_modules() if hasattr(module, "get_delta_weight")}


def weight_of(layer: Any) -> Tensor:
    base = layer.get_base_layer()
    return base.weight.T if isinstance(base, Conv1D) else base.weight


def expected(weight: Tensor, low_rank: Tensor, both: Tensor, criterion: str) -> Tensor:
    return {"abs": both, "ab": low_rank, "wab": weight + low_rank, "w": weight}[criterion].abs()


@pytest.mark.parametrize("criterion", ["abs", "ab", "wab", "w"])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_scores_of_dsee_are_those_of_the_formulas(name, criterion):
    layers = adapted(name)
    assert len(layers) == (3 if name == "gpt2" else 6)
    for layer in layers.values():
        assert isinstance(layer, DseeLayer)
        update, weight = layer.update_of("default"), weight_of(layer)
        starts = (0, 2 * weight.shape[1]) if name == "gpt2" else (0,)  # query and value in the map of GPT-2
        low_rank = torch.zeros_like(weight)
        for start, a, b in zip(starts, update.A, update.B, strict=True):
            low_rank[start : start + len(b)] = b @ a
        both = low_rank.clone()
        for value, (row, column) in zip(update.S, update.omega.T, strict=True):
            both[row, column] += value
        found = update_scores(layer, criterion)
        right = expected(weight, 6 / 4 * low_rank, 6 / 4 * both, criterion)
        torch.testing.assert_close(found, right, rtol=0, atol=1e-12)
        if name == "gpt2" and criterion in ("abs", "ab"):
            assert not found[len(weight) // 3 : 2 * len(weight) // 3].any()  # key


@pytest.mark.parametrize("criterion", ["abs", "ab", "wab", "w"])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_scores_of_lora_are_those_without_values(name, criterion):
    config = LoraConfig(r=4, lora_alpha=6, task_type="SEQ_CLS", fan_in_fan_out=name == "gpt2")  # pyright: ignore[reportArgumentType]
    for layer in adapted(name, config).values():
        low_rank = 6 / 4 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        right = expected(weight_of(layer), low_rank, low_rank, criterion)
        torch.testing.assert_close(update_scores(layer, criterion), right, rtol=0, atol=1e-12)


def test_random_scores_follow_seed_and_path_alone():
    layer = next(iter(adapted("bert").values()))
    state = torch.random.get_rng_state()
    draws = [update_scores(layer, "random", seed=seed, path=path) for seed in (0, 1) for path in ("query", "value")]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == 4
    assert torch.equal(update_scores(layer, "random", seed=1, path="query"), draws[2])
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "best"}, "`criterion` must be one of abs, ab, wab, w, random, got 'best'"),
        ({"updated_ratio": 1.0}, "`updated_ratio` must be at least 0 and below 1, got 1.0"),
        ({"updated_ratio": -0.1}, "`updated_ratio` must be at least 0 and below 1, got -0.1"),
        ({"other_ratio": 1.5}, "`other_ratio` must be at least 0 and below 1, got 1.5"),
        ({"updated_ratio": 0, "other_ratio": 0}, "`updated_ratio` or `other_ratio` must be above 0, got 0 for both"),
        ({"seed": 3}, "`seed` must be left out for criterion=abs, which draws nothing, got 3"),
    ],
)
def test_values_that_mean_nothing_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Sparsity(**options)
