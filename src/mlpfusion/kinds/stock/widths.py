"""Blocks of other widths without other outputs: neurons of zeros, which engines with one width a model need."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from mlpfusion.kinds.narrow_experts import gathered
from mlpfusion.kinds.outcome import Narrowed
from mlpfusion.kinds.table import install
from mlpfusion.mlp import MLP
from mlpfusion.sites.sites import Site, by_holder, find_sites, read_mlp
from mlpfusion.sites.table import Architecture


def even_widths(model: PreTrainedModel, row: Architecture, multiple: int) -> dict[str, int]:
    """The smallest width that all blocks of one entry of the config can have, by holder: a multiple of `multiple`."""
    sites, widest = find_sites(model, row), dict[str, int]()
    for site in sites:
        widest[_group(site)] = max(site.intermediate_size, widest.get(_group(site), 0))
    return {site.holder: -(-widest[_group(site)] // multiple) * multiple for site in sites}


def set_widths(model: PreTrainedModel, row: Architecture, widths: Mapping[str, int]) -> None:
    """Gives the blocks at these holders other widths: zeros are added, or the last neurons taken. Changes `model`.

    The blocks must have no scales. Zeros change no output.
    """
    for holder, sites in by_holder(find_sites(model, row)).items():
        if widths.get(holder, sites[0].intermediate_size) != sites[0].intermediate_size:
            outcomes = [Narrowed(resized_mlp(read_mlp(model, site), widths[holder])) for site in sites]
            for site, outcome in gathered(sites, outcomes):
                install(model, site, outcome)


def resized_mlp(mlp: MLP, num_neurons: int) -> MLP:
    """The first neurons of `mlp`, and after them as many of zeros as are missing.

    >>> mlp = MLP(up=torch.ones(2, 3), down=torch.ones(3, 2), activation=torch.relu)
    >>> resized_mlp(mlp, 3).up.tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    """
    more = num_neurons - mlp.num_neurons

    def rows(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else pad(tensor, (0, 0) * (tensor.ndim - 1) + (0, more))

    up, down = rows(mlp.up), pad(mlp.down, (0, more))
    assert up is not None
    with torch.no_grad():
        return replace(
            mlp, up=up, down=down, gate=rows(mlp.gate), up_bias=rows(mlp.up_bias), gate_bias=rows(mlp.gate_bias)
        )


def _group(site: Site) -> str:
    """The blocks that must have one width: those whose width one entry of the config holds."""
    return site.stack.width_key or site.stack.layer
