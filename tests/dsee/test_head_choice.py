"""Which heads go, and the adapter of the model without them."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from detected import detected_model
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from pico import pico_model
from torch import Tensor, nn

from mlpfusion.dsee.adapter.config import DseeConfig
from mlpfusion.dsee.adapter.describe import describe
from mlpfusion.dsee.adapter.layer import DseeLayer
from mlpfusion.dsee.structured.adapted import check_slice, slice_adapted
from mlpfusion.dsee.structured.adapter import lay, lift, maps_under
from mlpfusion.dsee.structured.choice import HeadChoice, kept_heads
from mlpfusion.errors import InputError
from mlpfusion.heads.sites import HeadSite, find_heads
from mlpfusion.heads.slicing import slice_heads
from mlpfusion.options.adapters.dsee import Support

KINDS = ["dsee", "lora"]
NAMES = ["bert", "roberta", "mpnet", "gpt2", "llama"]
IDS = torch.tensor([[1, 5, 9, 33, 2], [1, 7, 60, 4, 3]])


def model_of(name: str) -> Any:
    return detected_model(name).double() if name == "mpnet" else pico_model(name, dtype=torch.float64)


def trained_adapter(name: str, folder: Path, kind: str = "dsee", **changes: Any) -> Any:
    """A model under an adapter with numbers in it, saved into `folder`."""
    told: dict[str, Any] = {"r": 3, "alpha": 6.0, "support": Support(sparse=40, omega="random")}
    if kind == "lora":
        told = {"r": 3, "lora_alpha": 6, "fan_in_fan_out": name == "gpt2"}
        told |= {"target_modules": ["q", "v"]} if name == "mpnet" else {}
    config: Any = (LoraConfig if kind == "lora" else DseeConfig)(**told | changes)
    adapted: Any = get_peft_model(model_of(name), config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(folder)
    return adapted


def states(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).last_hidden_state


def some_heads(sites: list[HeadSite]) -> dict[str, list[int]]:
    return {site.path: [site.layer % site.num_heads] + ([3] if site.num_heads > 3 else []) for site in sites}


def silence(module: nn.Module, columns: list[int]) -> None:
    """Makes a map, adapter included, read zeros there."""

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        silent = inputs[0].clone()
        silent[..., columns] = 0
        return (silent, *inputs[1:])

    module.register_forward_pre_hook(hook)


@pytest.mark.parametrize("targets", [None, "all-linear"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_the_cut_adapter_on_the_sliced_model_is_that_of_the_masked_model(name, kind, targets, tmp_path):
    changes: dict[str, Any] = {"target_modules": targets} if targets else {}
    if targets and kind == "dsee":
        changes["parts"] = {"attn.c_attn": [True, True, True]}
    adapted = trained_adapter(name, tmp_path, kind, **changes)
    model, adapter = lift(copy.deepcopy(adapted))
    sites = find_heads(model)
    kept = {path: sorted(set(heads)) for path, heads in some_heads(sites).items()}
    cut = adapter.cut(model, sites, kept)
    inner = adapted.base_model.model
    for site in sites:
        gone = [head for head in range(site.num_heads) if head not in kept[site.path]]
        silence(inner.get_submodule(site.output), site.query_rows(gone))
    found = lay(slice_heads(model, kept), cut).eval()
    torch.testing.assert_close(states(found), states(adapted), rtol=0, atol=1e-11)
    with found.disable_adapter():
        assert (states(found) - states(adapted)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_the_score_of_a_head_is_the_sum_of_what_was_added_to_its_rows(name, kind, tmp_path):
    adapted = trained_adapter(name, tmp_path, kind)
    deltas = {path: layer.get_delta_weight("default").detach() for path, layer in maps_under(adapted).items()}
    sites = find_heads(model_of(name))
    _, layers = slice_adapted(adapted, HeadChoice(1))
    for site, layer in zip(sites, layers, strict=True):
        update = [deltas[path].T if name == "gpt2" else deltas[path] for path in (site.query, site.value)]
        wide, size = site.shared * site.head_size, site.head_size
        start = 2 * site.num_heads * size if name == "gpt2" else 0
        expected = [
            update[0][head * wide : (head + 1) * wide].abs().sum()
            + update[1][start + head * size : start + (head + 1) * size].abs().sum()
            for head in range(site.num_heads)
        ]
        assert layer.scores == pytest.approx([float(score) for score in expected], rel=1e-12)
        lowest = min(range(site.num_heads), key=lambda head: layer.scores[head])
        assert layer.kept == tuple(head for head in range(site.num_heads) if head != lowest)


def test_what_an_adapter_leaves_out_of_an_attention_counts_nothing(tmp_path):
    adapted = trained_adapter("bert", tmp_path, target_modules=["value"])
    sums = [layer.get_delta_weight("default").detach().abs().sum() for layer in maps_under(adapted).values()]
    _, layers = slice_adapted(adapted, HeadChoice(1))
    assert [sum(layer.scores) for layer in layers] == pytest.approx([float(one) for one in sums], rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_cut_adapter_trains_on_and_comes_back(name, kind, tmp_path):
    stream = torch.random.get_rng_state()
    whole = trained_adapter(name, tmp_path / "whole", kind)
    torch.random.set_rng_state(stream)
    found, layers = slice_adapted(whole, HeadChoice(1, "global"))
    assert torch.equal(torch.random.get_rng_state(), stream)
    found(input_ids=IDS).last_hidden_state.square().sum().backward()
    trained = {path: parameter for path, parameter in found.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in trained.values())
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.1)
    updates = [layer.update_of("default") for layer in found.modules() if isinstance(layer, DseeLayer)]
    assert bool(updates) == (kind == "dsee")
    if updates:
        assert len({len(update.S) for update in updates}) > 1  # other heads took other entries with them
        assert describe(found).sparse_parameters == sum(len(update.S) for update in updates)
    expected = states(found.eval())
    found.peft_config["default"].base_model_name_or_path = "base"
    found.save_pretrained(tmp_path / "again", save_embedding_layers=False)  # it would ask the Hub for `base`
    again = slice_heads(model_of(name), {layer.path: layer.kept for layer in layers})
    loaded = PeftModel.from_pretrained(again, str(tmp_path / "again")).eval()
    torch.testing.assert_close(states(loaded), expected, rtol=0, atol=1e-12)


def test_a_head_that_takes_all_entries_with_it_leaves_none(tmp_path):
    adapted = trained_adapter("bert", tmp_path, support=Support(sparse=1, omega="random"))
    row = int(next(iter(maps_under(adapted).values())).update_of("default").omega[0])
    model, adapter = lift(adapted)
    sites = find_heads(model)
    kept = {site.path: [head for head in range(4) if site.layer or head != row // 8] for site in sites}
    cut = adapter.cut(model, sites, kept)
    found = lay(slice_heads(model, kept), cut).eval()
    assert len(next(iter(maps_under(found).values())).update_of("default").S) == 0
    assert states(found).isfinite().all()


@pytest.mark.parametrize("changes", [{"bias": "lora_only"}, {"lora_bias": True}])
def test_a_lora_with_biases_is_refused(changes):
    adapted = get_peft_model(model_of("bert"), LoraConfig(**changes))
    with pytest.raises(InputError, match="`adapter` must be a LoRA without biases for heads to go, got one with bias="):
        check_slice(adapted, HeadChoice(1), "drop_heads")


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4), min_size=1, max_size=5),
    st.integers(1, 3),
    st.sampled_from(["layer", "global"]),
)
def test_the_lowest_heads_go_and_each_layer_keeps_one(numbers, drop, scope):
    scores = {str(place): torch.tensor(own, dtype=torch.float64) for place, own in enumerate(numbers)}
    kept = kept_heads(scores, HeadChoice(drop, scope))
    assert sum(len(heads) for heads in kept.values()) == (4 - drop) * len(numbers)
    assert all(heads and heads == sorted(set(heads)) for heads in kept.values())
    gone = {path: [head for head in range(4) if head not in kept[path]] for path in kept}
    for path, own in scores.items():
        if scope == "layer":
            assert len(kept[path]) == 4 - drop
        for other, heads in kept.items():
            comparable = other == path if scope == "layer" else len(heads) > 1
            if comparable and gone[path]:
                assert max(own[gone[path]]) <= min(scores[other][heads])


def test_a_number_of_heads_or_a_scope_that_cannot_be_is_refused():
    sites = find_heads(model_of("bert"))
    for drop in (0, 4, -1):
        with pytest.raises(InputError, match="`drop_heads` must be between 1 and 3, an attention has 4 heads and"):
            HeadChoice(drop).check(sites)
    with pytest.raises(InputError, match="between 1 and 1, an attention has 2 heads of keys, with which their queries"):
        HeadChoice(2).check(find_heads(model_of("llama")))
    with pytest.raises(InputError, match="`scope` must be layer or global, got 'all'"):
        HeadChoice(1, "all")


@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_stays_as_it_was_when_another_is_cut_from_it(kind, tmp_path):
    model, adapter = lift(trained_adapter("bert", tmp_path, kind))
    before, sites = {name: tensor.clone() for name, tensor in adapter.tensors.items()}, find_heads(model)
    cut = adapter.cut(model, sites, {site.path: [0] for site in sites})
    assert any(cut.tensors[name].shape != tensor.shape for name, tensor in before.items())
    assert getattr(adapter.config, "entries", None) is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter.tensors.items())
