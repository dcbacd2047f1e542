"""Omega: which entries of a matrix get a value."""

import pytest
import torch
from torch import Tensor

from mlpfusion.dsee.omega import check_size, draw_omega, in_largest
from mlpfusion.errors import InputError
from mlpfusion.options.adapters.dsee import OMEGAS, Dsee, Support, parse_dsee

W = 0.04 * torch.randn(48, 32, generator=torch.Generator().manual_seed(0))
GRADIENT = torch.randn(48, 32, generator=torch.Generator().manual_seed(1))


def flat(omega: Tensor) -> list[int]:
    return (omega[0] * W.shape[1] + omega[1]).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("omega", OMEGAS)
def test_as_many_entries_as_asked_each_once_in_the_order_of_the_matrix(omega, dtype):
    for sparse in (1, 16, W.numel()):
        found = flat(draw_omega(W.to(dtype), Support(sparse=sparse, omega=omega), "query", GRADIENT))
        assert len(found) == sparse
        assert found == sorted(set(found))
        assert found[0] >= 0
        assert found[-1] < W.numel()


def test_magnitude_and_gradient_take_the_largest():
    for omega, values in (("magnitude", W), ("gradient", GRADIENT)):
        support = Support(sparse=20, omega=omega)
        assert flat(draw_omega(W, support, "query", GRADIENT)) == sorted(
            values.abs().flatten().topk(20).indices.tolist()
        )


@pytest.mark.parametrize("omega", ["random", "decompose"])
def test_what_is_drawn_follows_the_seed_and_the_path(omega):
    def draw(seed: int, path: str) -> list[int]:
        return flat(draw_omega(W, Support(sparse=20, omega=omega, omega_seed=seed), path))

    state = torch.random.get_rng_state()
    assert draw(0, "query") == draw(0, "query")
    assert len({tuple(draw(seed, path)) for seed in (0, 1) for path in ("query", "value")}) == 4
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_decomposition_takes_the_largest_of_what_is_left():
    """A low-rank matrix and a few entries: they are what is found, although others are larger."""
    left, right = (torch.randn(1, 40, generator=torch.Generator().manual_seed(seed)) for seed in (2, 3))
    places = torch.tensor([[3, 17, 30], [5, 20, 38]])
    matrix = (10 * left.T @ right).index_put(tuple(places), torch.tensor([0.5, -0.5, 0.5]), accumulate=True)
    support = Support(sparse=3, rounds=1, power=10, tau=0.2)
    assert torch.equal(draw_omega(matrix, support, "query"), places)
    assert in_largest(matrix, places) == 0


def test_the_overlap_with_the_largest_is_counted():
    largest = draw_omega(W, Support(sparse=16, omega="magnitude"), "query")
    assert in_largest(W, largest) == 16
    others = draw_omega(1 / W, Support(sparse=16, omega="magnitude"), "query")
    assert in_largest(W, others) == 0
    assert in_largest(W, torch.cat([largest[:, :8], others[:, :8]], dim=1)) == 8


def test_more_than_the_matrix_has_and_a_rank_that_is_no_low_one_are_refused():
    message = "`dsee sparse` must be at most 1536, the entries of query, got 1537"
    with pytest.raises(InputError, match=message):
        draw_omega(W, Support(sparse=1537, omega="random"), "query")
    with pytest.raises(InputError, match=message):
        check_size(torch.empty(48, 32, device="meta"), Support(sparse=1537), "query")
    message = "`dsee rounds` must leave the rank below 32, the smaller side of query, got 8 rounds with rank_step=5: 36"
    with pytest.raises(InputError, match=message):
        draw_omega(W, Support(rounds=8), "query")
    draw_omega(W, Support(rounds=7), "query")  # rank 31
    with pytest.raises(InputError, match="`dsee omega` must be decompose, magnitude or random without a gradient of"):
        draw_omega(W, Support(omega="gradient"), "query")


def test_the_flag_is_parsed():
    assert parse_dsee("rank=4") == Dsee(4)
    assert parse_dsee("rank=4, alpha=8,targets=query+key,sparse=16,omega=random,omega_seed=3") == Dsee(
        4, 8.0, "query+key", Support(16, "random", 3)
    )
    assert parse_dsee("rank_step=3,rounds=9,power=1,tau=1e-3") == Dsee(
        support=Support(rank_step=3, rounds=9, power=1, tau=1e-3)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("16", "`dsee` must be NAME=VALUE among rank, alpha, targets, sparse, omega, .*, got '16'"),
        ("r=16", "`dsee` must be NAME=VALUE among .*, got 'r=16'"),
        ("rank=0", "`dsee rank` must be a whole number of at least 1, got 0"),
        ("rank=x", "`dsee rank` must be a number, got 'x'"),
        ("alpha=0", "`dsee alpha` must be above 0, got 0.0"),
        ("sparse=0", "`dsee sparse` must be a whole number of at least 1, got 0"),
        ("omega=best", "`dsee omega` must be one of decompose, magnitude, random, gradient, got 'best'"),
        ("tau=-1", "`dsee tau` must be at least 0, got -1.0"),
        ("omega=magnitude,omega_seed=1", "`dsee omega_seed` must be left out for omega=magnitude, got 1"),
        ("omega=random,rounds=3", "`dsee rounds` must be left out for omega=random, got 3"),
        ("samples=3", "`dsee samples` must be left out for omega=decompose, got 3"),
    ],
)
def test_values_that_no_adapter_has_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_dsee(text)
