import copy
from dataclasses import replace

import pytest
import torch
from conftest import make_mlp
from pico import pico_inputs, pico_model

import mlpfusion
from mlpfusion.architectures.sites import find_sites, read_mlp
from mlpfusion.architectures.table import find_architecture
from mlpfusion.evaluate.output_error import mlp_inputs, output_errors, relative_output_error


def test_the_error_is_a_ratio_of_mean_lengths():
    mlp = make_mlp(biased=False)
    x = torch.randn(50, mlp.hidden_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert relative_output_error(mlp, mlp, x) == 0
    assert relative_output_error(mlp, replace(mlp, down=1.25 * mlp.down), x) == pytest.approx(0.25)
    assert relative_output_error(mlp, replace(mlp, down=0 * mlp.down), x) == pytest.approx(1)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "modernbert", "opt"])
def test_inputs_are_those_of_the_model_without_padding(name):
    model = pico_model(name)
    sites = find_sites(model, find_architecture(model.config.model_type))
    batch = pico_inputs(name)
    alone = mlp_inputs(model, sites, [batch])
    padded = {key: torch.nn.functional.pad(value, (0, 3)) for key, value in batch.items()}
    together = mlp_inputs(model, sites, [padded])
    for site in sites:
        assert alone[site.path].shape == (14, 32)
        torch.testing.assert_close(alone[site.path], together[site.path], atol=1e-4, rtol=1e-4)


def test_only_sites_that_changed_are_compared():
    model = pico_model("bert")
    small = copy.deepcopy(model)
    mlpfusion.compress(small, mlpfusion.Fusion(), layers="1", width=14)
    batch = pico_inputs("bert")
    errors = output_errors(model, small, [batch])
    assert set(errors) == {"encoder.layer.1"}
    site = find_sites(model, find_architecture("bert"))[1]
    inputs = mlp_inputs(model, [site], [batch])["encoder.layer.1"]
    after = read_mlp(small, find_sites(small, find_architecture("bert"))[1])
    assert errors["encoder.layer.1"] == relative_output_error(read_mlp(model, site), after, inputs) > 0


@pytest.mark.parametrize("method", [mlpfusion.SVD(), mlpfusion.Magnitude()], ids=lambda method: type(method).__name__)
def test_blocks_of_the_same_width_have_an_error_too(method):
    original, compressed = pico_model("bert"), pico_model("bert")
    mlpfusion.compress(compressed, method, layers="last:2", keep_ratio=0.5)
    errors = output_errors(original, compressed, [pico_inputs("bert")])
    assert errors.keys() == {"encoder.layer.1", "encoder.layer.2"}
    assert all(0 < error < 2 for error in errors.values())
