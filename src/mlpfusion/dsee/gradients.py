"""Gradients of the loss by linear map: what one pass over labelled examples says of every entry."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mlpfusion.batch import Batch, to_device
from mlpfusion.dsee.adapter.model import query_and_value


def loss_gradients(
    model: PreTrainedModel, batches: Iterable[Batch], targets: str | Iterable[str] | None = None
) -> dict[str, Tensor]:
    """Returns the summed gradient of each linear map, by path, in the layout of `nn.Linear`.

    `batches` hold labels. `targets` are as in `DseeConfig`. Without dropout; neither weights nor flags of the model
    are changed.
    """
    maps = {path: module for path, module in model.named_modules() if _is_target(model, path, module, targets)}
    weights: list[Any] = [module.weight for module in maps.values()]
    flags, training = [weight.requires_grad for weight in weights], model.training
    total = [torch.zeros_like(weight) for weight in weights]
    try:
        model.eval()
        for weight in weights:
            weight.requires_grad_(True)
        for batch in batches:
            loss = model(**to_device(batch, model.device)).loss * len(next(iter(batch.values())))
            found = torch.autograd.grad(loss, weights, allow_unused=True)
            total = [old if new is None else old + new for old, new in zip(total, found, strict=True)]
    finally:
        model.train(training)
        for weight, flag in zip(weights, flags, strict=True):
            weight.requires_grad_(flag)
    return {
        path: gradient.T if isinstance(module, Conv1D) else gradient
        for (path, module), gradient in zip(maps.items(), total, strict=True)
    }


def _is_target(model: PreTrainedModel, path: str, module: nn.Module, targets: str | Iterable[str] | None) -> bool:
    if not isinstance(module, nn.Linear | Conv1D):
        return False
    if targets == "all-linear":
        return True
    names = query_and_value(model) if targets is None else targets
    return any(f".{path}".endswith(f".{name}") for name in names)
