"""One run: what follows the seed, what training leaves alone, what it refuses."""

import math
import random
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pico import pico_model
from transformers import AutoModelForSequenceClassification, GPT2Model

import mlpfusion
from mlpfusion.data.chosen import split_train
from mlpfusion.data.encode import EncodedTask
from mlpfusion.errors import InputError
from mlpfusion.options.adapters.lora import Lora, parse_lora
from mlpfusion.options.training import Finetune
from mlpfusion.tune.finetune import RunContext, finetune
from mlpfusion.tune.trainer import DivergenceError, LengthGroupedOrder

FAST = Finetune(learning_rate=2e-3, epochs=2, batch_size=8, device="cpu")


def fused(name: str = "bert") -> Any:
    model = pico_model(name, AutoModelForSequenceClassification)
    mlpfusion.compress(model, mlpfusion.Fusion(), layers="last:2", keep_ratio=0.25)
    return model


def with_fields(config: Finetune, **changes: Any) -> Finetune:
    return Finetune(**{**config.__dict__, **changes})


def same(first: Any, second: Any) -> bool:
    values = second.state_dict()
    return all(torch.equal(value, values[name]) for name, value in first.state_dict().items())


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(task):
    runs = [finetune(fused(), task, with_fields(FAST, seed=seed)) for seed in (7, 7, 8)]
    (first, one), (second, two), (third, _) = runs
    assert same(first, second)
    assert one.epochs == two.epochs
    assert one.training_loss == two.training_loss
    assert not same(first, third)


def test_the_global_random_streams_are_left_alone(task):
    states = random.getstate(), torch.random.get_rng_state()
    numbers = np.random.get_state(legacy=False)
    finetune(fused(), task, with_fields(FAST, epochs=1))
    assert random.getstate() == states[0]
    assert torch.equal(torch.random.get_rng_state(), states[1])
    assert str(np.random.get_state(legacy=False)) == str(numbers)


def test_a_device_that_is_not_there_is_refused_before_adapters_go_in(task, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = fused()
    modules = dict(model.named_modules())
    with pytest.raises(InputError, match="`device` must be cpu or auto on this machine, got 'cuda'"):
        finetune(model, task, with_fields(FAST, lora=Lora(r=2), device="cuda"))
    assert dict(model.named_modules()) == modules


@pytest.mark.parametrize("lora", [None, Lora(r=2)])
def test_the_scales_stay_and_the_config_too(lora, task, tmp_path):
    model = fused()
    scales = {name: value.clone() for name, value in model.named_buffers() if name.endswith("output_scale")}
    key, use_cache = model.config.mlp_fusion, model.config.use_cache
    weights = {name: value.clone() for name, value in model.named_parameters()}
    trained, _ = finetune(model, task, with_fields(FAST, lora=lora))
    after = dict(trained.named_buffers())
    assert len(scales) == 2
    assert all(torch.equal(value, after[name]) and value.dtype == torch.int32 for name, value in scales.items())
    assert (trained.config.mlp_fusion, trained.config.use_cache) == (key, use_cache)
    assert not trained.training
    moved = {name for name, value in trained.named_parameters() if not torch.equal(value, weights[name])}
    expected = {
        name for name in weights if lora is None or "classifier" in name or "query.w" in name or "value.w" in name
    }
    assert moved == expected
    trained.save_pretrained(tmp_path)
    assert same(AutoModelForSequenceClassification.from_pretrained(tmp_path), trained)


@pytest.mark.parametrize("targets", [None, "all-linear"])
def test_lora_leaves_the_base_untouched_bit_by_bit(targets, task, monkeypatch):
    """Until the adapter is merged, every weight under it is what it was; the head alone trains beside the factors."""
    model = fused()
    before = {name: value.clone() for name, value in model.named_parameters()}
    monkeypatch.setattr(sys.modules["mlpfusion.tune.adapter"], "merge_adapter", lambda adapted: adapted)
    adapted, _ = finetune(model, task, with_fields(FAST, epochs=1, lora=Lora(r=2, targets=targets)))
    after = {
        name.removeprefix("base_model.model.").replace("base_layer.", ""): value
        for name, value in adapted.named_parameters()
        if "lora_" not in name and "modules_to_save" not in name
    }
    base = {name.replace("original_module.", ""): value for name, value in after.items()}
    assert base.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in base.items())
    factors = [value for name, value in adapted.named_parameters() if "lora_B" in name]
    assert factors
    assert all(value.count_nonzero() for value in factors)


