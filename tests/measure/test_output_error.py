import pytest
import torch
from pico import pico_inputs, pico_model, sites_of

from mlpfusion.measure.output_error import output_error
from mlpfusion.sites.traces import mlp_inputs


def test_the_error_is_a_ratio_of_mean_lengths():
    exact = torch.randn(50, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert output_error(exact, exact).relative == 0
    assert output_error(exact, 1.25 * exact).relative == pytest.approx(0.25)
    assert output_error(exact, 0 * exact).relative == pytest.approx(1)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "modernbert", "opt"])
def test_inputs_are_those_of_the_model_without_padding(name):
    model = pico_model(name)
    sites = sites_of(model)
    batch = pico_inputs(name)
    alone = mlp_inputs(model, sites, [batch])
    padded = {key: torch.nn.functional.pad(value, (0, 3)) for key, value in batch.items()}
    together = mlp_inputs(model, sites, [padded])
    for site in sites:
        assert alone[site.path].shape == (14, 32)
        torch.testing.assert_close(alone[site.path], together[site.path], atol=1e-4, rtol=1e-4)
