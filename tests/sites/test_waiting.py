"""Forward passes that wait at every MLP."""

import weakref
from dataclasses import replace

import pytest
import torch
from pico import others_slow, pico_inputs, pico_model, sites_of

from mlpfusion.errors import InputError
from mlpfusion.mlp import forward, select_neurons
from mlpfusion.sites import waiting
from mlpfusion.sites.recording import recording
from mlpfusion.sites.sites import read_mlp
from mlpfusion.sites.traces import mlp_inputs, replaced_block
from mlpfusion.sites.waiting import waiting_passes


def batches_of(name):
    return [pico_inputs(name, seed) for seed in range(3)]


@pytest.mark.parametrize("name", others_slow())
def test_the_inputs_are_those_of_whole_passes(name):
    model, batches = pico_model(name), batches_of(name)
    if "attention_mask" in batches[0]:
        batches[0]["attention_mask"][1, 4:] = 0
    sites = sites_of(model)
    with torch.no_grad():
        expected = mlp_inputs(model, sites, batches)
    with waiting_passes(model, sites, batches) as passes:
        for site in sites:
            trace = passes.inputs_at(site)
            torch.testing.assert_close(trace.inputs, expected[site.path])
            assert trace.num_samples == 6
            assert not trace.cotangents.any()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["bert", "llama", "opt", "t5"])
def test_passes_go_on_with_the_outputs_of_another_block(name):
    model, batches = pico_model(name), batches_of(name)
    first, *_, last = sites_of(model)
    small = select_neurons(read_mlp(model, first), torch.arange(3))
    with torch.no_grad(), replaced_block(model, first, small):
        expected = mlp_inputs(model, [last], batches)[last.path]
    with waiting_passes(model, [first, last], batches) as passes:
        passes.inputs_at(first)
        passes.go_on_with([small])
        found = passes.inputs_at(last).inputs
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        assert (found - mlp_inputs(model, [last], batches)[last.path]).abs().max() > 1e-4


def test_a_block_that_the_passes_go_on_with_lies_in_memory_in_one_way(monkeypatch):
    """So that one read from a file, or transposed, gives the same bytes as one that was just made."""
    model, batches = pico_model("llama"), batches_of("llama")
    first, *_, last = sites_of(model)
    small, used = select_neurons(read_mlp(model, first), torch.arange(3)), []
    monkeypatch.setattr(waiting, "forward", lambda block, x: used.append(block) or forward(block, x))
    with waiting_passes(model, [first, last], batches) as passes:
        passes.inputs_at(first)
        passes.go_on_with([replace(small, up=small.up.T.contiguous().T)])
        passes.inputs_at(last)
    assert len(used) == len(batches)
    assert all(one.up.is_contiguous() and torch.equal(one.up, small.up) for one in used)
    assert not any(one.down.data_ptr() == small.down.data_ptr() for one in used)


def test_another_pass_through_the_model_does_not_wait():
    model, batches = pico_model("llama"), batches_of("llama")
    sites = sites_of(model)
    with torch.no_grad():
        expected = mlp_inputs(model, sites, batches)
    with waiting_passes(model, sites, batches) as passes:
        for site in sites:
            torch.testing.assert_close(passes.inputs_at(site).inputs, expected[site.path])
            model(**batches[1])


def test_the_inputs_of_one_block_are_in_memory_and_nothing_inside_of_it():
    model, batches = pico_model("llama"), batches_of("llama")
    entered, inside = [], []
    for site in sites_of(model):
        for part, seen in (
            (model.layers[site.layer].mlp.gate_proj, entered),
            (model.layers[site.layer].mlp.down_proj, inside),
        ):
            part.register_forward_pre_hook(lambda _module, args, seen=seen: seen.append(weakref.ref(args[0])))
    first, second, *_ = sites_of(model)
    with waiting_passes(model, sites_of(model), batches) as passes:
        passes.inputs_at(first)
        assert [one() is not None for one in entered] == [True] * 3
        passes.inputs_at(second)
        assert [one() is not None for one in entered] == [False] * 3 + [True] * 3
        assert [one() is not None for one in inside] == [False] * 3
    assert not any(one() is not None for one in entered)


def test_only_layers_with_waiting_passes_are_fp32():
    model, batches = pico_model("llama", dtype=torch.bfloat16), batches_of("llama")
    sites = sites_of(model)
    with recording(model, gradients=False), waiting_passes(model, sites, batches) as passes:
        for site in sites:
            assert passes.inputs_at(site).inputs.dtype == torch.float32
            wide = [other for other in sites if read_mlp(model, other).up.dtype == torch.float32]
            assert wide == [site]
    assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16}


def test_sites_out_of_order_are_refused():
    model, batches = pico_model("llama"), batches_of("llama")
    first, second, *_ = sites_of(model)
    with waiting_passes(model, [first, second], batches) as passes:
        passes.inputs_at(first)
        with pytest.raises(InputError, match=rf"in their order, got {second.path} for {first.path}"):
            passes.inputs_at(first)
    with waiting_passes(model, [first], batches) as passes:
        passes.inputs_at(first)
        with pytest.raises(InputError, match=rf"got the end for {first.path}"):
            passes.inputs_at(first)


def test_an_error_of_the_model_comes_out():
    model, batches = pico_model("llama"), batches_of("llama")
    first, *_ = sites_of(model)
    batches[1] = {"input_ids": torch.full((2, 7), 10_000)}
    with pytest.raises(IndexError), waiting_passes(model, [first], batches) as passes:
        passes.inputs_at(first)
    assert not any(module._forward_hooks for module in model.modules())
