"""Gaussian sketching of neurons (paper, section 5.3), and the top-k variant of the paper's code."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mlpfusion.checks import check_fields, check_range
from mlpfusion.errors import InputError
from mlpfusion.kinds.outcome import Narrowed
from mlpfusion.methods.block import Block
from mlpfusion.methods.data_free.neuron_pruning import joint_score
from mlpfusion.mlp import MLP, canonical_order, neurons, replace_neurons


@dataclass(frozen=True)
class Sketch:
    """Mixes the neurons by a random Gaussian matrix S: rows S^T W.

    A baseline of the paper with a large kernel error. In a gated block all three matrices share one
    S. `top` neurons with the best joint score are kept unmixed.

    >>> Sketch(top=2)
    Sketch(top=2)
    """

    top: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_range("top", self.top, 0)


def compress(block: Block, config: Sketch) -> Narrowed:
    """Keeps the `top` best neurons and sketches all others into `num_neurons - top` rows.

    Raises `InputError` unless `top` is below `num_neurons`.
    """
    mlp = block.mlp
    if config.top >= block.num_neurons:
        raise InputError(f"`top` must be below the {block.num_neurons} neurons to keep, got {config.top}")
    canonical = canonical_order(mlp)
    by_score = canonical[joint_score(mlp, 2)[canonical].argsort(descending=True, stable=True)]
    top, rest = by_score[: config.top], by_score[config.top :]
    mixture = gaussian_sketch(len(rest), block.num_neurons - config.top, block.generator).to(mlp.up.device)
    sketch = mixture.new_zeros(mlp.num_neurons, block.num_neurons)
    sketch[top, torch.arange(config.top, device=top.device)] = 1.0
    sketch[rest, config.top :] = mixture
    return Narrowed(apply_sketch(mlp, sketch))


def gaussian_sketch(
    num_neurons: int, num_sketched: int, generator: torch.Generator
) -> Float[Tensor, "neurons sketched"]:
    """Draws S with independent entries N(0, 1) / sqrt(num_sketched), in float64.

    The mean of S S^T is the identity.

    >>> gaussian_sketch(4, 2, torch.Generator()).shape
    torch.Size([4, 2])
    """
    draws = torch.randn(num_neurons, num_sketched, generator=generator, dtype=torch.float64)
    return draws / num_sketched**0.5


def apply_sketch(mlp: MLP, sketch: Float[Tensor, "neurons sketched"]) -> MLP:
    """Computes S^T up, S^T b1 and down S (and S^T gate), in the dtype of `mlp`; b2 stays.

    >>> mlp = MLP(torch.eye(2), torch.eye(2), torch.relu)
    >>> apply_sketch(mlp, torch.tensor([[1.0], [1.0]])).up.tolist()
    [[1.0, 1.0]]
    """
    rows = neurons(mlp)
    return replace_neurons(mlp, sketch.to(rows.dtype).T @ rows)
