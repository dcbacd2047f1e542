"""A linear map that is a product of two smaller ones."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LowRankLinear(nn.Module):
    """left(right(x)), two plain `nn.Linear`, in the place of one map; or several such pairs side by side.

    The outputs of the pairs are put one after the other: a map that holds gate and up has a pair for each, so that the
    factors do not depend on how an architecture stores the two; `ranks` has one number a pair. `dense_type` is the type
    of the map that was replaced.

    The buffer `weight` holds nothing. It makes transformers without this package fail on its shape, where missing and
    unexpected weights would only be logged, and tells T5, which asks the map for `weight.dtype`, what to cast to.
    """

    weight: Tensor

    def __init__(
        self, in_features: int, out_features: int, ranks: Sequence[int], *, bias: bool, dense_type: type[nn.Module]
    ):
        super().__init__()
        self.dense_type = dense_type
        self.parts = nn.ModuleList(
            nn.Sequential(
                OrderedDict(
                    right=nn.Linear(in_features, rank, bias=False),
                    left=nn.Linear(rank, out_features // len(ranks), bias=bias),
                )
            )
            for rank in ranks
        )
        self.register_buffer("weight", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        outputs = [part(x) for part in self.parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)

    def pairs(self) -> list[tuple[nn.Linear, nn.Linear]]:
        """The linear maps (left, right) of every part."""
        return [(part.get_submodule("left"), part.get_submodule("right")) for part in self.parts]  # pyright: ignore[reportReturnType]

    def shape(self) -> tuple[int, int]:
        """(out, in) of the whole map."""
        pairs = self.pairs()
        return sum(left.out_features for left, _ in pairs), pairs[0][1].in_features

    def ranks(self) -> tuple[int, ...]:
        """Columns of `left`, rows of `right`, of every part."""
        return tuple(right.out_features for _, right in self.pairs())

    def dense(self) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"] | None]:
        """Weight and bias of the one map that computes the same, detached."""
        pairs = self.pairs()
        weight = torch.cat([left.weight.detach() @ right.weight.detach() for left, right in pairs])
        biases = [left.bias.detach() for left, _ in pairs if left.bias is not None]
        return weight, torch.cat(biases) if biases else None
