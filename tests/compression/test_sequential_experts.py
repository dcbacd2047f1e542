"""Experts calibrated on what the compressed blocks before them leave."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from mixtures import mixture_model, switch_model

import mlpfusion
from mlpfusion.compression.calibration.outcomes import calibrated_outcomes
from mlpfusion.compression.calibration.traces import trace_calibration
from mlpfusion.compression.plan import make_plan
from mlpfusion.compression.run import MethodRun
from mlpfusion.methods.block import Block
from mlpfusion.methods.calibrated.calibration import Calibration
from mlpfusion.methods.table import METHODS
from mlpfusion.mlp import forward
from mlpfusion.options.selection import Selection
from mlpfusion.sites.detect import find_architecture
from mlpfusion.sites.mixtures.routing import Routing, watch_mixtures
from mlpfusion.sites.sites import Site, base_model, find_sites, read_mlp

REFIT = mlpfusion.NTKMatch(match="none", refine_epochs=0)
IDS = torch.randint(3, 67, (2, 6, 24), generator=torch.Generator().manual_seed(3))
# Two batches, the second with padding.
TEXTS = [
    {"input_ids": IDS[0]},
    {"input_ids": IDS[1], "attention_mask": (torch.arange(24) < 15).long().expand(6, 24)},
]
PAIRS = [{"input_ids": ids, "decoder_input_ids": ids.flip(1)} for ids in IDS]


def float64_model(name: str) -> Any:
    if name == "switch":
        return switch_model(torch.float64)
    model = mixture_model(name, torch.float64)
    model.config._experts_implementation = "eager"  # the kernels refuse float64
    return model


def texts_for(name: str) -> list[dict[str, torch.Tensor]]:
    return PAIRS if name == "switch" else TEXTS


def sites_of(model: Any) -> list[Site]:
    return find_sites(model, find_architecture(model))


def seen_by_the_method(model: Any, calibration: Any, monkeypatch: Any, method: Any = REFIT) -> dict[str, Calibration]:
    """What the method is given at every site, by path; without the experts that no token reaches."""
    seen = dict[str, Calibration]()
    row = METHODS[type(method)]
    plan = make_plan(sites_of(model), Selection(keep_ratio=0.5))
    by_numbers = {read_mlp(model, site).down.data_ptr(): site.path for site in plan.sites}

    def spy(block: Block, config: Any) -> Any:
        seen[by_numbers[block.mlp.down.data_ptr()]] = block.inputs
        return row.compress(block, config)

    monkeypatch.setitem(METHODS, type(method), replace(row, compress=spy))
    run = MethodRun(plan, method, 0, torch.device("cpu"), lambda *_: None)
    calibrated_outcomes(model, run, calibration, sequential=True)
    return seen


def logits_of(model: Any, name: str) -> torch.Tensor:
    with torch.no_grad():
        return model(**texts_for(name)[0], use_cache=False).logits


def routed_in(model: Any, batches: Sequence[Any], mixture: str) -> Routing:
    """What enters a mixture in a run of the model, without padding."""
    parts = list[list[torch.Tensor]]()
    for batch in batches:
        with torch.no_grad(), watch_mixtures(base_model(model), [mixture]) as seen:
            model(**batch)
        shown = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool().reshape(-1)
        parts.append([one[shown] for one in seen[mixture].routing.tensors()])
    inputs, chosen, weights = (torch.cat(one) for one in zip(*parts, strict=True))
    return Routing(inputs, chosen, weights)


NAMES = ["mixtral", "switch", *(pytest.param(one, marks=pytest.mark.slow) for one in ("gpt_oss", "deepseek_v3"))]


@pytest.mark.parametrize("name", NAMES)
def test_an_expert_sees_what_the_compressed_mixtures_before_it_leave(name, monkeypatch):
    """Inputs, tokens and weights are those of the model with the first mixture cut and installed.

    The targets are what the original expert gives on the original inputs of these tokens.
    """
    model, batches = float64_model(name), texts_for(name)
    sites = sites_of(model)
    first, second, *_ = dict.fromkeys(site.mixture for site in sites)
    cut, layer = copy.deepcopy(model), next(site.layer for site in sites if site.mixture == first)
    # of Switch both mixtures are in a layer of number 1: the first in the encoder, the second in the decoder
    only: Any = {"stacks": "encoder.*experts*"} if name == "switch" else {"layers": str(layer)}
    mlpfusion.compress(cut, REFIT, keep_ratio=0.5, calibration=batches, **only)
    assert second is not None
    expected, original = (routed_in(one, batches, second) for one in (cut, model))
    assert (expected.inputs - original.inputs).abs().max() > 1e-3
    found = seen_by_the_method(model, batches, monkeypatch)
    changed = 0
    for site in (site for site in sites if site.mixture == second):
        assert site.expert is not None
        tokens, weights = expected.of_expert(site.expert)
        changed += len(set(tokens.tolist()) ^ set(original.of_expert(site.expert)[0].tolist()))
        seen = found.get(site.path)
        assert (seen is None) == (not len(tokens))
        if seen is None:
            continue
        torch.testing.assert_close(seen.trace.inputs, expected.inputs[tokens], rtol=1e-5, atol=1e-6)
        assert seen.weights is not None
        scale = weights.square().mean().sqrt()
        torch.testing.assert_close(seen.weights, weights / scale, rtol=1e-5, atol=1e-6)
        targets = forward(read_mlp(model, site), original.inputs[tokens])
        torch.testing.assert_close(seen.targets, targets, rtol=1e-12, atol=1e-12)
    assert changed or name == "switch"  # some tokens go elsewhere once the states have moved


@pytest.mark.parametrize("name", ["mixtral", "switch"])
def test_a_mixture_that_is_cut_alone_is_cut_as_if_not_sequential(name):
    models = [float64_model(name) for _ in range(2)]
    only: Any = {"stacks": "decoder.*experts*"} if name == "switch" else {"layers": "last:1"}
    for model, sequential in zip(models, (False, True), strict=True):
        mlpfusion.compress(model, REFIT, keep_ratio=0.5, calibration=texts_for(name), sequential=sequential, **only)
    for (key, tensor), other in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        torch.testing.assert_close(tensor, other, rtol=1e-9, atol=1e-9, msg=key)


@pytest.mark.parametrize("name", ["mixtral", "switch"])
def test_experts_that_keep_all_neurons_keep_their_function(name):
    model = float64_model(name)
    before = logits_of(model, name)
    mlpfusion.compress(model, REFIT, keep_ratio=1.0, calibration=texts_for(name), sequential=True)
    torch.testing.assert_close(logits_of(model, name), before, rtol=1e-6, atol=1e-6)


def test_gradients_and_weights_of_tokens_are_those_of_the_original(monkeypatch):
    """`pooling` records them; an expert has those of its tokens in the cut run, times the router's weights there."""
    method = mlpfusion.NTKMatch(match="none", refine_epochs=0, pooling="last")
    model = float64_model("mixtral")
    traced = trace_calibration(model, sites_of(model), TEXTS, 0, pooling="last")
    cut = copy.deepcopy(model)
    mlpfusion.compress(cut, method, keep_ratio=0.5, calibration=traced, layers="0")
    found = seen_by_the_method(model, traced, monkeypatch, method)
    _, mixture, _ = traced.mixtures
    routing, cotangents = routed_in(cut, TEXTS, mixture), traced.mixtures[mixture].cotangents
    assert cotangents is not None
    for site in (site for site in sites_of(model) if site.mixture == mixture):
        assert site.expert is not None
        (tokens, weights), seen = routing.of_expert(site.expert), found[site.path]
        torch.testing.assert_close(seen.trace.cotangents, cotangents[tokens] * weights[:, None], rtol=1e-5, atol=1e-9)
        by_router = weights / weights.square().mean().sqrt()
        by_both = (by_router * traced.weights[mixture][tokens]).to(by_router.dtype)
        torch.testing.assert_close(seen.weights, by_both, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stacks", ["all", "experts"])
def test_mlps_beside_the_experts_are_calibrated_with_them(stacks):
    """Dense layers before and shared experts in the layers of the mixtures: all go on with the compressed ones."""
    model = mixture_model("deepseek_v3")
    record = mlpfusion.compress(model, REFIT, keep_ratio=0.5, calibration=TEXTS, sequential=True, stacks=stacks)
    assert record.recipe["sequential"]
    assert all(site.metrics["output_error_refit"] < site.metrics["output_error_chosen"] for site in record.sites)
