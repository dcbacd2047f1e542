"""The low-rank kind: every linear map of a site becomes the product of two smaller ones, the width stays."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from mlpfusion.errors import InputError, shown
from mlpfusion.kernel import FactoredMLP
from mlpfusion.kinds.kind import BlockSize, Kind, entry_place, number_at, replace_module
from mlpfusion.kinds.narrow import read_block
from mlpfusion.kinds.outcome import LowRank
from mlpfusion.sites.sites import Site, base_model, linear_maps
from mlpfusion.sites.weights import Tensors, check_linear, linear_bias, linear_weight, new_linear, read_all


@dataclass(frozen=True)
class LowRankSite:
    """An MLP of factors: the rank of its matrices, its parameters now (all factors and biases).

    The rank is one number, or where the matrices differ one for each by its name (`up`, `gate`, `down`).
    """

    rank: int | dict[str, int]
    num_parameters: int


class LowRankLinear(nn.Module):
    """left(right(x)), two plain `nn.Linear`, in the place of one map; or several such pairs side by side.

    The outputs of the pairs are put one after the other: a map that holds gate and up has a pair for each, so that the
    factors do not depend on how an architecture stores the two; `ranks` has one number a pair. `dense_type` is the type
    of the map that was replaced.

    The buffer `weight` holds nothing. It makes transformers without this package fail on its shape, where missing and
    unexpected weights would only be logged, and tells T5, which asks the map for `weight.dtype`, what to cast to.
    """

    weight: Tensor
    made_of = "left+right"

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

    def check_readable(self) -> None:
        """Raises `InputError` for an adapter or a quantised weight in a factor. Multiplies nothing."""
        for left, right in self.pairs():
            check_linear(left)
            check_linear(right)

    def dense_weight(self) -> Float[Tensor, "out in"]:
        """The weight of the one map that computes the same, detached."""
        return torch.cat([left.weight.detach() @ right.weight.detach() for left, right in self.pairs()])

    def dense_bias(self) -> Float[Tensor, " out"] | None:
        """The bias of that map, detached."""
        biases = [left.bias.detach() for left, _ in self.pairs() if left.bias is not None]
        return torch.cat(biases) if biases else None


def _read_entry(path: str, data: Mapping[str, Any]) -> LowRankSite:
    where, rank = entry_place(path), data["rank"]
    if isinstance(rank, dict) and rank:
        if not set(rank) <= {"up", "gate", "down"}:
            raise InputError(f"`{where}.rank` must have the names of matrices, got {shown(rank)}")
        rank = {name: number_at(f"{where}.rank.{name}", one) for name, one in rank.items()}
    else:
        rank = number_at(f"{where}.rank", rank)
    return LowRankSite(rank, number_at(f"{where}.num_parameters", data["num_parameters"]))


def _entry_of(site: Site, outcome: LowRank, original: Tensors) -> LowRankSite:
    ranks = {name: right.shape[0] for name, (_, right) in outcome.factors.items()}
    rank = ranks["down"] if len(set(ranks.values())) == 1 else ranks
    return LowRankSite(rank, sum(tensor.numel() for tensor in _trained(site, outcome, original).values()))


def _tensors(site: Site, outcome: LowRank, original: Tensors) -> dict[str, Tensor]:
    """The factors; biases stay. Also the buffer `weight` of every map."""
    like = outcome.factors["down"][0]
    return _trained(site, outcome, original) | {f"{path}.weight": like.new_zeros(1) for path in linear_maps(site)}


def _trained(site: Site, outcome: LowRank, original: Tensors) -> dict[str, Tensor]:
    biases = read_all(original, [weight for weight in site.weights if weight.is_bias])
    tensors = {}
    for path, fields in linear_maps(site).items():
        for index, field in enumerate(fields):
            left, right = outcome.factors[field]
            part = f"{path}.parts.{index}"
            tensors |= {f"{part}.left.weight": left, f"{part}.right.weight": right}
            if f"{field}_bias" in biases:
                tensors[f"{part}.left.bias"] = biases[f"{field}_bias"]
    return tensors


def _is_there(model: PreTrainedModel, site: Site, entry: LowRankSite) -> bool:
    base, ranks = base_model(model), _ranks(site, entry)
    largest = min(site.hidden_size, site.intermediate_size)
    if max(ranks.values()) > largest:
        raise InputError(
            f"`mlp_fusion` wants rank {max(ranks.values())} at {site.path}, the config allows at most {largest}"
        )
    there = []
    for path, fields in linear_maps(site).items():
        linear = base.get_submodule(path)
        there.append(isinstance(linear, LowRankLinear) and list(linear.ranks()) == [ranks[name] for name in fields])
    return all(there)


def _make_room(model: PreTrainedModel, site: Site, entry: LowRankSite) -> None:
    base, ranks = base_model(model), _ranks(site, entry)
    for path, fields in linear_maps(site).items():
        linear = base.get_submodule(path)
        replace_module(base, path, _low_rank_like(linear, [ranks[name] for name in fields]))


def _ranks(site: Site, entry: LowRankSite) -> dict[str, int]:
    """The rank of every matrix. Raises `InputError` if the key names others than those of the site."""
    names = [name for names in linear_maps(site).values() for name in names]
    ranks = dict.fromkeys(names, entry.rank) if isinstance(entry.rank, int) else entry.rank
    if set(ranks) != set(names):
        raise InputError(f"`mlp_fusion` must have ranks for {', '.join(names)} at {site.path}, got {', '.join(ranks)}")
    return ranks


def _low_rank_like(linear: nn.Module, ranks: Sequence[int]) -> LowRankLinear:
    """Factors for `linear` of its device, dtype and `requires_grad`, uninitialised."""
    weight, bias = linear_weight(linear), linear_bias(linear)
    out_features, in_features = weight.shape
    with torch.device("meta"):
        new = LowRankLinear(in_features, out_features, ranks, bias=bias is not None, dense_type=type(linear))
    new = new.to(weight.dtype).to_empty(device=weight.device)
    new.weight.zero_()
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(linear.get_parameter(name.rpartition(".")[2]).requires_grad)
    return new.train(linear.training)


def _check(model: PreTrainedModel, site: Site, entry: LowRankSite) -> None:
    """Nothing beside the shapes, which transformers checks: any factors are good ones."""


@torch.no_grad()
def _fold(model: PreTrainedModel, site: Site) -> None:
    """Multiplies the factors: the plain maps that stood there before, of their size."""
    base = base_model(model)
    for path in linear_maps(site):
        linear = base.get_submodule(path)
        if isinstance(linear, LowRankLinear):
            replace_module(base, path, plain_copy(linear))


def plain_copy(linear: LowRankLinear) -> nn.Module:
    """A plain map, of the type that was replaced, that computes the same."""
    weight, bias = linear.dense_weight(), linear.dense_bias()
    new = new_linear(linear.dense_type, *weight.shape, bias=bias is not None)
    new = new.to(weight.dtype).to_empty(device=weight.device).train(linear.training)
    linear_weight(new).copy_(weight)
    if bias is not None:
        assert new.bias is not None
        new.bias.copy_(bias)
    return new


def _trained_block(model: PreTrainedModel, site: Site) -> FactoredMLP:
    factors = {}
    for path, fields in linear_maps(site).items():
        linear = base_model(model).get_submodule(path)
        assert isinstance(linear, LowRankLinear)
        pairs = [(left.weight.detach(), right.weight.detach()) for left, right in linear.pairs()]
        factors |= dict(zip(fields, pairs, strict=True))
    return FactoredMLP(read_block(model, site), factors)


def _size(site: Site, entry: LowRankSite) -> BlockSize:
    return BlockSize(site.intermediate_size, entry.num_parameters, entry.num_parameters, entry.rank)


def _size_words(size: BlockSize, metrics: Mapping[str, float]) -> str:
    if isinstance(size.rank, dict):
        return f"rank {min(size.rank.values())}-{max(size.rank.values())}"
    return f"rank {size.rank}"


KIND = Kind(
    name="low-rank",
    outcome=LowRank,
    entry=LowRankSite,
    blocks="low-rank factors in the MLPs",
    without_package="Without the package transformers refuses the checkpoint with a shape error.",
    read_entry=_read_entry,
    entry_of=_entry_of,
    tensors=_tensors,
    is_there=_is_there,
    make_room=_make_room,
    check=_check,
    fold=_fold,
    trained_block=_trained_block,
    size=_size,
    size_words=_size_words,
    can_be_cut=False,
    fold_warning="the factors were multiplied: the model has its original size again",
)
