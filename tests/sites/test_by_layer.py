"""Gradients with one layer at a time in memory: the same bits, each layer runs once more, nothing is left behind."""

import gc
from typing import Any

import pytest
import torch
from mixtures import mixture_model
from pico import pico_inputs, pico_model
from torch import Tensor

from mlpfusion.kernel import alternating_logit
from mlpfusion.seeds import site_generator
from mlpfusion.sites.detect import find_architecture
from mlpfusion.sites.over_batches import on_disk
from mlpfusion.sites.recording import layers_of, recording, recording_by_layer
from mlpfusion.sites.sites import find_sites
from mlpfusion.sites.traces import random_head, recorded_traces

EACH = [("bert", torch.bfloat16), ("bart", torch.float32), ("gpt2", torch.bfloat16), ("t5-gated", torch.float32)]
EACH += [("mixtral", torch.bfloat16), ("llama4_text", torch.float32)]


def model_and_batches(name: str, dtype: torch.dtype) -> tuple[Any, list[dict[str, Tensor]]]:
    if name in ("mixtral", "llama4_text"):
        ids = torch.randint(3, 67, (2, 4, 9), generator=torch.Generator().manual_seed(0))
        return mixture_model(name, dtype), [{"input_ids": one, "attention_mask": torch.ones_like(one)} for one in ids]
    return pico_model(name, dtype=dtype), [pico_inputs(name, seed) for seed in (0, 1)]


def recorded(model: Any, batches: list[dict[str, Tensor]], keep: Any = Tensor.detach) -> list[Tensor]:
    head = random_head(model, site_generator(0, "head"))
    found = recorded_traces(model, find_sites(model, find_architecture(model)), batches, alternating_logit, head, keep)
    inputs = [one.inputs for one in found.blocks.values()] + [one.routing.inputs for one in found.mixtures.values()]
    return [*inputs, *found.cotangents().values()]


@pytest.mark.parametrize(("name", "dtype"), EACH, ids=str)
def test_the_gradients_are_the_same_to_the_bit(name, dtype):
    model, batches = model_and_batches(name, dtype)
    with recording(model):
        expected = recorded(model, batches)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with recording_by_layer(model):
        found = recorded(model, batches, on_disk)
    assert len(found) == len(expected) > 0
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert any(one.any() for one in expected[len(expected) // 2 :])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_backward_pass_runs_each_layer_once_more_from_the_last_to_the_first(dtype):
    model, (batch, _) = model_and_batches("bert", dtype)
    ran = list[int]()
    for number, layer in enumerate(layers_of(model)):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
        inner = next(module for module in layer.modules() if isinstance(module, torch.nn.Linear))
        inner.register_forward_hook(lambda *_, number=number: ran.append(10 + number))
    with recording_by_layer(model):
        recorded(model, [batch])
    forward = [one for number in range(3) for one in (10 + number, number)]
    assert ran == [*forward, 12, 11, 10]


def bytes_alive() -> int:
    """Of all storages that some tensor in Python has, those in graphs too."""
    # subclasses left over by other tests of the process, those of torch.export among them, may have no storage
    tensors = (one for one in gc.get_objects() if type(one) in (Tensor, torch.nn.Parameter) and not one.is_meta)
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())


def test_what_a_layer_computed_on_the_way_back_is_gone_when_the_one_before_it_runs():
    model, (batch, _) = model_and_batches("bert", torch.float32)
    alive = list[int]()
    for layer in layers_of(model):  # a hook on a part of it: those on the layer run on the way there alone
        first = next(module for module in layer.modules() if isinstance(module, torch.nn.Linear))
        first.register_forward_pre_hook(lambda *_: alive.append(bytes_alive()))
    with recording_by_layer(model):
        recorded(model, [batch], on_disk)
    back, state = alive[3:], batch["input_ids"].numel() * 32 * 4
    assert len(back) == 3
    # a layer leaves a gradient there, no attention and no hidden activations
    assert max(back[2] - back[1], back[1] - back[0]) <= 3 * state


def test_between_the_passes_no_layer_is_in_fp32():
    model, (batch, _) = model_and_batches("bert", torch.bfloat16)
    with recording_by_layer(model), torch.enable_grad():
        model(**batch)
        dtypes = {parameter.dtype for layer in layers_of(model) for parameter in layer.parameters()}
    assert dtypes == {torch.bfloat16}


def fail(*_: Any) -> None:
    raise ZeroDivisionError


def test_an_error_leaves_the_model_as_it_was():
    model, (batch, _) = model_and_batches("bert", torch.bfloat16)
    *_, last = layers_of(model)
    last.register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError), recording_by_layer(model):
        recorded(model, [batch])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any("forward" in vars(module) for module in model.modules())
