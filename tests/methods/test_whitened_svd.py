import pytest
import torch
from blocks import factorise
from random_mlp import make_mlp

from mlpfusion.errors import InputError
from mlpfusion.kernel import BlockTrace
from mlpfusion.methods.calibrated.calibration import Calibration
from mlpfusion.methods.calibrated.whitened_svd import WhitenedSVD, input_moments, whitened_svd
from mlpfusion.methods.data_free.svd import truncated_svd
from mlpfusion.mlp import hidden_activations

every_layout = pytest.mark.parametrize("layout", [{"biased": False}, {"biased": True}, {"gated": True}], ids=str)


def tokens(number, size, seed=0):
    """Some directions are far larger than others."""
    drawn = torch.randn(number, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn * torch.logspace(-2, 2, size, dtype=torch.float64)


def calibration_of(mlp):
    inputs = tokens(60, mlp.hidden_size)
    return Calibration(BlockTrace(inputs, torch.zeros_like(inputs), torch.full((60,), 1)))


@every_layout
def test_at_a_rank_no_factors_have_a_smaller_error_on_the_inputs(layout):
    mlp = make_mlp(30, 8, **layout)
    calibration = calibration_of(mlp)
    outcome = factorise(mlp, 0.4, WhitenedSVD(ridge=1e-12), torch.Generator(), calibration)
    inputs = calibration.trace.inputs
    seen = {"up": inputs, "gate": inputs, "down": hidden_activations(mlp, inputs)}
    for name, (left, right) in outcome.factors.items():
        weight = mlp.matrices()[name]
        targets = seen[name] @ weight.T
        error = (seen[name] @ (left @ right).T - targets).norm()
        best = torch.linalg.svdvals(targets)[left.shape[1] :].norm()  # of all matrices of that rank (Eckart and Young)
        assert float(error) == pytest.approx(float(best), rel=1e-4)
        plain = truncated_svd(weight, left.shape[1])
        assert error < (seen[name] @ (plain[0] @ plain[1]).T - targets).norm()


def test_the_dropped_values_are_the_error_and_even_inputs_give_the_plain_svd():
    weight, rank = torch.randn(6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 3
    inputs = tokens(40, 9)
    moment = inputs.T @ inputs / 40
    left, right, values = whitened_svd(weight, moment, rank, 1e-12)
    error = ((left @ right - weight) @ inputs.T).square().sum() / 40
    assert float(error) == pytest.approx(float(values[rank:].square().sum()), rel=1e-6)
    left, right, _ = whitened_svd(weight, 7 * torch.eye(9, dtype=torch.float64), rank, 1e-12)
    plain = truncated_svd(weight, rank)
    torch.testing.assert_close(left @ right, plain[0] @ plain[1])


@every_layout
def test_at_full_rank_the_matrices_come_back(layout):
    mlp = make_mlp(**layout)
    entering, between = input_moments(mlp, tokens(60, mlp.hidden_size))
    for name, weight in mlp.matrices().items():
        left, right, _ = whitened_svd(weight, between if name == "down" else entering, min(weight.shape), 1e-4)
        torch.testing.assert_close(left @ right, weight)


def test_inputs_that_are_all_zero_give_finite_factors():
    left, right, _ = whitened_svd(torch.ones(2, 3), torch.zeros(3, 3, dtype=torch.float64), 1, 1e-4)
    torch.testing.assert_close((left @ right).float(), torch.ones(2, 3))


def test_a_bad_ridge_is_refused():
    with pytest.raises(ValueError, match="`ridge` must be above 0, got 0"):
        WhitenedSVD(ridge=0.0)
    with pytest.raises(InputError, match="`calibration` must be given for whitened-svd"):
        factorise(make_mlp(), 0.4, WhitenedSVD(), torch.Generator())
