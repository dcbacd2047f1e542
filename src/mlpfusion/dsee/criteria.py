"""How much each entry of a linear map matters, judged by its weights and by what an adapter adds to them."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from mlpfusion.dsee.adapter.layer import DseeLayer, dense_weight
from mlpfusion.seeds import site_generator


def update_scores(
    layer: Any, criterion: str = "abs", adapter_name: str = "default", seed: int = 0, path: str = ""
) -> Float[Tensor, "outputs inputs"]:
    """Returns a score for every entry of W, in the layout of `nn.Linear`.

    `layer` is a map under an adapter of DSEE or LoRA, with s = alpha / r: `abs` is |s (B A + S)|, `ab` |s B A|, `wab`
    |W + s B A|, `w` |W|, `random` a number drawn by `seed` and `path` alone. LoRA has no S.

    >>> from peft import LoraConfig, get_peft_model
    >>> adapted = get_peft_model(torch.nn.Sequential(torch.nn.Linear(2, 2)), LoraConfig(target_modules=["0"]))
    >>> update_scores(adapted.base_model.model[0]).tolist()
    [[0.0, 0.0], [0.0, 0.0]]
    """
    weight = dense_weight(layer.get_base_layer())
    match criterion:
        case "abs":
            return _added(layer, adapter_name).abs()
        case "ab":
            return _low_rank(layer, adapter_name).abs()
        case "wab":
            return (weight + _low_rank(layer, adapter_name)).abs()
        case "w":
            return weight.abs()
        case "random":
            return torch.rand(weight.shape, generator=site_generator(seed, path)).to(weight.device)
        case _:
            raise AssertionError(criterion)


def _added(layer: Any, adapter_name: str) -> Tensor:
    """s (B A + S)."""
    added: Tensor = layer.get_delta_weight(adapter_name).detach()
    return added.T if isinstance(layer.get_base_layer(), Conv1D) else added


def _low_rank(layer: Any, adapter_name: str) -> Tensor:
    """s B A."""
    if isinstance(layer, DseeLayer):
        return layer.scaling[adapter_name] * layer.update_of(adapter_name).low_rank().detach()
    return _added(layer, adapter_name)
