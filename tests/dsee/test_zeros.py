"""Which weights become zero: exactly as many as asked for, in each of the two pools, by the scores."""

from typing import Any

import pytest
import torch
from mixtures import switch_model
from peft import LoraConfig, get_peft_model
from pico import HIDDEN, WIDTH, pico_model
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

import mlpfusion
from mlpfusion.dsee.adapter.config import DseeConfig
from mlpfusion.dsee.masks import maskable_rows, set_zeros
from mlpfusion.errors import InputError
from mlpfusion.options.adapters.dsee import Support
from mlpfusion.options.adapters.sparsity import CRITERIA, Sparsity
from mlpfusion.sites.mixtures.routers import router_parameters

NAMES = ["bert", "gpt2"]
UNDER = 3 * 2 * HIDDEN * HIDDEN  # query and value of three layers
OTHERS = {
    "bert": 3 * (2 * HIDDEN * HIDDEN + 2 * WIDTH * HIDDEN) + HIDDEN * HIDDEN,  # with the pooler
    "gpt2": 3 * (2 * HIDDEN * HIDDEN + 2 * WIDTH * HIDDEN),
}


def adapted(name: str = "bert", config: Any = None) -> Any:
    """A classifier in float64 under an adapter with other numbers in all that trains."""
    model = pico_model(name, AutoModelForSequenceClassification).double()
    usual = DseeConfig(r=4, alpha=6.0, support=Support(sparse=8, omega="random"), task_type="SEQ_CLS")
    wrapped: Any = get_peft_model(model, config or usual)
    generator = torch.Generator().manual_seed(0)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=generator)
    return wrapped


def weights(wrapped: Any) -> dict[str, Tensor]:
    """All weights under and beside the adapter in the layout of `nn.Linear`, by plain paths."""
    return {
        path.removesuffix(".base_layer"): (module.weight.T if isinstance(module, Conv1D) else module.weight)
        .detach()
        .clone()
        for path, module in wrapped.get_base_model().named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }


def by_hand(wrapped: Any, name: str, criterion: str) -> tuple[Tensor, Tensor]:
    """All scores of the two pools, by the formulas."""
    under, others = [], []
    for path, weight in weights(wrapped).items():
        module = wrapped.get_base_model().get_submodule(path)
        if path.startswith(("classifier", "score")):
            continue
        if not hasattr(module, "dsee_update"):
            others.append(weight.abs().flatten())
            continue
        update = module.update_of("default")
        sparse = torch.zeros_like(weight).index_put(tuple(update.omega), update.S)
        height = HIDDEN if name == "gpt2" else len(weight)
        for index, start in enumerate((0, 2 * HIDDEN) if name == "gpt2" else (0,)):
            rows = slice(start, start + height)
            low_rank = 1.5 * update.B[index] @ update.A[index]
            scores = {
                "abs": low_rank + 1.5 * sparse[rows],
                "ab": low_rank,
                "wab": weight[rows] + low_rank,
                "w": weight[rows],
            }
            under.append(scores[criterion].abs().flatten())
        if name == "gpt2":
            others.append(weight[HIDDEN : 2 * HIDDEN].abs().flatten())
    return torch.cat(under).detach(), torch.cat(others).detach()


@pytest.mark.parametrize("criterion", ["abs", "ab", "wab", "w"])
@pytest.mark.parametrize("name", NAMES)
def test_the_smallest_scores_of_each_pool_are_zeroed(name, criterion):
    model = adapted(name)
    before, (under, others) = weights(model), by_hand(model, name, criterion)
    assert (len(under), len(others)) == (UNDER, OTHERS[name])
    lost = set_zeros(model, Sparsity(criterion, 0.3, 0.45))
    number = {True: round(0.3 * UNDER), False: round(0.45 * OTHERS[name])}
    for is_updated in (True, False):
        found = [rows for rows in lost if rows.is_updated == is_updated]
        assert sum(rows.masked for rows in found) == sum(rows.zeros for rows in found) == number[is_updated]
        assert sum(rows.entries for rows in found) == (UNDER if is_updated else OTHERS[name])
    after = weights(model)
    assert sum(int((weight == 0).sum()) for weight in after.values()) == sum(number.values())
    for path, weight in after.items():
        assert torch.equal(weight[weight != 0], before[path][weight != 0])
    for is_updated, scores in ((True, under), (False, others)):
        found = [rows for rows in lost if rows.is_updated == is_updated]
        zeroed = torch.cat([(after[rows.path][rows.start : rows.stop] == 0).flatten() for rows in found])
        assert scores[zeroed].max() <= scores[~zeroed].min()


