"""What a method hands back, one class a kind of outcome."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Protocol, Self

import torch
from jaxtyping import Float
from torch import Tensor

from mlpfusion.mlp import MLP, on_device


class Outcome(Protocol):
    """A compressed block of any kind, with the numbers that the method leaves in the record (`metrics`)."""

    @property
    def metrics(self) -> dict[str, float]: ...

    def tensors(self) -> dict[str, Tensor]:
        """All numbers of the block by name."""
        ...

    def on(self, device: torch.device) -> Self:
        """The outcome with its tensors on `device`."""
        ...


@dataclass(frozen=True)
class Narrowed:
    """A narrower block, and what the method has to say about it (numbers that go into the record)."""

    mlp: MLP
    metrics: dict[str, float] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """All numbers by name: weights, biases, scales."""
        scales = {"input_scale": self.mlp.input_scale, "output_scale": self.mlp.output_scale}
        return self.mlp.tensors() | {name: scale for name, scale in scales.items() if scale is not None}

    def on(self, device: torch.device) -> Self:
        """The outcome with its tensors on `device`."""
        return replace(self, mlp=on_device(self.mlp, device))


def metrics_of_all(experts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The means of the numbers of experts, each over those that have it, and the fewest tokens that reach one.

    >>> metrics_of_all([{"tokens": 2.0}, {"tokens": 4.0}, {"inertia": 1.0}])
    {'tokens': 3.0, 'inertia': 1.0, 'fewest_tokens': 2.0}
    """
    names = dict.fromkeys(name for one in experts for name in one)
    numbers = {name: [one[name] for one in experts if name in one] for name in names}
    fewest = {"fewest_tokens": min(numbers["tokens"])} if "tokens" in numbers else {}
    return {name: fmean(values) for name, values in numbers.items()} | fewest


@dataclass(frozen=True)
class NarrowedExperts:
    """The narrower experts of one mixture, all of one width."""

    experts: tuple[Narrowed, ...]

    @property
    def metrics(self) -> dict[str, float]:
        """Those of all together."""
        return metrics_of_all([one.metrics for one in self.experts])

    def tensors(self) -> dict[str, Tensor]:
        """All numbers by the number of the expert and the name: `3.up`."""
        return {f"{n}.{name}": one for n, expert in enumerate(self.experts) for name, one in expert.tensors().items()}

    def on(self, device: torch.device) -> Self:
        """The outcome with its tensors on `device`."""
        return replace(self, experts=tuple(expert.on(device) for expert in self.experts))


@dataclass(frozen=True)
class LowRank:
    """A block whose matrices are products: field name -> (left, right), shapes (out, rank) and (rank, in).

    Every matrix has a rank of its own. Biases and activation are those of the original.
    """

    factors: dict[str, tuple[Tensor, Tensor]]
    metrics: dict[str, float] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """All factors by name: `up.left`, `up.right` and so on."""
        sides = {name: zip(("left", "right"), pair, strict=True) for name, pair in self.factors.items()}
        return {f"{name}.{side}": factor for name, pair in sides.items() for side, factor in pair}

    def on(self, device: torch.device) -> Self:
        """The outcome with its tensors on `device`."""
        pairs = {name: (left.to(device), right.to(device)) for name, (left, right) in self.factors.items()}
        return replace(self, factors=pairs)


@dataclass(frozen=True)
class Masked:
    """A block of the same width with zeros in its matrices, which are to stay zero."""

    mlp: MLP
    metrics: dict[str, float] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """All numbers by name: weights and biases."""
        return self.mlp.tensors()

    def on(self, device: torch.device) -> Self:
        """The outcome with its tensors on `device`."""
        return replace(self, mlp=on_device(self.mlp, device))


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

    def tensors(self) -> dict[str, Tensor]:
        """All numbers by name: weights, biases, router."""
        return self.mlp.tensors() | {"router_in": self.router_in, "router_out": self.router_out}

    def on(self, device: torch.device) -> Self:
        """The outcome with its tensors on `device`."""
        router_in, router_out = self.router_in.to(device), self.router_out.to(device)
        return replace(self, mlp=on_device(self.mlp, device), router_in=router_in, router_out=router_out)
