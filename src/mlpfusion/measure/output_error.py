"""Output error of a compressed block, on inputs of the original model."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class OutputError:
    """`absolute` = mean |H~ - H|_2 over the tokens, `relative` = `absolute` / mean |H|_2.

    Means of norms, not one Frobenius norm: in real models a few tokens have outputs a hundred times
    as long as the rest, and would decide a Frobenius norm alone.
    """

    relative: float
    absolute: float


def output_error(exact: Float[Tensor, "tokens hidden"], approximate: Float[Tensor, "tokens hidden"]) -> OutputError:
    """Compares `approximate` with `exact` token by token, in float64.

    >>> import torch
    >>> output_error(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 3.0]]))
    OutputError(relative=0.2, absolute=1.0)
    """
    exact, approximate = exact.double(), approximate.double()
    absolute = float((approximate - exact).norm(dim=1).mean())
    return OutputError(absolute / float(exact.norm(dim=1).mean()), absolute)
