"""NIRVANA's saliency of a block, added up matrix by matrix."""

import torch
from torch import Tensor

from mlpfusion.mlp import MLP


def saliency_by_hand(weights: MLP, gradients: MLP) -> Tensor:
    total = torch.zeros(weights.num_neurons, dtype=torch.float64)
    for name, weight in weights.tensors().items():
        product = (weight * gradients.tensors()[name]).abs().detach()
        if name != "down_bias":
            total += product.sum(0) if name == "down" else product if product.ndim == 1 else product.sum(1)
    return total
