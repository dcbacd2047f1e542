"""How far the output of a compressed block is from the original's, on inputs that the original model really sees."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class OutputError:
    """Means over the tokens: `absolute` of |H~ - H|_2, `relative` the same over that of |H|_2.

    Means of norms, not norms over all tokens: real models give a few tokens outputs a hundred times as long as the
    rest, and a Frobenius norm would see nothing but these.
    """

    relative: float
    absolute: float


def output_error(exact: Float[Tensor, "tokens hidden"], approximate: Float[Tensor, "tokens hidden"]) -> OutputError:
    """How far `approximate` is from `exact`, token by token, in float64."""
    exact, approximate = exact.double(), approximate.double()
    absolute = float((approximate - exact).norm(dim=1).mean())
    return OutputError(absolute / float(exact.norm(dim=1).mean()), absolute)
