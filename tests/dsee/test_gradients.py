"""Gradients of the loss by linear map: the scores behind `omega=gradient`."""

from typing import Any

import pytest
import torch
from pico import pico_model
from transformers import AutoModelForSequenceClassification

from mlpfusion.dsee.gradients import loss_gradients

IDS = torch.randint(3, 60, (6, 7), generator=torch.Generator().manual_seed(0))
BATCH = {"input_ids": IDS, "labels": torch.tensor([0, 1, 1, 0, 1, 0])}


def parts_of(*sizes: int) -> list[dict[str, torch.Tensor]]:
    ids, labels = (one.split(list(sizes)) for one in BATCH.values())
    return [{"input_ids": some, "labels": own} for some, own in zip(ids, labels, strict=True)]


@pytest.fixture(params=["bert", "gpt2"])
def model(request) -> Any:
    return pico_model(request.param, AutoModelForSequenceClassification).double()


def test_they_are_those_of_the_whole_pass_in_any_batches(model):
    found = [loss_gradients(model, batches) for batches in ([BATCH], parts_of(4, 2), parts_of(1, 2, 3))]
    assert all(one.keys() == found[0].keys() for one in found)
    is_bert = model.config.model_type == "bert"
    assert len(found[0]) == (6 if is_bert else 3)
    for path, gradient in found[0].items():
        for other in found[1:]:
            torch.testing.assert_close(other[path], gradient, rtol=1e-9, atol=1e-12)
    model.eval()(**BATCH).loss.backward()
    for path, gradient in found[0].items():
        expected = model.get_submodule(path).weight.grad * len(IDS)
        torch.testing.assert_close(gradient, expected if is_bert else expected.T, rtol=1e-9, atol=1e-12)


def test_the_targets_are_those_of_the_adapter(model):
    every = loss_gradients(model, [BATCH], "all-linear")
    assert len(every) > 12
    assert not every["score" if "score" in every else "classifier"].eq(0).all()
    some = loss_gradients(model, [BATCH], ["c_proj", "key"])
    assert {path.rpartition(".")[2] for path in some} <= {"c_proj", "key"}
    assert some
    assert all(torch.equal(every[path], gradient) for path, gradient in some.items())


def test_a_map_that_no_example_reaches_has_the_gradient_zero(model):
    model.spare = torch.nn.Linear(3, 2).double()
    assert loss_gradients(model, [BATCH], ["spare"])["spare"].tolist() == [[0.0] * 3] * 2


def test_the_model_stays_as_it_was(model):
    model.train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (loss_gradients(model, [BATCH]) for _ in range(2))  # the same twice: no dropout
    assert all(torch.equal(second[path], gradient) for path, gradient in first.items())
    assert model.training
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
