"""Omega: the few entries of a matrix that get a value of their own."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlpfusion.checks import check_that
from mlpfusion.dsee.decomposition import last_rank, rest_of_low_rank, usual_rounds
from mlpfusion.errors import InputError
from mlpfusion.options.adapters.dsee import Support
from mlpfusion.seeds import site_generator


def draw_omega(
    weight: Float[Tensor, "outputs inputs"],
    support: Support,
    path: str,
    gradient: Float[Tensor, "outputs inputs"] | None = None,
) -> Int[Tensor, "2 positions"]:
    """Returns rows and columns of the entries that `support` asks for.

    What is drawn follows its seed and `path` alone. Raises `InputError` for more entries than the matrix has, for
    a rank that is not below its sides, and without the `gradient` that `omega=gradient` needs.

    >>> draw_omega(torch.tensor([[1.0, -4.0], [3.0, 2.0]]), Support(sparse=2, omega="magnitude"), "query").tolist()
    [[0, 1], [1, 0]]
    """
    check_size(weight, support, path)
    return _largest(_scores(weight.detach(), support, path, gradient), support.sparse)


def check_size(weight: Float[Tensor, "outputs inputs"], support: Support, path: str) -> None:
    """Raises `InputError` unless the matrix called `path` is large enough for `support`."""
    size, side = weight.numel(), min(weight.shape)
    check_that(support.sparse <= size, "dsee sparse", f"at most {size}, the entries of {path}", support.sparse)
    rounds = support.rounds or usual_rounds(side, support.rank_step)
    rank = last_rank(support.rank_step, rounds)
    if support.omega == "decompose" and rank >= side:
        raise InputError(
            f"`dsee rounds` must leave the rank below {side}, the smaller side of {path}, got {rounds} rounds with "
            f"rank_step={support.rank_step}: {rank}"
        )


def in_largest(weight: Float[Tensor, "outputs inputs"], omega: Int[Tensor, "2 positions"]) -> int:
    """Counts the entries of `omega` among as many of the largest |W|.

    >>> in_largest(torch.tensor([[1.0, -4.0], [3.0, 2.0]]), torch.tensor([[0, 0], [1, 0]]))
    1
    """
    largest = _largest(weight.detach().abs(), omega.shape[1])
    flat = [rows * weight.shape[1] + columns for rows, columns in (largest, omega.to(largest.device))]
    return int(torch.isin(flat[1], flat[0]).sum())


def _scores(weight: Tensor, support: Support, path: str, gradient: Tensor | None) -> Tensor:
    """A number an entry; Omega are the largest."""
    if support.omega == "magnitude":
        return weight.abs()
    if support.omega == "gradient":
        if gradient is None:
            raise InputError(f"`dsee omega` must be decompose, magnitude or random without a gradient of {path}")
        return gradient.abs()
    generator = site_generator(support.omega_seed, path)
    if support.omega == "random":
        return torch.rand(weight.shape, generator=generator)
    exact = weight if weight.dtype == torch.float64 else weight.float()  # LAPACK has no half precision
    return rest_of_low_rank(
        exact,
        generator,
        rank_step=support.rank_step,
        rounds=support.rounds or usual_rounds(min(weight.shape), support.rank_step),
        power=support.power,
        tau=support.tau,
    ).abs()


def _largest(scores: Tensor, count: int) -> Tensor:
    # sorted, so that the file of an adapter reads in the order of the matrix
    return _rows_and_columns(scores.flatten().topk(count).indices.sort().values, scores.shape[1])


def _rows_and_columns(flat: Tensor, width: int) -> Tensor:
    return torch.stack([flat // width, flat % width])
