"""Slow, obvious versions that the package is tested against."""

from dataclasses import replace

import torch
from torch import Tensor

from mlpfusion.mlp import MLP, forward, neurons, replace_neurons

BLOCKS = ("up", "up_bias", "gate", "gate_bias", "down", "down_bias")


def expanded(mlp: MLP, labels: Tensor) -> MLP:
    """The block as wide as `mlp` in which every neuron is replaced by the mean of its cluster (paper, section 4.2)."""
    rows = neurons(mlp)
    means = torch.stack([rows[labels == labels[i]].mean(0) for i in range(len(rows))])
    return replace_neurons(mlp, means)


def adam_kernel(mlp: MLP, x: Tensor, cotangents: Tensor) -> dict[str, Tensor]:
    """<grad f(x_i), sign grad f(x_j)> per block of parameters (paper, Eq. 3), by autograd, one sample at a time.

    `x` has shape (samples, tokens, hidden); f is the sum of the block's output times `cotangents` of that shape.
    """
    gradients: dict[str, list[Tensor]] = {}
    for sample, cotangent in zip(x, cotangents, strict=True):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in mlp.tensors().items()}
        (forward(replace(mlp, **leaves), sample) * cotangent).sum().backward()
        for name, leaf in leaves.items():
            assert leaf.grad is not None
            gradients.setdefault(name, []).append(leaf.grad.flatten())
    stacked = {name: torch.stack(rows) for name, rows in gradients.items()}
    return {name: rows @ rows.sign().T for name, rows in stacked.items()}
