"""The heads of the lowest scores: by what an adapter adds to query and value, or by the weights of both."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from mlpfusion.dsee.structured.choice import HeadChoice, head_scores, kept_heads
from mlpfusion.dsee.structured.record import LayerHeads
from mlpfusion.heads.sites import find_heads
from mlpfusion.sites.sites import base_model
from mlpfusion.sites.weights import linear_shape, linear_weight


def lowest_heads(
    model: PreTrainedModel, choice: HeadChoice, updates: Mapping[str, Float[Tensor, " rows"]] | None
) -> list[LayerHeads]:
    """Returns what stays of each attention when the heads of the lowest scores go. Changes nothing.

    `updates` has the sum of |(alpha / r) (B A + S)| in every row of a linear map, by the path from the base model; maps
    that it leaves out count 0. Without it the rows of |W| are summed.
    """
    base, sites = base_model(model), find_heads(model)

    def sums(path: str) -> Tensor:
        module = base.get_submodule(path)
        if updates is None:
            return linear_weight(module).abs().sum(1, dtype=torch.float64)
        return updates.get(path, torch.zeros(linear_shape(module)[0], dtype=torch.float64))

    scores = {site.path: head_scores(site, sums(site.query), sums(site.value)) for site in sites}
    kept = kept_heads(scores, choice)
    return [
        LayerHeads(site.path, site.layer, tuple(kept[site.path]), tuple(scores[site.path].tolist())) for site in sites
    ]
