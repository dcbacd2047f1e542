"""Structured pruning by the Fisher information of the neurons (Theis et al. 2018, arXiv 1801.05787).

For neurons of experts: HEAPr (arXiv 2509.22299), which multiplies the mean outer product of the gradients by the mean
one of a neuron's outputs where here both are of the same token.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from mlpfusion.checks import check_finite
from mlpfusion.kernel import BlockTrace
from mlpfusion.kinds.outcome import Narrowed
from mlpfusion.methods.block import Block, CalibrationNeeds
from mlpfusion.methods.calibrated.refit import activation_chunks, chunks_like
from mlpfusion.methods.data_free.neuron_pruning import keep_best
from mlpfusion.mlp import MLP


@dataclass(frozen=True)
class Fisher:
    """Keeps the neurons whose removal changes the likelihood of the text most, to second order.

    f is the log-likelihood of every next token in a causal language model; in others it is a logit of a random head on
    the last hidden states. No labels. Every layer keeps the same share; HEAPr ranks all layers together.

    >>> Fisher()
    Fisher()
    """

    def needs(self) -> CalibrationNeeds:
        """Needs of the calibration: the gradients of this f."""
        return CalibrationNeeds(scalar="likelihood")


def compress(block: Block, config: Fisher) -> Narrowed:
    """Keeps the neurons with the most information, in their old order. Ties go to the lower index.

    The metric is the share of the information that is kept. No randomness. Raises `InputError` if it overflows.
    """
    score = information(block.mlp, block.inputs.trace)
    check_finite(score, "the Fisher information of the neurons")
    return keep_best(block, score)


def information(mlp: MLP, trace: BlockTrace) -> Float64[Tensor, " neurons"]:
    """Sums the squares of df/dm over the tokens, m a factor of the neuron's activation.

    At token t it is (a_t <down, D_t>)^2, with the activation a and the gradient D of f at the output of the block. Half
    of it is what the removal of the neuron costs to second order where the gradient of the loss vanishes.

    >>> mlp = MLP(torch.ones(1, 1), torch.ones(1, 1), torch.relu)
    >>> information(mlp, BlockTrace(torch.tensor([[3.0]]), torch.tensor([[-2.0]]), torch.tensor([1]))).tolist()
    [36.0]
    """
    total = torch.zeros(mlp.num_neurons, dtype=torch.float64, device=mlp.up.device)
    chunks = zip(activation_chunks(mlp, trace.inputs), chunks_like(trace.inputs, trace.cotangents), strict=True)
    for activations, cotangents in chunks:
        assert cotangents is not None
        effects = activations * (cotangents.to(activations) @ mlp.down.to(activations))
        total += effects.double().square().sum(0)
    return total