@pytest.mark.parametrize("name", NAMES)
def test_heads_embeddings_norms_and_biases_are_left_alone(name):
    model = adapted(name)
    paths = {rows.path for rows in maskable_rows(model, Sparsity())}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    set_zeros(model, Sparsity(updated_ratio=0.5, other_ratio=0.5))
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert {
        key.removeprefix("base_model.model.").removesuffix(".weight").removesuffix(".base_layer") for key in changed
    } == paths
    if name == "bert":
        assert "bert.pooler.dense" in paths
    assert len(paths) == (19 if name == "bert" else 12)
    assert not [path for path in paths if "embed" in path or "wte" in path or "classifier" in path or "score" in path]


def test_in_gpt2_the_part_of_the_key_belongs_to_the_other_maps():
    model = adapted("gpt2")
    lost = set_zeros(model, Sparsity(updated_ratio=0.9, other_ratio=0))
    parts = [rows for rows in lost if rows.path.endswith("attn.c_attn")]
    assert len(parts) == 9
    for rows in parts:
        assert rows.is_updated == (rows.start != HIDDEN)
        assert (rows.masked > 0) == rows.is_updated
    for path, weight in weights(model).items():
        if path.endswith("attn.c_attn"):
            assert (weight[HIDDEN : 2 * HIDDEN] != 0).all()
            assert (weight[:HIDDEN] == 0).any()
            assert (weight[2 * HIDDEN :] == 0).any()


def test_equal_scores_are_zeroed_in_the_order_of_the_model():
    model = adapted()
    layers = [module for module in model.modules() if hasattr(module, "dsee_update")]
    for layer in layers:
        layer.update_of("default").B.data.zero_()
        layer.update_of("default").S.data.zero_()
    set_zeros(model, Sparsity(updated_ratio=0.25, other_ratio=0))
    zeroed = torch.cat([(layer.dense_weight() == 0).flatten() for layer in layers])
    assert torch.equal(zeroed, torch.arange(UNDER) < UNDER // 4)


def test_random_masks_follow_their_seed():
    def mask(seed: int) -> Tensor:
        model = adapted()
        set_zeros(model, Sparsity("random", 0.4, 0, seed))
        return torch.cat([(weight == 0).flatten() for weight in weights(model).values()])

    first = mask(0)
    assert int(first.sum()) == round(0.4 * UNDER)
    assert torch.equal(first, mask(0))
    assert not torch.equal(first, mask(1))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_lora_is_masked_in_the_same_way_and_covers_all_of_the_map_of_gpt2(criterion):
    for name, under, others in (
        ("bert", UNDER, OTHERS["bert"]),
        ("gpt2", UNDER * 3 // 2, OTHERS["gpt2"] - UNDER // 2),
    ):
        config = LoraConfig(r=4, task_type="SEQ_CLS", fan_in_fan_out=name == "gpt2")  # pyright: ignore[reportArgumentType]
        lost = set_zeros(adapted(name, config), Sparsity(criterion, 0.3, 0.1))
        assert sum(rows.masked for rows in lost if rows.is_updated) == round(0.3 * under)
        assert sum(rows.masked for rows in lost if not rows.is_updated) == round(0.1 * others)


def test_an_adapter_on_all_maps_leaves_no_others():
    def everywhere() -> Any:
        support = Support(sparse=8, omega="random")
        return adapted("bert", DseeConfig(r=4, support=support, task_type="SEQ_CLS", target_modules="all-linear"))

    with pytest.raises(InputError, match="`other_ratio` must be 0 for an adapter on all linear maps of the layers"):
        set_zeros(everywhere(), Sparsity())
    lost = set_zeros(everywhere(), Sparsity(updated_ratio=0.5, other_ratio=0))
    assert sum(rows.masked for rows in lost) == round(0.5 * (UNDER + OTHERS["bert"]))


def test_zeros_go_into_a_fused_model_too():
    model = pico_model("bert", AutoModelForSequenceClassification)
    mlpfusion.compress(model, mlpfusion.Fusion(), keep_ratio=0.25)
    config = DseeConfig(r=4, support=Support(sparse=8, omega="random"), task_type="SEQ_CLS")
    lost = set_zeros(get_peft_model(model, config), Sparsity(updated_ratio=0, other_ratio=0.5))
    narrow = {rows.path: rows.entries for rows in lost if rows.path.endswith("intermediate.dense")}
    assert set(narrow.values()) == {WIDTH // 4 * HIDDEN}
    assert sum(rows.masked for rows in lost) == round(0.5 * sum(rows.entries for rows in lost if not rows.is_updated))


def test_routers_of_mixtures_are_left_alone():
    support = Support(sparse=8, omega="random")
    model: Any = get_peft_model(switch_model(), DseeConfig(r=2, support=support))
    paths = {rows.path for rows in maskable_rows(model, Sparsity())}
    routers = {name.removesuffix(".weight") for name in router_parameters(model.get_base_model())}
    assert routers
    assert not routers & paths
    assert [path for path in paths if ".experts.expert_1.wi" in path]
