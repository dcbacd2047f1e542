"""Reads a block in its trained form: dense, two factors, or masked."""

from transformers import PreTrainedModel

from mlpfusion.kernel import Block, FactoredMLP, MaskedMLP
from mlpfusion.modules.low_rank import LowRankLinear
from mlpfusion.modules.masked import MASKED_TYPES
from mlpfusion.sites.sites import Site, base_model, linear_maps
from mlpfusion.sites.traces import read_block


def trained_block(model: PreTrainedModel, site: Site) -> Block:
    """Reads the block at a site, with exactly the parameters trained by `model`.

    Dense weights share memory with the model; products of factors are new.
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
