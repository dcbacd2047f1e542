"""An exception on the way, wherever it comes from, leaves a live model bit for bit as it was."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pico import pico_inputs, pico_model
from task_job import HALF
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForSequenceClassification

import mlpfusion
from mlpfusion.errors import DegenerateClusteringWarning
from mlpfusion.methods.names import method_name
from mlpfusion.methods.table import CALIBRATED, ON_TASK, ONE_SHOT

BATCHES = [pico_inputs("bert")]
QUICK: dict[str, dict[str, Any]] = {
    "FLOP": {"batch_size": 96},
    "GemMiner": {"batch_size": 96, "rounds": 1},
    "LTH": {"batch_size": 96, "rounds": 1},
    "MMD": {"num_steps": 2},
    "MoEfication": {"epochs": 1},
    "NTKMatch": {"refine_epochs": 1},
    "NTKSAP": {"num_rounds": 2},
    "Slimming": {"batch_size": 96},
}
METHODS = [method(**QUICK.get(method.__name__, {})) for method in (*ONE_SHOT, *ON_TASK)]
_OFTEN = (mlpfusion.Fusion, mlpfusion.NTKMatch, mlpfusion.SVD, mlpfusion.Magnitude, mlpfusion.LTH)
every_method = pytest.mark.parametrize(
    "method",
    [method if isinstance(method, _OFTEN) else pytest.param(method, marks=pytest.mark.slow) for method in METHODS],
    ids=lambda method: method_name(type(method)),
)
SHARES = (0.0, 0.4)
FROM_THE_END = (1, 4, 13)  # operations that install blocks


class FailingAt(TorchDispatchMode):
    """Counts torch's operations, and raises `error` in the place of number `number`."""

    def __init__(self, number: int | None = None, error: type[BaseException] = MemoryError):
        super().__init__()
        self.number, self.error, self.count = number, error, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        if self.number is not None and self.count > self.number:
            raise self.error
        return func(*args, **(kwargs or {}))


def state_of(model: Any) -> tuple[Any, ...]:
    """All that a caller could see of a model: modules, modes, hooks, flags, gradients, config."""
    modules = [
        (name, id(module), module.training, len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    ]
    parameters = [(name, id(p), p.requires_grad, p.grad is None) for name, p in model.named_parameters()]
    return modules, parameters, copy.deepcopy(model.config.to_dict())


def count_operations(change: Callable[[Any], object], model: Any) -> int:
    copied, counting = copy.deepcopy(model), FailingAt()
    with counting:
        change(copied)
    return counting.count


def check_unchanged_by(change: Callable[[Any], object], model: Any) -> None:
    """Runs `change` on `model` again and again, each time failing at another of its operations."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count_operations(change, model)  # torch does a few things more the first time
    count = count_operations(change, model)
    assert count > max(FROM_THE_END)
    numbers = {int(share * count) for share in SHARES} | {count - number for number in FROM_THE_END}
    seen = state_of(model)
    for number in sorted(numbers):
        error = KeyboardInterrupt if number % 2 else MemoryError
        with pytest.raises(error), FailingAt(number, error):
            change(model)
        assert state_of(model) == seen, number
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), number


def compress(model: Any, method: Any) -> object:
    if type(method) in ON_TASK:
        return mlpfusion.compress(model, method, data=HALF, layers="last:2", keep_ratio=0.5)
    batches = BATCHES if type(method) in CALIBRATED else None
    return mlpfusion.compress(model, method, layers="last:2", keep_ratio=0.5, calibration=batches)


@every_method
def test_a_compression_that_fails_anywhere_leaves_the_model_as_it_was(method):
    model = pico_model("bert", AutoModelForSequenceClassification).eval()
    model.get_input_embeddings().weight.requires_grad_(False)
    check_unchanged_by(lambda one: compress(one, method), model)


@pytest.mark.parametrize("method", [mlpfusion.Fusion(), mlpfusion.NTKMatch(), mlpfusion.SVD(), mlpfusion.Magnitude()])
@pytest.mark.filterwarnings("ignore:the factors were multiplied", "ignore:the layers have different widths")
def test_a_folding_that_fails_anywhere_leaves_the_model_as_it_was(method):
    model = pico_model("gpt2", AutoModelForSequenceClassification).train()
    compress(model, method)
    check_unchanged_by(mlpfusion.fold, model.train())


def test_warnings_that_are_errors_leave_the_model_as_it_was():
    model = pico_model("bert")
    mlp = model.encoder.layer[0]
    with torch.no_grad():  # a degenerate clustering
        for weight in (mlp.intermediate.dense.weight, mlp.intermediate.dense.bias, mlp.output.dense.weight.T):
            weight[26:] = weight[26].clone()
    seen = state_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DegenerateClusteringWarning):
            mlpfusion.compress(model, mlpfusion.Fusion(), layers="0", width=27)
        assert state_of(model) == seen
        mlpfusion.compress(model, mlpfusion.SVD(), layers="0", keep_ratio=0.5)
        seen = state_of(model)
        with pytest.raises(UserWarning, match="the factors were multiplied"):
            mlpfusion.fold(model)
    assert state_of(model) == seen
