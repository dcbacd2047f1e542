"""The low-rank kind: every linear map of a site becomes two, the width stays."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mlpfusion.errors import InputError
from mlpfusion.kinds.key import LowRankSite
from mlpfusion.kinds.linear import linear_copy, new_linear, replace_module
from mlpfusion.kinds.outcome import LowRank
from mlpfusion.modules.low_rank import LowRankLinear
from mlpfusion.sites.sites import Site, base_model, linear_maps, linear_tensors, site_parameters


def install(model: PreTrainedModel, site: Site, outcome: LowRank) -> LowRankSite:
    """Puts the factors in the place of the linear maps at `site`; biases stay. Changes the model; values are copied."""
    base = base_model(model)
    for path, names in linear_maps(site).items():
        linear = base.get_submodule(path)
        factors = [outcome.factors[name] for name in names]
        new = _low_rank_like(linear, [right.shape[0] for _, right in factors])
        _copy_factors(new, factors, linear_tensors(linear)[1])
        replace_module(base, path, new)
    ranks = {name: right.shape[0] for name, (_, right) in outcome.factors.items()}
    rank = ranks["down"] if len(set(ranks.values())) == 1 else ranks
    return LowRankSite(rank, sum(parameter.numel() for parameter in site_parameters(base, site)))


def rebuild(model: PreTrainedModel, site: Site, entry: LowRankSite) -> None:
    """Makes room for the factors, uninitialised. Changes the model; idempotent. Raises `InputError` for a bad rank."""
    base, ranks = base_model(model), _ranks(site, entry)
    largest = min(site.hidden_size, site.intermediate_size)
    if max(ranks.values()) > largest:
        raise InputError(
            f"`mlp_fusion` wants rank {max(ranks.values())} at {site.path}, the config allows at most {largest}"
        )
    for path, names in linear_maps(site).items():
        linear, wanted = base.get_submodule(path), [ranks[name] for name in names]
        if not (isinstance(linear, LowRankLinear) and list(linear.ranks()) == wanted):
            replace_module(base, path, _low_rank_like(linear, wanted))


def check(model: PreTrainedModel, site: Site, entry: LowRankSite) -> None:
    """Nothing beside the shapes, which transformers checks: any factors are good ones."""


def fold(model: PreTrainedModel, site: Site) -> None:
    """Multiplies the factors: the plain maps that stood there before, of their size. Changes the model."""
    base = base_model(model)
    for path in linear_maps(site):
        linear = base.get_submodule(path)
        if isinstance(linear, LowRankLinear):
            weight, bias = linear.dense()
            new = new_linear(linear.dense_type, *weight.shape, bias=bias is not None)
            new = new.to(weight.dtype).to_empty(device=weight.device).train(linear.training)
            linear_copy(new, weight, bias)
            replace_module(base, path, new)


def _ranks(site: Site, entry: LowRankSite) -> dict[str, int]:
    """The rank of every matrix. Raises `InputError` if the key names others than those of the site."""
    names = [name for names in linear_maps(site).values() for name in names]
    ranks = dict.fromkeys(names, entry.rank) if isinstance(entry.rank, int) else entry.rank
    if set(ranks) != set(names):
        raise InputError(f"`mlp_fusion` must have ranks for {', '.join(names)} at {site.path}, got {', '.join(ranks)}")
    return ranks


def _low_rank_like(linear: nn.Module, ranks: Sequence[int]) -> LowRankLinear:
    """Factors for `linear` of its device, dtype and `requires_grad`, uninitialised."""
    weight, bias = linear_tensors(linear)
    out_features, in_features = weight.shape
    with torch.device("meta"):
        new = LowRankLinear(in_features, out_features, ranks, bias=bias is not None, dense_type=type(linear))
    new = new.to(weight.dtype).to_empty(device=weight.device)
    new.weight.zero_()
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(linear.get_parameter(name.rpartition(".")[2]).requires_grad)
    return new.train(linear.training)


@torch.no_grad()
def _copy_factors(linear: LowRankLinear, factors: list[tuple[Tensor, Tensor]], bias: Tensor | None) -> None:
    pairs = linear.pairs()
    biases = [None] * len(pairs) if bias is None else bias.chunk(len(pairs))
    for (left, right), (left_factor, right_factor), part in zip(pairs, factors, biases, strict=True):
        linear_copy(left, left_factor, part)
        linear_copy(right, right_factor, None)
