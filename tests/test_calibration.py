"""Calibration on whole models: traces from batches, sequential or not, and weights of the tokens."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from pico import HIDDEN, others_slow, pico_inputs, pico_model, pico_outputs, sites_of
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

import mlpfusion
from mlpfusion.compression.calibration.outcomes import calibrated_outcomes
from mlpfusion.compression.calibration.traces import calibration_head, trace_calibration
from mlpfusion.compression.plan import make_plan
from mlpfusion.compression.run import MethodRun
from mlpfusion.errors import InputError
from mlpfusion.kernel import alternating_logit
from mlpfusion.measure.approximation import Probe
from mlpfusion.methods.block import Block
from mlpfusion.methods.calibrated.calibration import Calibration
from mlpfusion.methods.names import method_label
from mlpfusion.methods.needs import calibration_needs
from mlpfusion.methods.table import METHODS
from mlpfusion.mlp import forward
from mlpfusion.options.selection import Selection
from mlpfusion.sites.recording import recording
from mlpfusion.sites.sites import read_mlp, site_module
from mlpfusion.sites.traces import mlp_inputs, recorded_traces

METHOD = mlpfusion.MaintainOutput()


def batches_of(name: str, dtype: torch.dtype = torch.float32) -> list[dict[str, torch.Tensor]]:
    found = [pico_inputs(name, seed) for seed in range(3)]
    return [{k: x.to(dtype) if x.is_floating_point() else x for k, x in batch.items()} for batch in found]


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def watched(
    model: Any, batches: Any, *, sequential: bool, monkeypatch: Any, method: Any = METHOD
) -> tuple[dict[str, Calibration], Any]:
    """What the method was given at every site, by the order of the calls, and the outcomes."""
    seen: list[Calibration] = []
    row = METHODS[type(method)]

    def spy(block: Block, config: Any) -> Any:
        seen.append(block.inputs)
        return row.compress(block, config)

    monkeypatch.setitem(METHODS, type(method), replace(row, compress=spy))
    plan = make_plan(sites_of(model), Selection(width=9))
    run = MethodRun(plan, method, 5, torch.device("cpu"), lambda *_: None)
    outcomes, _ = calibrated_outcomes(model, run, batches, sequential=sequential)
    return {site.path: one for site, one in zip(plan.sites, seen, strict=True)}, outcomes


@pytest.mark.parametrize("name", others_slow())
def test_every_site_is_calibrated_on_what_the_original_model_sees(name, monkeypatch):
    model, batches = pico_model(name), batches_of(name)
    found, _ = watched(model, batches, sequential=False, monkeypatch=monkeypatch)
    traces = recorded_traces(model, sites_of(model), batches, alternating_logit, calibration_head(model, 5)).blocks
    for site in sites_of(model):
        assert torch.equal(found[site.path].trace.inputs, traces[site.path].inputs)
        assert torch.equal(found[site.path].trace.cotangents, traces[site.path].cotangents)
        assert torch.equal(
            found[site.path].targets_of(read_mlp(model, site)), forward(read_mlp(model, site), traces[site.path].inputs)
        )


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5"])
def test_sequential_inputs_are_those_of_the_compressed_model_and_targets_those_of_the_original(name, monkeypatch):
    model, batches = pico_model(name), batches_of(name)
    plain, _ = watched(model, batches, sequential=False, monkeypatch=monkeypatch)
    found, outcomes = watched(model, batches, sequential=True, monkeypatch=monkeypatch)
    sites = sites_of(model)
    final = copy.deepcopy(model)
    mlpfusion.compress(final, METHOD, width=9, seed=5, calibration=batches, sequential=True)
    inputs = mlp_inputs(final, sites, batches)
    for index, (site, outcome) in enumerate(zip(sites, outcomes, strict=True)):
        assert torch.equal(
            found[site.path].targets_of(read_mlp(model, site)), plain[site.path].targets_of(read_mlp(model, site))
        )
        assert torch.equal(found[site.path].trace.cotangents, plain[site.path].trace.cotangents)
        torch.testing.assert_close(found[site.path].trace.inputs, inputs[site.path])
        change = (found[site.path].trace.inputs - plain[site.path].trace.inputs).abs().max()
        assert (float(change) < 1e-4) == (index == 0)  # not 0: T5 attends by another kernel without gradients
        assert torch.equal(read_mlp(final, site).up, outcome.mlp.up)


def test_the_head_of_the_calibration_is_not_that_of_the_measurement_with_the_same_seed():
    model = pico_model("bert")
    calibrated, measured = calibration_head(model, 0), Probe("logit", 0).head(model)
    assert measured is not None
    cosine = torch.nn.functional.cosine_similarity(calibrated.weight[:, None], measured.weight, dim=2)
    assert float(cosine.abs().max()) < 0.6
    assert torch.equal(calibrated.weight, calibration_head(model, 0).weight)
    assert not torch.equal(calibrated.weight, calibration_head(model, 1).weight)


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("name", others_slow(("bert", "opt", "llama"), quick=("llama",)))
def test_without_a_match_no_gradient_is_recorded_and_the_blocks_are_the_same(name, sequential, monkeypatch):
    model, batches = pico_model(name), batches_of(name)
    method = mlpfusion.NTKMatch(match="none", refine_epochs=1)
    found, outcomes = watched(model, batches, sequential=sequential, monkeypatch=monkeypatch, method=method)
    for one in found.values():
        assert one.trace.cotangents.shape == one.trace.inputs.shape
        assert one.trace.cotangents.untyped_storage().size() == 4
        assert not one.trace.cotangents.any()
    full = trace_calibration(model, sites_of(model), batches, 5)
    assert all(trace.cotangents.any() for trace in full.traces.values())
    _, expected = watched(model, full, sequential=sequential, monkeypatch=monkeypatch, method=method)
    for outcome, other in zip(outcomes, expected, strict=True):
        assert outcome.mlp.up.shape == other.mlp.up.shape
        torch.testing.assert_close(outcome.mlp.down, other.mlp.down, rtol=1e-3, atol=1e-4)


def test_the_head_of_a_classifier_is_not_used(monkeypatch):
    model = pico_model("bert", AutoModelForSequenceClassification)
    batches = batches_of("bert")
    first, _ = watched(model, batches, sequential=False, monkeypatch=monkeypatch)
    with torch.no_grad():
        model.classifier.weight.mul_(-3)
    second, _ = watched(model, batches, sequential=False, monkeypatch=monkeypatch)
    assert all(torch.equal(first[path].trace.cotangents, one.trace.cotangents) for path, one in second.items())


@pytest.mark.parametrize("sequential", [False, True])
def test_a_calibrated_model_is_the_same_for_the_same_seed_in_any_mode(sequential):
    batches = batches_of("bert")
    models = [pico_model("bert") for _ in range(3)]
    models[1].train()
    for model, seed in zip(models, (5, 5, 6), strict=True):
        record = mlpfusion.compress(
            model, METHOD, layers="last:2", width=9, seed=seed, calibration=batches, sequential=sequential
        )
        assert record.recipe["calibration"] == {"samples": 6, "tokens": 42}
        assert record.recipe["sequential"] == sequential
        assert record.sites[0].metrics["squared_error"] < record.sites[0].metrics["squared_error_start"]
    assert all(module.training for module in models[1].modules())
    assert same(state(models[0]), state(models[1]))
    assert not same(state(models[0]), state(models[2]))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in models[0].parameters())


@pytest.mark.parametrize(
    "method",
    [METHOD, mlpfusion.NTKMatch(refine_epochs=1), mlpfusion.NTKMatch(refine_epochs=1, pooling="first")],
    ids=method_label,
)
@pytest.mark.parametrize("sequential", [False, True])
def test_a_calibration_traced_before_gives_the_same_bytes(method, sequential):
    batches, options = batches_of("bert"), {"layers": "last:2", "width": 9, "sequential": sequential}
    pooling = calibration_needs(method).pooling
    traced = trace_calibration(pico_model("bert"), sites_of(pico_model("bert")), batches, 5, pooling)
    models = [pico_model("bert") for _ in range(3)]
    for model, calibration in zip(models, (batches, traced, traced), strict=True):
        record = mlpfusion.compress(model, method, seed=5, calibration=calibration, **options)
        assert record.recipe["calibration"] == {"samples": 6, "tokens": 42}
    assert all(same(state(models[0]), state(model)) for model in models[1:])


@pytest.mark.parametrize(("name", "pooling"), [("bert", "first"), ("llama", "last"), ("bart", "last")])
def test_a_head_on_one_token_weighs_that_token_alone_in_the_last_layer(name, pooling):
    model, batches = pico_model(name), batches_of(name)
    sites, plain = sites_of(model), trace_calibration(model, sites_of(model), batches, 5)
    traced = trace_calibration(model, sites, batches, 5, pooling)
    assert not plain.weights
    assert torch.equal(plain.traces[sites[-1].path].cotangents, traced.traces[sites[-1].path].cotangents)
    lengths = plain.traces[sites[-1].path].lengths
    read = lengths.cumsum(0) - (lengths if pooling == "first" else 1)
    above = [traced.weights[site.path] > 1.001 * traced.weights[site.path].min() for site in sites]
    assert above[-1].nonzero().flatten().tolist() == read.tolist()
    assert int(above[-2].sum()) > len(read)  # attention spreads the gradients


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_model_with_a_language_head_is_calibrated_like_one_without(name):
    """T5ForConditionalGeneration is its own base model: its first output are logits, not hidden states."""
    model, plain = pico_model(name, AutoModelForSeq2SeqLM), pico_model(name)
    base = {key.removeprefix("model."): tensor for key, tensor in model.state_dict().items()}
    plain.load_state_dict({key: base[key] for key in plain.state_dict()})
    for one in (model, plain):
        mlpfusion.compress(one, mlpfusion.NTKMatch(refine_epochs=1), width=9, calibration=batches_of(name))
    for site, other in zip(sites_of(model), sites_of(plain), strict=True):
        torch.testing.assert_close(read_mlp(model, site).up, read_mlp(plain, other).up)


@pytest.mark.parametrize("sequential", [False, True])
def test_the_weights_reach_the_method_at_every_site(sequential, monkeypatch):
    model, batches = pico_model("bert"), batches_of("bert")
    wanted = trace_calibration(model, sites_of(model), batches, 5, "first").weights
    for pooling in ("mean", "first"):
        method = mlpfusion.NTKMatch(refine_epochs=1, pooling=pooling)
        found, _ = watched(model, batches, sequential=sequential, monkeypatch=monkeypatch, method=method)
        for site in sites_of(model):
            weights = found[site.path].weights
            assert (weights is None) == (pooling == "mean")
            assert weights is None or torch.equal(weights, wanted[site.path])


def test_a_calibration_traced_otherwise_is_refused():
    model, batches = pico_model("bert"), batches_of("bert")
    before, sites = state(model), sites_of(model)
    other_seed, one_site = trace_calibration(model, sites, batches, 4), trace_calibration(model, sites[:1], batches, 5)
    other_head = trace_calibration(model, sites, batches, 5, "first")
    for calibration, message in (
        (other_seed, "`calibration` must be traced with the seed of the compression, 5, got 4"),
        (one_site, f"`calibration` must be traced at every site to compress, it is not at {sites[1].path}"),
        (other_head, "`calibration` must be traced with the `pooling` mean, got first"),
    ):
        with pytest.raises(InputError, match=message):
            mlpfusion.compress(model, METHOD, layers="0,1", width=9, seed=5, calibration=calibration)
    with pytest.raises(InputError, match="`calibration` must hold at least one batch, got none"):
        trace_calibration(model, sites, [], 5)
    assert same(before, state(model))


@pytest.mark.parametrize("sequential", [False, True])
def test_a_failure_leaves_the_model_as_it_was(sequential):
    model = pico_model("gpt2")
    before = state(model)

    def interrupt(done: int, total: int, path: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    options: Any = {"width": 9, "calibration": batches_of("gpt2"), "sequential": sequential}
    with pytest.raises(KeyboardInterrupt):
        mlpfusion.compress(model, METHOD, progress=interrupt, **options)
    assert same(before, state(model))
    assert not hasattr(model.config, "mlp_fusion")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_half_precision_model_is_recorded_in_fp32():
    half = pico_model("llama", dtype=torch.bfloat16)
    whole = copy.deepcopy(half).float()
    of_half, of_whole = (trace_calibration(one, sites_of(one), batches_of("llama"), 0).traces for one in (half, whole))
    assert {trace.inputs.dtype for trace in of_half.values()} == {torch.float32}
    for path, trace in of_whole.items():
        assert torch.equal(of_half[path].inputs, trace.inputs)
        assert torch.equal(of_half[path].cotangents, trace.cotangents)


@torch.no_grad()
@pytest.mark.parametrize("name", others_slow())
def test_without_gradients_one_layer_is_fp32_at_a_time_and_the_inputs_are_the_same(name):
    model = pico_model(name, dtype=torch.bfloat16)
    sites, batches = sites_of(model), batches_of(name)
    with recording(model):
        expected = mlp_inputs(model, sites, batches)
    open_layers: list[int] = []

    def watch(module: torch.nn.Module, _args: Any) -> None:
        wide = [site for site in sites if read_mlp(model, site).up.dtype == torch.float32]
        open_layers.append(len(wide))
        assert {tensor.dtype for tensor in module.parameters()} == {torch.float32}

    handles = [site_module(model, site, "up").register_forward_pre_hook(watch) for site in sites]
    with recording(model, gradients=False):
        found = mlp_inputs(model, sites, batches)
    for handle in handles:
        handle.remove()
    assert set(open_layers) == {1}
    assert all(torch.equal(found[path], inputs) for path, inputs in expected.items())
    assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("gradients", [True, False])
def test_half_precision_comes_back_after_an_error(gradients):
    model = pico_model("llama", dtype=torch.bfloat16)
    model.layers[1].input_layernorm.weight = model.norm.weight  # one that a layer shares with what is around it
    before = {name: (tensor.data_ptr(), tensor.dtype) for name, tensor in model.state_dict().items()}
    where = model.layers[1].mlp

    def interrupt(*_: Any) -> None:
        assert where.up_proj.weight.dtype == model.embed_tokens.weight.dtype == torch.float32
        raise KeyboardInterrupt

    where.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt), recording(model, gradients=gradients):
        model(**batches_of("llama")[0])
    assert before == {name: (tensor.data_ptr(), tensor.dtype) for name, tensor in model.state_dict().items()}
    assert sum(len(module._forward_pre_hooks) for module in model.modules()) == 1
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("method", [METHOD, mlpfusion.NTKMatch(match="none", refine_epochs=0)], ids=method_label)
def test_the_tensors_of_a_half_precision_model_come_back(method, sequential, monkeypatch):
    model = pico_model("llama", dtype=torch.bfloat16)
    before = {name: (tensor.data_ptr(), tensor.dtype) for name, tensor in model.state_dict().items()}
    watched(model, batches_of("llama"), sequential=sequential, monkeypatch=monkeypatch, method=method)
    assert before == {name: (tensor.data_ptr(), tensor.dtype) for name, tensor in model.state_dict().items()}


def test_bf16_batches_and_padding_are_taken():
    model = pico_model("llama", dtype=torch.bfloat16)
    batches = batches_of("llama")
    batches[0]["attention_mask"][1, 4:] = 0
    record = mlpfusion.compress(model, METHOD, width=20, calibration=batches)
    assert record.recipe["calibration"] == {"samples": 6, "tokens": 39}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert torch.isfinite(pico_outputs(model, "llama")).all()


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (METHOD, {}, "`calibration` must be given for maintain-output, or `data_free`, got none"),
        (METHOD, {"calibration": []}, "`calibration` must hold at least one batch, got none"),
        (mlpfusion.Fusion(), {"calibration": []}, "`calibration` must be left out for fusion, which takes none"),
        (mlpfusion.Fusion(), {"sequential": True}, "`sequential` must be left out for fusion"),
    ],
)
def test_a_calibration_that_is_missing_empty_or_not_wanted_is_refused(method, options, message):
    model = pico_model("bert")
    before = state(model)
    with pytest.raises(InputError, match=message):
        mlpfusion.compress(model, method, width=9, **options)
    assert same(before, state(model))


def test_traces_that_are_not_finite_are_refused_before_anything_changes():
    model = pico_model("bert")
    before = state(model)
    batches = batches_of("bert")
    batches[1]["inputs_embeds"] = torch.full((2, 7, HIDDEN), float("nan"))
    del batches[1]["input_ids"]
    with pytest.raises(InputError, match=r"`calibration` must be finite, got \d+ NaN or Inf in its inputs"):
        mlpfusion.compress(model, METHOD, width=9, calibration=batches)
    assert same(before, state(model))
