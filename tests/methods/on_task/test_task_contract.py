"""What every task method must hold, tested by being in the table."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pico import others_slow, pico_model, pico_outputs, sites_of
from task_job import HALF
from tiny_task import make_task
from transformers import AutoModel, AutoModelForSequenceClassification

import mlpfusion
from mlpfusion.data.encode import EncodedExamples, EncodedTask
from mlpfusion.errors import DivergenceError, InputError
from mlpfusion.methods.names import method_name
from mlpfusion.methods.table import ON_TASK
from mlpfusion.options.training import Finetune
from mlpfusion.sites.sites import base_model, linear_maps
from mlpfusion.tune.finetune import finetune

# bert is plain, gpt2 transposed, llama gated, modernbert has gate and up in one map.
NAMES = ["bert", "gpt2", "llama", "modernbert"]
# Options that change something within the few steps of the small HALF.
OPTIONS: dict[str, dict[str, Any]] = {
    "LTH": {"learning_rate": 5e-3, "batch_size": 16},
    "GemMiner": {"learning_rate": 5e-2, "batch_size": 16},
    "FLOP": {"learning_rate": 1e-3, "batch_size": 16},
    "Slimming": {"learning_rate": 1e-3, "batch_size": 16},
    "MoEfication": {"epochs": 3, "batch_size": 64},
}
METHODS = [method(**OPTIONS.get(method.__name__, {})) for method in ON_TASK]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: method_name(type(m)))
every_name = pytest.mark.parametrize("name", others_slow(NAMES))


def with_head(name: str = "bert", **options: Any) -> Any:
    return pico_model(name, AutoModelForSequenceClassification, **options)


def compressed(name: str, method: Any, task: EncodedTask, **options: Any) -> Any:
    model = with_head(name, **{key: options.pop(key) for key in ("dtype",) if key in options})
    run(model, method, task, **options)
    return model


def run(model: Any, method: Any, task: EncodedTask, **options: Any) -> mlpfusion.Record:
    return mlpfusion.compress(model, method, data=task, **{"layers": "last:2", "keep_ratio": 0.25, **options})


def values(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def outside(model: Any) -> dict[str, torch.Tensor]:
    """The values outside the MLPs of the last two layers."""
    sites = sites_of(model)[-2:]
    prefix = "" if base_model(model) is model else f"{model.base_model_prefix}."
    inside = tuple(f"{prefix}{path}." for site in sites for path in linear_maps(site))
    return {name: value for name, value in values(model).items() if not name.startswith(inside)}


@every_method
@every_name
def test_all_but_the_blocks_stays_bit_by_bit_and_so_do_data_and_random_streams(name, method):
    model = with_head(name).train()
    model.get_input_embeddings().weight.requires_grad_(False)
    before, items = outside(model), [dict(item) for item in HALF.train.items]
    states = random.getstate(), torch.random.get_rng_state(), str(np.random.get_state(legacy=False))
    record = run(model, method, HALF)
    assert same(outside(model), before)
    assert len(before) > 10
    assert not any(module.training for module in model.modules())
    assert not model.get_input_embeddings().weight.requires_grad
    assert sum(not parameter.requires_grad for parameter in model.parameters()) == 1
    assert HALF.train.items == items
    assert random.getstate() == states[0]
    assert torch.equal(torch.random.get_rng_state(), states[1])
    assert str(np.random.get_state(legacy=False)) == states[2]
    assert [site.layer for site in record.sites] == [1, 2]
    assert record.recipe["task"]["samples"] == 96
    assert model.config.mlp_fusion["method"] == record.recipe["method"] == method_name(type(method))


@every_method
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(method):
    first, second, third = (values(compressed("bert", method, HALF, seed=seed)) for seed in (3, 3, 4))
    assert same(first, second)
    assert not same(first, third)


@every_method
def test_the_reported_splits_are_not_looked_at(method):
    blind = replace(HALF, evaluation={})
    assert same(values(compressed("bert", method, blind)), values(compressed("bert", method, HALF)))


@every_method
@every_name
def test_the_kept_share_is_exact(name, method):
    model = with_head(name)
    original = values(model)
    record = run(model, method, HALF)
    if record.sites[0].kind == "masked":
        sites = sites_of(model)[-2:]
        paths = [path for site in sites for path in linear_maps(site)]
        weights = [base_model(model).get_submodule(path).get_parameter("weight") for path in paths]
        total = sum(weight.numel() for weight in weights)
        assert sum(int((weight == 0).sum()) for weight in weights) == round(0.75 * total)
        after = values(model)
        moved = {name for name, value in after.items() if not torch.equal(value, original[name])}
        assert len(moved) == len(weights)
        assert all(((after[name] == original[name]) | (after[name] == 0)).all() for name in moved)
    elif record.sites[0].kind == "narrow":
        fewer = mlpfusion.compress(with_head(name), mlpfusion.NeuronPruning(), layers="last:2", keep_ratio=0.25)
        assert record.compressed.parameters == fewer.compressed.parameters
    elif record.sites[0].kind == "low-rank":
        svd = mlpfusion.compress(with_head(name), mlpfusion.SVD(), layers="last:2", keep_ratio=0.25)
        assert record.compressed.parameters == svd.compressed.parameters
    else:
        assert {site.metrics["active_share"] for site in record.sites} == {0.25}
        assert record.compressed.parameters == record.original.parameters


@every_method
@pytest.mark.parametrize("name", ["gpt2", "modernbert"])
def test_keeping_all_changes_nothing(name, method):
    model = with_head(name)
    before = pico_outputs(model, name)
    record = run(model, method, HALF, keep_ratio=1.0)
    if record.sites[0].kind != "low-rank":  # whose factors are trained
        assert torch.equal(pico_outputs(model, name), before)


@every_method
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.bfloat16) for name in NAMES] + [("bert", torch.float32), ("modernbert", torch.float32)],
)
def test_reload_is_bit_exact(name, dtype, method, tmp_path):
    model = compressed(name, method, HALF, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=dtype)
    assert same(values(loaded), values(model))
    assert torch.equal(pico_outputs(loaded, name), pico_outputs(model, name))
    bare = AutoModel.from_pretrained(tmp_path, dtype=dtype)
    assert all(
        torch.equal(value, model.state_dict()[f"{model.base_model_prefix}.{key}"])
        for key, value in bare.state_dict().items()
        if "pooler" not in key
    )


@every_method
@pytest.mark.parametrize("name", ["gpt2", "modernbert"])
def test_fine_tuning_moves_what_is_stored_and_keeps_zeros_and_routers(name, method):
    model = compressed(name, method, HALF)
    before = values(model)
    config = Finetune(learning_rate=2e-3, epochs=1, batch_size=16, max_train_samples=32, device="cpu", select_on="last")
    trained, _ = finetune(model, replace(HALF, evaluation={"validation": HALF.train.subset([0, 1])}), config)
    after = values(trained)
    for key, value in before.items():
        if "router" in key:
            assert torch.equal(after[key], value)
            assert after[key].dtype == torch.int32
    sites = sites_of(trained)[-2:]
    for path in (path for site in sites for path in linear_maps(site)):
        linear = base_model(trained).get_submodule(path)
        for key, weight in linear.named_parameters():
            old = before[f"{trained.base_model_prefix}.{path}.{key}"]
            assert not torch.equal(weight, old), (path, key)
            if weight.ndim == 2:
                assert (weight[old == 0] == 0).all()


@every_method
def test_pairs_of_sentences_work_too(method):
    pairs = make_task(pairs=True)
    assert pairs.train[0]["input_ids"].count(2) == 2
    assert run(with_head(), method, pairs).sites


@every_method
@pytest.mark.parametrize("name", ["t5-gated", "opt"])
def test_decoders_and_encoder_decoders_work_too(name, method):
    model = with_head(name)
    model.config.pad_token_id = 0
    before = pico_outputs(model, name)
    run(model, method, HALF, layers="last:1")
    after = pico_outputs(model, name)
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)


@every_method
def test_a_loss_that_is_not_finite_leaves_the_model_as_it_was(method):
    if method_name(type(method)) == "moefication":  # which has no such loss
        return
    model = with_head()
    seen: list[int] = []

    def spoil(module: Any, _args: Any, output: Any) -> Any:
        seen.append(1)
        if len(seen) > 3:
            output.loss = output.loss * float("nan")
        return output

    handle = model.register_forward_hook(spoil)
    before = values(model)
    with pytest.raises(DivergenceError, match="`learning_rate` must be small enough for a finite loss"):
        run(model, method, HALF)
    handle.remove()
    assert same(values(model), before)
    assert getattr(model.config, "mlp_fusion", None) is None


@every_method
def test_bad_input_is_refused_and_leaves_the_model_as_it_was(method):
    model = with_head()
    before = values(model)
    wrong = EncodedExamples([item | {"labels": 2} for item in HALF.train.items])
    for data, options, message in [
        (HALF, {"keep_ratio": 0.0}, "`keep_ratio` must be above 0 and at most 1, got 0.0"),
        (HALF, {"layers": "last:9"}, "`layers=last:N` must have N between 1 and 3, got 9"),
        ("half", {}, "`data` must be an `EncodedTask`, as `encode_task` makes one, got 'half'"),
        (replace(HALF, train=EncodedExamples([])), {}, "`data` must hold at least one training example, got none"),
        (
            replace(HALF, train=wrong),
            {},
            "`labels` of the training examples must be between 0 and 1, got 2 in example 0",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            run(model, method, data, **options)
    assert same(values(model), before)
    with torch.no_grad():
        model.bert.encoder.layer[2].output.dense.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="the weights must be finite, got 1 NaN or Inf in bert.encoder.layer.2"):
        run(model, method, HALF)
    with pytest.raises(InputError, match="`model` must have a head for sequence classification, got BertModel"):
        run(pico_model("bert"), method, HALF)


@every_method
def test_a_model_is_compressed_once(method):
    model = compressed("bert", method, HALF)
    with pytest.raises(InputError, match="`model` must not be compressed already"):
        run(model, method, HALF)


@every_method
@pytest.mark.parametrize(
    ("field", "value"), [("epochs", 0), ("batch_size", 0), ("learning_rate", 0.0), ("learning_rate", 1.5)]
)
def test_options_out_of_range_are_refused(field, value, method):
    with pytest.raises(ValueError, match=f"`{field}` must be"):
        type(method)(**{field: value})


def test_a_method_that_does_not_learn_on_a_task_is_refused():
    with pytest.raises(InputError, match="`data` must be left out for magnitude, which does not learn on a task"):
        run(with_head(), mlpfusion.Magnitude(), HALF)
