"""Data-free calibration: inputs drawn from the normalisation that feeds the MLP."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from pico import PICO, others_slow, pico_model, sites_of

import mlpfusion
from mlpfusion.compression.calibration.norms import (
    NUM_SAMPLES,
    NUM_TOKENS,
    data_free_calibration,
    feeding_norms,
    norm_trace,
)
from mlpfusion.errors import InputError
from mlpfusion.mlp import forward
from mlpfusion.sites.sites import base_model, read_mlp

# Models that normalise after the MLP only: what enters it is the residual stream.
WITHOUT_NORM = {"olmo2"}
METHOD = mlpfusion.MaintainOutput()


@pytest.mark.parametrize("name", others_slow())
def test_the_norm_that_feeds_the_mlp_is_found_in_every_architecture(name):
    model = pico_model(name)
    sites = sites_of(model)
    if name in WITHOUT_NORM:
        with pytest.raises(InputError, match="`data_free` must be left out where no normalisation feeds the MLP"):
            feeding_norms(model, sites)
        return
    norms = feeding_norms(model, sites)
    paths = {id(module): path for path, module in base_model(model).named_modules()}
    found = [paths[id(norms[site.path])] for site in sites]
    assert len(set(found)) == len(sites)
    assert all(norm.startswith(site.path) for norm, site in zip(found, sites, strict=True))


@pytest.mark.parametrize("name", others_slow(sorted(set(PICO) - WITHOUT_NORM)))
def test_data_free_inputs_have_the_statistics_of_the_norm(name):
    model = pico_model(name, dtype=torch.float64)
    site = sites_of(model)[1]
    norm: Any = feeding_norms(model, [site])[site.path]
    weight = norm.weight.detach() + ("Gemma" in type(norm).__name__)
    bias = 0 if getattr(norm, "bias", None) is None else norm.bias.detach()
    trace = norm_trace(norm, read_mlp(model, site).up, torch.Generator().manual_seed(0))
    g = (trace.inputs - bias) / weight
    assert trace.lengths.tolist() == [NUM_TOKENS] * NUM_SAMPLES
    torch.testing.assert_close(g.square().mean(1), torch.ones(len(g)).double(), rtol=1e-3, atol=0)
    is_layer_norm = isinstance(norm, torch.nn.LayerNorm)
    assert (float(g.mean(1).abs().max()) < 1e-10) == is_layer_norm
    assert float(trace.cotangents.std()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", ["bert", "gemma2", "vit"])
def test_data_free_draws_depend_on_the_seed_and_the_site_alone(name):
    model = pico_model(name)
    sites = sites_of(model)
    draws = [data_free_calibration(model, chosen, seed) for chosen, seed in ((sites, 0), (sites[1:2], 0), (sites, 1))]
    one, two, three = (calibrate(sites[1]) for calibrate in draws)
    assert torch.equal(one.trace.inputs, two.trace.inputs)
    assert torch.equal(one.targets_of(read_mlp(model, sites[1])), forward(read_mlp(model, sites[1]), one.trace.inputs))
    assert not torch.equal(one.trace.inputs, three.trace.inputs)
    assert not torch.equal(one.trace.cotangents, draws[0](sites[2]).trace.cotangents)
    record = mlpfusion.compress(model, replace(METHOD, data_free=True), layers="1", width=20)
    assert record.recipe["calibration"] is None
    assert record.recipe["options"]["data_free"]
    assert record.sites[0].metrics["squared_error"] < record.sites[0].metrics["squared_error_start"]
