import pytest
import torch
from blocks import narrow
from random_mlp import make_mlp

from mlpfusion.methods.data_free.mmd import MMD, mmd_gradient, optimise_points, squared_mmd
from mlpfusion.mlp import neurons


def rows_and_points(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(30, 7, generator=generator, dtype=torch.float64)
    return rows, rows[:8].clone()


def slow_loss(rows: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Eq. 8 with autograd, pair by pair as the card states it; a distance of 0 has gradient 0."""

    def distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        squared = (x[:, None] - y).square().sum(-1)
        return torch.where(squared == 0, 0.0, torch.where(squared == 0, 1.0, squared).sqrt())

    stacked = torch.cat([rows, points])
    bandwidth = distances(stacked, stacked).sum().detach() / (len(stacked) * (len(stacked) - 1)) / 4

    def mean_kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.exp(-distances(x, y) / (bandwidth * 2**i)) for i in range(5)]).sum(0).mean()

    return mean_kernel(rows, rows) + mean_kernel(points, points) - 2 * mean_kernel(rows, points)


def gradient(rows: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    return mmd_gradient(rows, points, float(torch.cdist(rows, rows).sum()))


def test_loss_and_gradient_are_those_of_autograd_also_where_points_lie_on_rows():
    rows, points = rows_and_points()
    points[4:] += 0.3
    leaf = points.clone().requires_grad_()
    loss = slow_loss(rows, leaf)
    loss.backward()
    assert squared_mmd(rows, points) == pytest.approx(float(loss.detach()), abs=1e-12)
    torch.testing.assert_close(gradient(rows, points), leaf.grad)


def test_rows_are_at_discrepancy_zero_of_themselves_and_stay_there():
    rows, _ = rows_and_points()
    assert squared_mmd(rows, rows) == pytest.approx(0, abs=1e-14)
    assert gradient(rows, rows).abs().max() < 1e-14
    assert squared_mmd(rows, optimise_points(rows, rows, 10)) < 3e-3  # of 0.3: weight decay, and Adam steps against it


def test_the_points_move_and_the_loss_falls():
    rows, points = rows_and_points()
    moved = optimise_points(rows, points, 100)
    assert not torch.allclose(moved, points, atol=1e-2)
    assert squared_mmd(rows, moved) < 0.9 * squared_mmd(rows, points)
    metrics = narrow(make_mlp(40), 10, MMD(), torch.Generator().manual_seed(0)).metrics
    assert metrics["mmd"] < metrics["mmd_start"]


def test_equal_rows_do_no_harm():
    rows = torch.ones(5, 3, dtype=torch.float64)
    assert torch.isfinite(optimise_points(rows, rows[:1], 3)).all()


@pytest.mark.parametrize("gated", [False, True])
def test_the_variants_differ_by_where_the_factor_stands(gated):
    mlp = make_mlp(gated=gated)
    blocks = {
        name: narrow(mlp, 3, MMD(num_steps=5, variant=name), torch.Generator().manual_seed(0)).mlp.tensors()
        for name in ("down", "eq10", "code")
    }
    plain, printed, code = blocks["down"], blocks["eq10"], blocks["code"]
    assert torch.equal(plain["down_bias"], mlp.tensors()["down_bias"])
    torch.testing.assert_close(printed["down_bias"], 4 * plain["down_bias"])
    assert all(torch.equal(printed[name], plain[name]) for name in plain if name != "down_bias")
    torch.testing.assert_close(code["down"], plain["down"] / 2)
    torch.testing.assert_close(code["down_bias"], plain["down_bias"] * 2)
    activated = "gate" if gated else "up"
    for name in set(plain) - {"down", "down_bias"}:
        torch.testing.assert_close(code[name], plain[name] * (2 if name.startswith(activated) else 1))


def test_a_factor_of_num_neurons_over_points_stands_on_down():
    mlp = make_mlp()
    small = narrow(mlp, 12, MMD(num_steps=1), torch.Generator().manual_seed(0)).mlp
    distances = torch.cdist(neurons(small), neurons(mlp))
    assert distances.min(1).values.max() < 0.05  # at full width the factor is 1 and one step is short


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="`num_steps` must be at least 1, got 0"):
        MMD(num_steps=0)
    with pytest.raises(ValueError, match="`variant` must be one of down, eq10, code, got 'both'"):
        MMD(variant="both")
