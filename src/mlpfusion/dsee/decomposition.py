"""A matrix as low rank plus sparse: the greedy loop of DSEE's published code."""

import torch
from jaxtyping import Float
from torch import Tensor

# Where the 100 rounds of the published code, 5 directions each, end for the 768 x 768 matrices of BERT.
_PAPER_RANK, _PAPER_SIDE = 496, 768


def usual_rounds(smaller_side: int, rank_step: int) -> int:
    """Number of rounds up to the paper's share of the full rank.

    >>> usual_rounds(768, rank_step=5), usual_rounds(384, rank_step=5)
    (100, 50)
    """
    return max(1, round((smaller_side * _PAPER_RANK / _PAPER_SIDE - 1) / rank_step) + 1)


def last_rank(rank_step: int, rounds: int) -> int:
    """Rank of the low-rank part in the last round.

    >>> last_rank(rank_step=5, rounds=100)
    496
    """
    return 1 + rank_step * (rounds - 1)


def rest_of_low_rank(
    weight: Float[Tensor, "rows columns"],
    generator: torch.Generator,
    *,
    rank_step: int,
    rounds: int,
    power: int,
    tau: float,
) -> Float[Tensor, "rows columns"]:
    """Returns W - U V after the last round.

    What is above `tau` in it is S, the sparse part, of W = U V + S + E. A round begins with S = 0, repeats
    U = orth((W - S) V^T), V = U^T (W - S), S = W - U V above `tau` for `power` times, and adds the first `rank_step`
    rows of R to V, from the QR decomposition of E = W - U V - S. The published code decomposes all of E for that.
    Those rows are Q^T E, with Q from the first `rank_step` columns of E alone, which costs a hundredth.
    """
    rows = torch.randn(1, weight.shape[1], generator=generator).to(weight)
    rest = small = weight
    for count in range(rounds):
        dense = weight
        for _ in range(power):
            columns = torch.linalg.qr(dense @ rows.T).Q
            rows = columns.T @ dense
            rest = torch.addmm(weight, columns, rows, alpha=-1)
            small = torch.where(rest.abs() < tau, rest, 0)
            dense = weight - (rest - small)
        if count + 1 < rounds:
            directions = torch.linalg.qr(small[:, :rank_step]).Q
            rows = torch.cat([rows, directions.T @ small])
    return rest
