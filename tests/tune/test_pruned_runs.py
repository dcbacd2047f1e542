"""A pruned model that trains on: its zeros are zeros after every step, and after a kill."""

from pathlib import Path

import pytest
import torch
from pico import pico_model
from test_states import StopAfter, StopError
from tiny_task import make_task
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from mlpfusion.dsee.magnitude import layer_maps, zero_smallest
from mlpfusion.options.training import Finetune
from mlpfusion.tune.finetune import RunContext, train_again
from mlpfusion.tune.record import RunRecord

TRAINING = Finetune(learning_rate=2e-3, epochs=2, batch_size=16, weight_decay=0.1, save_steps=2, device="cpu")


def pruned(name: str = "bert") -> PreTrainedModel:
    """A classifier, half of whose weights are zero."""
    model = pico_model(name, AutoModelForSequenceClassification)
    model.config.pad_token_id = 0
    zero_smallest(model, 0.5)
    return model


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """All numbers of the model, copied."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def train(model: PreTrainedModel, folder: Path | None = None, stop: int | None = None) -> RunRecord:
    callbacks = [] if stop is None else [StopAfter(stop)]
    return train_again(model, make_task(), TRAINING, RunContext(folder, callbacks=callbacks))


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_zeros_stay_exactly_zero_through_adam_and_weight_decay(name):
    model = pruned(name)
    before = weights(model)
    record = train(model)
    for path, linear in layer_maps(model).items():
        old, new = before[f"{path}.weight"], linear.weight.detach()
        assert bool((new[old == 0] == 0).all())
        assert bool((new[old != 0] != old[old != 0]).any())
    assert record.before is not None
    assert record.trained_parameters == model.num_parameters()


def test_a_resumed_run_has_the_same_weights_with_the_same_zeros(tmp_path):
    whole, stopped, resumed = pruned(), pruned(), pruned()
    zeros = {path: linear.weight == 0 for path, linear in layer_maps(whole).items()}
    expected = train(whole, tmp_path / "whole")
    with pytest.raises(StopError):
        train(stopped, tmp_path / "stopped", stop=9)
    assert (tmp_path / "stopped" / "checkpoint-8").is_dir()
    found = train(resumed, tmp_path / "stopped")
    assert (found.scores, found.before, found.training_loss) == (
        expected.scores,
        expected.before,
        expected.training_loss,
    )
    after = weights(resumed)
    assert all(torch.equal(value, after[name]) for name, value in weights(whole).items())
    assert all(torch.equal(after[f"{path}.weight"] == 0, zero) for path, zero in zeros.items())
