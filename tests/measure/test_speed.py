"""Time in turns, the training step that is timed, its FLOPs by hand, and the peak memory beside them."""

import subprocess
import sys

import pytest
import torch
from pico import pico_inputs, pico_model
from transformers import AutoModelForSequenceClassification

import mlpfusion
from mlpfusion.measure.speed import forward_seconds, seconds_in_turns, training_step, training_step_flops


@pytest.fixture
def model():
    return pico_model("bert", AutoModelForSequenceClassification)


@pytest.fixture
def batch():
    inputs = pico_inputs("bert")
    return inputs | {"labels": torch.zeros(len(inputs["input_ids"]), dtype=torch.long)}


def test_steps_take_turns_and_the_first_ones_do_not_count():
    calls = []
    taken = seconds_in_turns([lambda: calls.append("a"), lambda: calls.append("b")], repeats=3, warm_up=2)
    assert calls == ["a", "b"] * 5
    assert [len(one) for one in taken] == [3, 3]
    assert all(second > 0 for one in taken for second in one)


def test_a_forward_pass_is_timed_and_leaves_no_gradient(model):
    first, second = forward_seconds([model, model], pico_inputs("bert"), repeats=2)
    assert first > 0
    assert second > 0
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_a_training_step_trains_every_weight_but_not_p(autocast, model, batch):
    mlpfusion.compress(model, mlpfusion.Fusion(), width=14)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step = training_step(model.eval(), batch, autocast=autocast)  # without dropout the loss falls
    losses = [float(step()) for _ in range(20)]
    assert losses[-1] < losses[0]
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name, _ in model.named_parameters()}
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("width", [None, 14])
def test_the_flops_are_those_of_the_matrices_and_of_attention(width, model, batch):
    if width is not None:
        mlpfusion.compress(model, mlpfusion.Fusion(), width=width)
    model.set_attn_implementation("eager")
    samples, tokens = batch["input_ids"].shape
    layers, hidden = model.config.num_hidden_layers, model.config.hidden_size
    block = 4 * hidden * hidden + 2 * hidden * (width or model.config.intermediate_size) + 2 * tokens * hidden
    head = hidden * hidden + 2 * hidden  # the pooler and the classifier see one token a sample
    forward = 2 * samples * (tokens * layers * block + head)
    assert training_step_flops(model, batch) == 3 * forward
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.slow
def test_the_peak_of_a_process_is_its_own_and_not_that_of_its_parent():
    large = torch.ones(200_000_000)
    command = "import torch; from mlpfusion.record import peak_bytes; print(peak_bytes(torch.device('cpu')))"
    found = subprocess.run([sys.executable, "-c", command], check=True, stdout=subprocess.PIPE, text=True)
    assert 50_000_000 < int(found.stdout) < 4 * large.numel()