def test_masked_zeros_stay_zero(task):
    model = pico_model("bert", AutoModelForSequenceClassification)
    mlpfusion.compress(model, mlpfusion.Magnitude(), keep_ratio=0.5)
    zeros = {name: value == 0 for name, value in model.named_parameters() if "dense.weight" in name}
    trained, _ = finetune(model, task, FAST)
    assert sum(int(zero.sum()) for zero in zeros.values()) > 1000
    values = dict(trained.named_parameters())
    assert all((values[name][zero] == 0).all() for name, zero in zeros.items())
    with pytest.raises(InputError, match="`lora` must be left out for a masked model"):
        finetune(model, task, with_fields(FAST, lora=Lora()))


def test_the_task_is_learned_and_the_best_epoch_kept(task):
    model, record = finetune(fused(), task, with_fields(FAST, epochs=8, holdout=0.3))
    assert record.scores["validation"]["accuracy"] > 0.8
    scores = [epoch.scores["accuracy"] for epoch in record.epochs]
    assert record.selection_score == max(scores)
    assert record.best_step == record.epochs[scores.index(max(scores))].step
    batch = task.collate([task.evaluation["validation"][index] for index in range(40)])
    with torch.no_grad():
        found = model(**batch).logits.argmax(-1)
    assert float((found == batch["labels"]).float().mean()) == pytest.approx(record.scores["validation"]["accuracy"])


@pytest.mark.slow
def test_evaluation_batches_hold_texts_of_similar_length(task):
    lengths: list[list[int]] = []

    def collate(items: list[dict[str, Any]]) -> Any:
        lengths.append([len(item["input_ids"]) for item in items])
        return task.collate(items)

    finetune(fused(), replace(task, collate=collate), with_fields(FAST, epochs=1, select_on="last"))
    reported = task.evaluation["validation"].lengths
    assert len(set(reported)) > 1
    evaluated = lengths[-math.ceil(len(reported) / (2 * FAST.batch_size)) :]
    assert [length for batch in evaluated for length in batch] == sorted(reported)


def test_the_held_out_part_and_the_reported_split_do_not_train(task):
    """Other labels in the reported split change nothing but the report."""
    flipped = [item | {"labels": 1 - item["labels"]} for item in task.evaluation["validation"].items]
    other = EncodedTask(task.task, task.train, {"validation": type(task.train)(flipped)}, "", task.collate)
    (first, one), (second, two) = finetune(fused(), task, FAST), finetune(fused(), other, FAST)
    assert same(first, second)
    accuracies = [record.scores["validation"]["accuracy"] for record in (one, two)]
    assert sum(accuracies) == pytest.approx(1)
    train, held_out = split_train(task, FAST)
    assert held_out is not None
    assert (len(train), len(held_out)) == (86, 10)
    everything = sorted(map(str, train.items + held_out.items))
    assert everything == sorted(map(str, task.train.items))


def test_the_split_does_not_depend_on_the_seed_of_the_run(task):
    parts = [split_train(task, with_fields(FAST, seed=seed, max_train_samples=40)) for seed in (0, 1)]
    assert parts[0][0].items == parts[1][0].items
    assert len(parts[0][0]) == 36
    assert split_train(task, with_fields(FAST, split_seed=1))[0].items != split_train(task, FAST)[0].items
    whole, nothing = split_train(task, with_fields(FAST, select_on="last"))
    assert (len(whole), nothing) == (96, None)
    assert split_train(task, with_fields(FAST, select_on="validation"))[1] is task.evaluation["validation"]


