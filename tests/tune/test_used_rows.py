"""Embeddings of which only the rows that the texts use train: what comes out is what a dense optimiser gives."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from pico import pico_model
from transformers import AutoModelForSequenceClassification, TrainerCallback

from mlpfusion.loop.rows import RowEmbedding, used_rows
from mlpfusion.options.adapters.lora import Lora
from mlpfusion.options.training import Finetune
from mlpfusion.tune import finetune as module
from mlpfusion.tune.finetune import RunContext, finetune

CONFIG = Finetune(learning_rate=2e-3, weight_decay=0.3, epochs=3, batch_size=16, select_on="holdout", device="cpu")
VOCABULARY = 400


def wide(name: str = "bert", dtype: torch.dtype = torch.float64) -> Any:
    """A pico model with many more tokens than the texts have."""
    model = pico_model(name, AutoModelForSequenceClassification)
    model.config.pad_token_id = 0
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model.resize_token_embeddings(VOCABULARY, mean_resizing=False)
    return model.to(dtype)


def values(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture
def dense(monkeypatch):
    """A function that switches the rows off."""
    return lambda: monkeypatch.setattr(module, "used_rows", lambda *_: nullcontext())


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "modernbert"])
def test_the_model_is_that_of_a_dense_optimiser(name, task, dense):
    before = values(wide(name))
    rows, record = finetune(wide(name), task, CONFIG)
    dense()
    whole, expected = finetune(wide(name), task, CONFIG)
    assert record.trained_parameters == expected.trained_parameters
    assert record.epochs == expected.epochs
    assert values(rows).keys() == values(whole).keys()
    for key, value in values(whole).items():
        torch.testing.assert_close(values(rows)[key], value, rtol=1e-9, atol=1e-12)
    embedding = f"{rows.base_model_prefix}.{dict_name(rows)}.weight"
    assert type(rows.get_input_embeddings()) is torch.nn.Embedding
    unused = values(rows)[embedding][-1] / before[embedding][-1]
    assert bool((unused < 0.999).all())  # it decayed, by one factor
    torch.testing.assert_close(unused, unused[:1].expand_as(unused))


def dict_name(model: Any) -> str:
    base = getattr(model, model.base_model_prefix)
    return next(name for name, one in base.named_modules() if one is base.get_input_embeddings())


def test_the_rows_are_those_of_the_texts_and_of_the_padding(task):
    model = wide()
    with used_rows(model, task.train, task.collate) as rows:
        assert rows is not None
        assert rows is model.get_input_embeddings()
        tokens = {token for item in task.train.items for token in item["input_ids"]} | {0}
        assert set(rows.tokens.tolist()) == tokens
        assert rows.weight.shape == (len(tokens), 32)
        assert rows.num_others == (VOCABULARY - len(tokens)) * 32
    assert type(model.get_input_embeddings()) is torch.nn.Embedding


def test_without_gradients_every_token_has_its_row():
    whole = torch.nn.Embedding(9, 4, padding_idx=2)
    rows = RowEmbedding(whole, torch.tensor([2, 5]))
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(rows(ids), whole(ids))
        rows.decay.mul_(0.5)
        assert torch.equal(rows(ids)[0, 5], whole.weight[5])
        assert torch.equal(rows(ids)[0, 6], whole.weight[6] / 2)
    with pytest.raises(IndexError):
        rows(ids)  # in training another token would be a fault
    rows(torch.tensor([[2, 5, 5]])).sum().backward()
    assert rows.weight.grad is not None
    assert rows.weight.grad[:, 0].tolist() == [0.0, 2.0]  # none for the padding, as in torch's own


def test_a_resumed_run_leaves_the_same_bytes(task, tmp_path):
    class Stop(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 13:
                raise KeyboardInterrupt

    unbroken, record = finetune(wide(dtype=torch.float32), task, CONFIG)
    broken = wide(dtype=torch.float32)
    with pytest.raises(KeyboardInterrupt):
        finetune(broken, task, CONFIG, RunContext(tmp_path, callbacks=[Stop()]))
    assert type(broken.get_input_embeddings()) is torch.nn.Embedding
    resumed, again = finetune(wide(dtype=torch.float32), task, CONFIG, RunContext(tmp_path))
    assert again.scores == record.scores
    assert all(torch.equal(value, values(unbroken)[name]) for name, value in values(resumed).items())


def test_what_cannot_gain_is_left_alone(task):
    few, tied, frozen = pico_model("bert", AutoModelForSequenceClassification), wide(), wide()
    tied.twin = tied.get_input_embeddings()
    frozen.get_input_embeddings().weight.requires_grad_(False)
    for model in (few, tied, frozen):
        with used_rows(model, task.train, task.collate) as rows:
            assert rows is None
    seen: list[type] = []

    class Look(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(type(kwargs["model"].get_base_model().get_input_embeddings()))

    finetune(wide(), task, Finetune(lora=Lora(r=2), epochs=1, device="cpu"), RunContext(callbacks=[Look()]))
    assert set(seen) == {torch.nn.Embedding}
