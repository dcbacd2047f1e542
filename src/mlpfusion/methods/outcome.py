"""What a method hands back, one class a kind of outcome."""

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from mlpfusion.mlp import MLP


@dataclass(frozen=True)
class Narrowed:
    """A narrower block, and what the method has to say about it (numbers that go into the record)."""

    mlp: MLP
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class LowRank:
    """A block whose matrices are products: field name -> (left, right), shapes (out, rank) and (rank, in).

    Every matrix has a rank of its own. Biases and activation are those of the original.
    """

    factors: dict[str, tuple[Tensor, Tensor]]
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Masked:
    """A block of the same width with zeros in its matrices, which are to stay zero."""

    mlp: MLP
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Routed:
    """A block of the same width whose neurons are experts of one size, side by side, of which a router chooses some.

    The scores of the experts are router_out tanh(router_in x); the `num_selected` highest compute.
    """

    mlp: MLP
    router_in: Float[Tensor, "experts hidden"]
    router_out: Float[Tensor, "experts experts"]
    num_selected: int
    metrics: dict[str, float] = field(default_factory=dict)


Outcome = Narrowed | LowRank | Masked | Routed
