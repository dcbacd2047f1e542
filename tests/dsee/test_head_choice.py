"""Which heads go, and the adapter of the model without them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from detected import detected_model
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from pico import pico_model
from torch import Tensor, nn

from mlpfusion.dsee.adapter.config import DseeConfig
from mlpfusion.dsee.adapter.describe import describe
from mlpfusion.dsee.adapter.layer import DseeLayer
from mlpfusion.dsee.structured.adapted import slice_adapted
from mlpfusion.dsee.structured.adapter import StoredAdapter, read_adapter
from mlpfusion.dsee.structured.choice import HeadChoice, head_scores, kept_heads
from mlpfusion.dsee.structured.lowest import slice_lowest
from mlpfusion.errors import InputError
from mlpfusion.heads.sites import HeadSite, find_heads
from mlpfusion.heads.slicing import slice_heads
from mlpfusion.options.adapters.dsee import Support

NAMES = ["bert", "roberta", "mpnet", "gpt2", "llama"]
IDS = torch.tensor([[1, 5, 9, 33, 2], [1, 7, 60, 4, 3]])


def model_of(name: str) -> Any:
    return detected_model(name).double() if name == "mpnet" else pico_model(name, dtype=torch.float64)


def trained_adapter(name: str, folder: Path, **changes: Any) -> Any:
    """A model under an adapter with numbers in it, saved into `folder`."""
    config = DseeConfig(**{"r": 3, "alpha": 6.0, "support": Support(sparse=40, omega="random")} | changes)
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
@pytest.mark.parametrize("name", NAMES)
def test_the_cut_adapter_on_the_sliced_model_is_that_of_the_masked_model(name, targets, tmp_path):
    parts = {"attn.c_attn": [True, True, True]} if targets else None
    adapted = trained_adapter(name, tmp_path / "whole", target_modules=targets, parts=parts)
    model = model_of(name)
    adapter, sites = read_adapter(tmp_path / "whole", model), find_heads(model)
    kept = {path: sorted(set(heads)) for path, heads in some_heads(sites).items()}
    adapter.cut(model, sites, kept).write("base", tmp_path / "cut")
    inner = adapted.base_model.model
    for site in sites:
        gone = [head for head in range(site.num_heads) if head not in kept[site.path]]
        silence(inner.get_submodule(site.output), site.query_rows(gone))
    slice_heads(model, kept)
    found = PeftModel.from_pretrained(model, str(tmp_path / "cut")).eval()
    torch.testing.assert_close(states(found), states(adapted), rtol=0, atol=1e-11)
    with found.disable_adapter():
        assert (states(found) - states(adapted)).abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_the_score_of_a_head_is_the_sum_of_what_was_added_to_its_rows(name, tmp_path):
    adapted = trained_adapter(name, tmp_path)
    model = model_of(name)
    adapter = read_adapter(tmp_path, model)
    for site in find_heads(model):
        update: list[Any] = [adapter.update(model, path) for path in (site.query, site.value)]
        for path, one in zip((site.query, site.value), update, strict=True):
            layer = adapted.base_model.model.get_submodule(path)
            delta = layer.get_delta_weight("default")
            torch.testing.assert_close(one, delta.T if name == "gpt2" else delta, rtol=0, atol=1e-12)
        scores = head_scores(site, *update)
        wide, size = site.shared * site.head_size, site.head_size
        start = 2 * site.num_heads * size if name == "gpt2" else 0
        for head in range(site.num_heads):
            query = update[0][head * wide : (head + 1) * wide]
            value = update[1][start + head * size : start + (head + 1) * size]
            expected = query.abs().sum() + value.abs().sum()
            torch.testing.assert_close(scores[head], expected, rtol=1e-12, atol=0)
            assert query.abs().sum() > 0 < value.abs().sum()


def test_a_cut_adapter_trains_on_and_comes_back(tmp_path):
    trained_adapter("gpt2", tmp_path / "whole")
    model = model_of("gpt2")
    adapter, sites = read_adapter(tmp_path / "whole", model), find_heads(model)
    kept = {site.path: [site.layer] for site in sites}
    cut = adapter.cut(model, sites, kept)
    cut.write("base", tmp_path / "cut")
    slice_heads(model, kept)
    found: Any = PeftModel.from_pretrained(model, str(tmp_path / "cut"), is_trainable=True)
    found(input_ids=IDS).last_hidden_state.square().sum().backward()
    updates = [layer.update_of("default") for layer in found.modules() if isinstance(layer, DseeLayer)]
    assert len(updates) == 3
    assert len({len(update.S) for update in updates}) > 1  # other heads took other entries with them
    for update in updates:
        assert all(tensor.grad is not None and tensor.grad.any() for tensor in (update.A, update.B, update.S))
        update.S.data += 1
    record = describe(found)
    assert record.sparse_parameters == sum(len(update.S) for update in updates)
    assert record.low_rank_parameters + record.sparse_parameters == cut.num_entries
    expected = states(found.eval())
    found.save_pretrained(tmp_path / "again", save_embedding_layers=False)  # it would ask the Hub for `base`
    again = model_of("gpt2")
    slice_heads(again, kept)
    loaded = PeftModel.from_pretrained(again, str(tmp_path / "again")).eval()
    torch.testing.assert_close(states(loaded), expected, rtol=0, atol=1e-12)


def test_a_head_that_takes_all_entries_with_it_leaves_none(tmp_path):
    trained_adapter("bert", tmp_path / "whole", support=Support(sparse=1, omega="random"))
    model = model_of("bert")
    adapter, sites = read_adapter(tmp_path / "whole", model), find_heads(model)
    row = int(adapter.tensors[f"{adapter.places[sites[0].query]}.omega"][0])
    kept = {site.path: [head for head in range(4) if site.layer or head != row // 8] for site in sites}
    adapter.cut(model, sites, kept).write("base", tmp_path / "cut")
    slice_heads(model, kept)
    found = PeftModel.from_pretrained(model, str(tmp_path / "cut")).eval()
    first = next(layer for layer in found.modules() if isinstance(layer, DseeLayer))
    assert len(first.update_of("default").S) == 0
    assert states(found).isfinite().all()


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


def test_the_adapter_in_memory_stays_as_it_was(tmp_path):
    trained_adapter("bert", tmp_path)
    model = model_of("bert")
    adapter, sites = read_adapter(tmp_path, model), find_heads(model)
    before = {name: tensor.clone() for name, tensor in adapter.tensors.items()}
    state = torch.random.get_rng_state()
    assert isinstance(adapter.cut(model, sites, {site.path: [0] for site in sites}), StoredAdapter)
    assert adapter.update(model, sites[0].query) is not None
    assert torch.equal(torch.random.get_rng_state(), state)
    assert adapter.config.entries is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter.tensors.items())


@pytest.mark.parametrize("name", NAMES)
def test_what_loses_heads_in_memory_is_what_is_written_and_read(name, tmp_path):
    choice = HeadChoice(1)
    adapted = trained_adapter(name, tmp_path / "whole")
    model = model_of(name)
    left = slice_lowest(model, choice, read_adapter(tmp_path / "whole", model))
    assert left.adapter is not None
    left.adapter.write("base", tmp_path / "cut")
    expected = PeftModel.from_pretrained(model, str(tmp_path / "cut"), is_trainable=True).eval()
    stream = torch.random.get_rng_state()
    found = slice_adapted(adapted, choice).eval()
    assert torch.equal(torch.random.get_rng_state(), stream)
    assert torch.equal(states(found), states(expected))
    trained, same = (
        {path: parameter for path, parameter in one.named_parameters() if parameter.requires_grad}
        for one in (found, expected)
    )
    assert trained.keys() == same.keys()
    assert all(torch.equal(trained[path], same[path]) for path in trained)
    config: Any = found.peft_config["default"]
    read: Any = expected.peft_config["default"]
    assert (config.entries, config.r, config.target_modules) == (read.entries, read.r, read.target_modules)
