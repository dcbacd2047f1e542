"""What a one-shot method hands back, one class a kind of outcome."""

from dataclasses import dataclass, field

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

    Biases and activation are those of the original.
    """

    factors: dict[str, tuple[Tensor, Tensor]]
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Masked:
    """A block of the same width with zeros in its matrices, which are to stay zero."""

    mlp: MLP
    metrics: dict[str, float] = field(default_factory=dict)


Outcome = Narrowed | LowRank | Masked
