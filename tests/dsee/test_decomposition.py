"""The decomposition behind Omega: what the published loop computes, by less work."""

import pytest
import torch
from torch import Tensor

from mlpfusion.dsee.decomposition import last_rank, rest_of_low_rank, usual_rounds


def plain(weight: Tensor, generator: torch.Generator, *, rank_step: int, rounds: int, power: int, tau: float) -> Tensor:
    """The published loop, line by line: U, V and S of W = U V + S + E; returns S."""
    rows = torch.randn(1, weight.shape[1], generator=generator).to(weight)
    columns = sparse = torch.zeros_like(weight)
    for _ in range(rounds):
        sparse = torch.zeros_like(weight)
        for _ in range(power):
            columns = torch.linalg.qr((weight - sparse) @ rows.T).Q
            rows = columns.T @ (weight - sparse)
            sparse = weight - columns @ rows
            sparse[sparse.abs() < tau] = 0
        error = weight - columns @ rows - sparse
        rows = torch.cat([rows, torch.linalg.qr(error).R[:rank_step]])
    return sparse


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weight(rows: int, columns: int, seed: int) -> Tensor:
    """Of the size of BERT's weights, with a spectrum that falls."""
    left, right = (
        torch.randn(one, 40, generator=generator(seed + one), dtype=torch.float64) for one in (rows, columns)
    )
    noise = torch.randn(rows, columns, generator=generator(seed), dtype=torch.float64)
    return 0.04 * noise + 0.02 * left @ torch.diag(0.9 ** torch.arange(40)).double() @ right.T


# Few rounds: the threshold makes the loop chaotic. With more, the plain one moves as far when 1e-15 is added to W.
@pytest.mark.parametrize(
    ("shape", "rank_step", "rounds", "power", "tau"),
    [
        ((64, 64), 5, 5, 2, 0.01),
        ((96, 48), 3, 6, 2, 0.02),
        ((48, 96), 1, 4, 1, 0.005),
        ((64, 64), 4, 5, 3, 0.01),
        ((64, 64), 5, 1, 2, 0.01),
        ((64, 64), 7, 9, 2, 0.0),  # nothing is cut off: no chaos, up to rank 57 of 64
    ],
)
def test_the_rest_is_what_the_published_loop_leaves(shape, rank_step, rounds, power, tau):
    options = {"rank_step": rank_step, "rounds": rounds, "power": power, "tau": tau}
    matrix = weight(*shape, seed=3)
    expected = plain(matrix, generator(), **options)
    found = rest_of_low_rank(matrix, generator(), **options)
    torch.testing.assert_close(torch.where(found.abs() < tau, 0, found), expected, rtol=0, atol=1e-9)
    assert not torch.allclose(rest_of_low_rank(matrix, generator(1), **options), found, rtol=0, atol=1e-6)


def test_no_matrix_of_full_width_is_decomposed(monkeypatch):
    widths, decompose = [], torch.linalg.qr

    def watched(matrix: Tensor) -> object:
        widths.append(matrix.shape[1])
        return decompose(matrix)

    monkeypatch.setattr(torch.linalg, "qr", watched)
    matrix = weight(64, 64, seed=0)
    rest_of_low_rank(matrix, generator(), rank_step=5, rounds=4, power=2, tau=0.01)
    assert widths == [1, 1, 5, 6, 6, 5, 11, 11, 5, 16, 16]


def test_the_rounds_end_where_those_of_the_paper_do():
    assert (usual_rounds(768, 5), last_rank(5, 100)) == (100, 496)
    for side in (32, 100, 384, 1024, 4096):
        for step in (1, 5, 16, 64):
            rank = last_rank(step, usual_rounds(side, step))
            assert abs(rank - side * 496 / 768) <= step / 2 or rank == 1