def test_a_run_is_scored_every_so_many_steps_and_chooses_nothing(task):
    config = with_fields(FAST, select_on="last")
    steps = finetune(fused(), task, config)[1].steps
    _, record = finetune(fused(), task, with_fields(config, eval_steps=steps // 4))
    assert [entry.step for entry in record.epochs] == [steps // 4 * part for part in (1, 2, 3, 4)][: len(record.epochs)]
    assert record.epochs[-1].step == steps == record.best_step
    assert record.selected_on is record.selection_score is None
    (split,) = record.scores.values()
    assert {name: split[name] for name in record.epochs[-1].scores} == record.epochs[-1].scores
    assert record.epochs[0].loss != record.epochs[-1].loss


def test_scores_between_choices_are_refused():
    with pytest.raises(InputError, match="`eval_steps` must be left out for select_on=holdout, which scores after"):
        with_fields(FAST, eval_steps=3)
    with pytest.raises(InputError, match="`eval_steps` must be at least 1, got 0"):
        with_fields(FAST, select_on="last", eval_steps=0)


def test_patience_ends_a_run_that_gets_no_better(task):
    hopeless = with_fields(FAST, learning_rate=1e-9, epochs=6, patience=2)
    _, record = finetune(fused(), task, hopeless)
    assert [epoch.epoch for epoch in record.epochs] == [1, 2, 3]
    assert record.best_step == record.epochs[0].step


@pytest.mark.parametrize("rate", [1e-3, 0.9])
def test_a_loss_that_is_not_finite_stops_the_run(rate, task, tmp_path):
    model = fused()
    if rate == 1e-3:  # poisoned from the start
        with torch.no_grad():
            model.classifier.weight[0, 0] = float("inf")
    else:
        model.register_forward_hook(_explode_after(14))
    with pytest.raises(DivergenceError, match="`learning_rate` must be small enough for a finite loss") as caught:
        finetune(model, task, with_fields(FAST, learning_rate=rate), RunContext(tmp_path))
    saved = [path.name for path in tmp_path.glob("checkpoint-*/complete")]
    if rate == 1e-3:
        assert not saved
        assert "in step 1; no state had been saved yet" in str(caught.value)
    else:
        assert f"in step 15; the last good state is {tmp_path / 'checkpoint-11'}" in str(caught.value)


def _explode_after(steps: int) -> Any:
    seen = []

    def hook(module: Any, _args: Any, output: Any) -> Any:
        seen.append(module.training)
        if sum(seen) > steps:
            output.loss = output.loss * float("nan")
        return output

    return hook


def test_another_head_and_no_head_are_refused(task):
    model = fused()
    model.config.num_labels = 3
    with pytest.raises(InputError, match="`model` must have a head of 2 outputs for the task, got 3"):
        finetune(model, task, FAST)
    bare: Any = pico_model("gpt2")
    assert isinstance(bare, GPT2Model)
    with pytest.raises(InputError, match="`model` must have a head for sequence classification, got GPT2Model"):
        finetune(bare, task, FAST)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("learning_rate", 0.0, "`learning_rate` must be above 0 and below 1, got 0.0"),
        ("learning_rate", float("nan"), "`learning_rate` must be a finite number, got nan"),
        ("epochs", 0, "`epochs` must be at least 1, got 0"),
        ("batch_size", 0, "`batch_size` must be at least 1, got 0"),
        ("warmup_ratio", 1.0, "`warmup_ratio` must be at least 0 and below 1, got 1.0"),
        ("holdout", 1.5, "`holdout` must be above 0 and below 1, got 1.5"),
        ("select_on", "test", "`select_on` must be one of holdout, validation, last, got 'test'"),
        ("precision", "int8", "`precision` must be one of fp32, bf16, fp16, got 'int8'"),
        ("patience", 0, "`patience` must be at least 1, got 0"),
    ],
)
def test_values_out_of_range_are_refused(field, value, message):
    with pytest.raises(InputError, match=message):
        Finetune(**{field: value})


def test_lora_on_a_low_rank_map_says_what_its_factors_are_called(task):
    model = pico_model("bert", AutoModelForSequenceClassification)
    mlpfusion.compress(model, mlpfusion.SVD(), layers="last:2", keep_ratio=0.5)
    with pytest.raises(
        InputError, match=r"got query\+intermediate.dense for .*: name those in it, left\+right"
    ) as caught:
        finetune(model, task, with_fields(FAST, lora=Lora(targets="query+intermediate.dense")))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_lora_is_parsed():
    assert parse_lora("r=8") == Lora(r=8)
    assert parse_lora("r=4, alpha=32,dropout=0.1,targets=all-linear") == Lora(4, 32.0, 0.1, "all-linear")
    for text, message in [
        ("8", "`lora` must be NAME=VALUE among r, alpha, dropout, targets, .* got '8'"),
        ("rank=8", "got 'rank=8'"),
        ("r=0", "`lora r` must be a whole number of at least 1, got 0"),
        ("r=x", "`lora r` must be a number, got 'x'"),
    ]:
        with pytest.raises(InputError, match=message):
            parse_lora(text)


@pytest.mark.parametrize("seed", [0, 3])
def test_the_order_of_the_data_follows_the_seed_and_the_epoch_alone(seed):
    lengths = torch.randint(1, 50, (200,), generator=torch.Generator().manual_seed(seed)).tolist()
    order = LengthGroupedOrder(lengths, 8, seed)
    first = list(order)
    order.set_epoch(1)
    second = list(order)
    order.set_epoch(0)
    assert list(order) == first != second
    assert sorted(first) == list(range(200))
    longest = [max(lengths[i] for i in first[start : start + 8]) for start in range(0, 200, 8)]
    padded = 8 * sum(longest)
    assert padded < 1.3 * sum(lengths)
