"""What a method hands back, one class a kind of outcome."""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from mlpfusion.mlp import MLP, on_device


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


def outcome_on(outcome: Outcome, device: torch.device) -> Outcome:
    """The outcome with all its tensors on `device`."""
    if isinstance(outcome, LowRank):
        pairs = {name: (left.to(device), right.to(device)) for name, (left, right) in outcome.factors.items()}
        return replace(outcome, factors=pairs)
    return replace(outcome, mlp=on_device(outcome.mlp, device))


def outcome_tensors(outcome: Outcome) -> dict[str, Tensor]:
    """All numbers of an outcome by name: weights, biases, scales, factors, routers."""
    if isinstance(outcome, LowRank):
        sides = {name: zip(("left", "right"), pair, strict=True) for name, pair in outcome.factors.items()}
        return {f"{name}.{side}": factor for name, pair in sides.items() for side, factor in pair}
    mlp = outcome.mlp
    scales = {"input_scale": mlp.input_scale, "output_scale": mlp.output_scale}
    tensors = mlp.tensors() | {name: scale for name, scale in scales.items() if scale is not None}
    if isinstance(outcome, Routed):
        tensors |= {"router_in": outcome.router_in, "router_out": outcome.router_out}
    return tensors
