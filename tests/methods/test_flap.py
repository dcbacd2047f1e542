import pytest
import torch
from blocks import narrow
from random_mlp import make_mlp

from mlpfusion.kernel import BlockTrace
from mlpfusion.methods.calibrated.calibration import Calibration
from mlpfusion.methods.calibrated.flap import FLAP
from mlpfusion.mlp import forward, hidden_activations


def flap(mlp, num_neurons, tokens=50):
    inputs = torch.randn(tokens, mlp.hidden_size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    calibration = Calibration(BlockTrace(inputs, torch.zeros_like(inputs), torch.full((tokens,), 1)))
    return narrow(mlp, num_neurons, FLAP(), torch.Generator(), calibration), inputs


@pytest.mark.parametrize("layout", [{"biased": False}, {"biased": True}, {"gated": True}], ids=str)
def test_the_neurons_of_largest_fluctuation_are_kept(layout):
    mlp = make_mlp(**layout)
    outcome, inputs = flap(mlp, 5)
    score = hidden_activations(mlp, inputs).var(0, correction=0) * mlp.down.square().sum(0)
    best = score.topk(5).indices.sort().values
    assert torch.equal(outcome.mlp.up, mlp.up[best])
    assert outcome.metrics["kept_score"] == pytest.approx(float(score[best].sum() / score.sum()))


def test_the_mean_output_stays():
    mlp = make_mlp()
    outcome, inputs = flap(mlp, 5)
    torch.testing.assert_close(forward(outcome.mlp, inputs).mean(0), forward(mlp, inputs).mean(0))
    assert not torch.allclose(forward(outcome.mlp, inputs), forward(mlp, inputs))


def test_a_neuron_that_never_changes_is_pruned_without_a_loss():
    mlp = make_mlp()
    assert mlp.up_bias is not None
    mlp.up[3], mlp.up_bias[3], mlp.down[:, 3] = 0, 2, 100
    outcome, inputs = flap(mlp, 11)
    torch.testing.assert_close(forward(outcome.mlp, inputs), forward(mlp, inputs))
