"""Structured pruning by |w df/dw| under one threshold for all layers (NIRVANA, Ai et al. 2025, arXiv 2509.14230)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mlpfusion.checks import check_finite
from mlpfusion.kernel import BlockTrace
from mlpfusion.kernel.gradient import weight_gradients
from mlpfusion.kinds.outcome import Narrowed
from mlpfusion.methods.block import Block, CalibrationNeeds
from mlpfusion.methods.data_free.neuron_pruning import keep_best
from mlpfusion.mlp import MLP, in_compute_dtype, neurons

# Tokens whose signals are in memory at once: some 0.3 GB for 4,096 gated neurons in fp32.
_CHUNK_TOKENS = 1024


@dataclass(frozen=True)
class NIRVANA:
    """Keeps the neurons of all layers with the largest sum of |w df/dw|.

    They are ranked together, so the widths differ: the layers keep the share that is asked for in sum, each at least a
    step of `--round-to`. f is the mean over the vocabulary and the samples of the model's logits, each at the token
    where it is largest. In a model without a language-modelling head it is that of the last hidden states, hidden
    features in the place of the vocabulary. No labels. The paper also prunes attention heads, and rounds widths up
    beyond the share.

    >>> NIRVANA()
    NIRVANA()
    """

    def needs(self) -> CalibrationNeeds:
        """Needs of the calibration: the gradients of this f."""
        return CalibrationNeeds(scalar="peak")


def compress(blocks: Sequence[Block], config: NIRVANA) -> list[Narrowed]:
    """Keeps the neurons above one threshold for all blocks, in their old order.

    Ties go to the earlier block, then to the lower index. The metric is the share of the block's saliency that is kept.
    No randomness. Raises `InputError` if a saliency overflows.
    """
    scores = [saliency(block.mlp, block.inputs.trace) for block in blocks]
    for score in scores:
        check_finite(score, "the saliency |w df/dw|")
    widths = widths_under_one_threshold(scores, sum(block.num_neurons for block in blocks), blocks[0].round_to)
    chosen = [replace(block, num_neurons=width) for block, width in zip(blocks, widths, strict=True)]
    return [keep_best(block, score) for block, score in zip(chosen, scores, strict=True)]


def saliency(mlp: MLP, trace: BlockTrace) -> Float64[Tensor, " neurons"]:
    """Sums |w df/dw| over the weights of each neuron.

    f is the mean of the trace's f over its samples, whose gradients are added before the absolute value. The weights
    of a neuron are its rows of `up` and `gate`, its column of `down`, and its biases, which go with it (the
    models of the paper have none). Computed in fp32 or better; the activation must be element-wise.

    >>> mlp = MLP(torch.ones(1, 1), torch.ones(1, 1), torch.relu)
    >>> trace = BlockTrace(torch.tensor([[3.0]]), torch.tensor([[-2.0]]), torch.tensor([1]))
    >>> saliency(mlp, trace).tolist()
    [12.0]
    """
    block = in_compute_dtype(mlp)
    effects = neurons(block) * neurons(_gradient(block, trace))
    return effects.abs().sum(1, dtype=torch.float64) / trace.num_samples


def _gradient(mlp: MLP, trace: BlockTrace) -> MLP:
    """The gradient of the sum of f over the samples by every weight of a neuron, in the place of the weight."""
    sums = {name: torch.zeros_like(tensor) for name, tensor in mlp.tensors().items()}
    for inputs, cotangents in zip(*(x.split(_CHUNK_TOKENS) for x in (trace.inputs, trace.cotangents)), strict=True):
        chunk = BlockTrace(inputs.to(mlp.up), cotangents.to(mlp.up), trace.lengths.new_tensor([len(inputs)]))
        for gradient in weight_gradients(mlp, chunk):
            product = gradient.signals.T @ gradient.vectors
            sums[gradient.name] += product.T if gradient.name == "down" else product
            if gradient.bias is not None:
                sums[gradient.bias] += gradient.signals.sum(0)
    return replace(mlp, **sums)


def widths_under_one_threshold(scores: Sequence[Float[Tensor, " neurons"]], total: int, step: int) -> list[int]:
    """Counts the neurons of each block above one threshold for all.

    It is the lowest that keeps at most `total`. Each count is rounded up to a multiple of `step`, or to the whole
    block, and is at least one step; their sum is less than one step below `total`, which must allow a step of every
    block.

    >>> widths_under_one_threshold([torch.tensor([9.0, 8.0, 7.0]), torch.tensor([1.0, 2.0, 3.0])], 4, 1)
    [3, 1]
    """
    starts = [torch.arange(0, len(score), step) for score in scores]
    sizes = torch.cat([(len(score) - first).clamp(max=step) for score, first in zip(scores, starts, strict=True)])
    # a step is kept if its largest neuron is above the threshold, the first step of a block always
    largest = [score.cpu().sort(descending=True).values[::step] for score in scores]
    ranked = torch.cat([values.index_fill(0, torch.tensor([0]), torch.inf) for values in largest])
    order = ranked.argsort(descending=True, stable=True)
    kept = torch.zeros_like(sizes).index_put((order,), sizes[order] * (sizes[order].cumsum(0) <= total))
    return [int(one.sum()) for one in kept.split([len(first) for first in starts])]
