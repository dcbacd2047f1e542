"""The block at a site of a model as what trains there: dense, of two factors, or masked."""

from transformers import PreTrainedModel

from mlpfusion.kernel import Block, FactoredMLP, MaskedMLP
from mlpfusion.modules.low_rank import LowRankLinear
from mlpfusion.modules.masked import MASKED_TYPES
from mlpfusion.sites.sites import Site, base_model, linear_maps
from mlpfusion.sites.traces import read_block


def trained_block(model: PreTrainedModel, site: Site) -> Block:
    """The block for `adam_kernel`: its parameters are exactly those that `model` trains there.

    Shares memory with the model, but for the products of factors. Raises `InputError` as `read_mlp` does.
    """
    mlp = read_block(model, site)
    maps = {path: base_model(model).get_submodule(path) for path in linear_maps(site)}
    factors = {}
    for path, names in linear_maps(site).items():
        linear = maps[path]
        if isinstance(linear, LowRankLinear):
            pairs = [(left.weight.detach(), right.weight.detach()) for left, right in linear.pairs()]
            factors |= dict(zip(names, pairs, strict=True))
    if factors:
        return FactoredMLP(mlp, factors)
    masked = all(type(linear) in MASKED_TYPES.values() for linear in maps.values())
    return MaskedMLP(mlp) if masked else mlp
