"""Structured pruning by |w df/dw| under one threshold for all layers (NIRVANA, Ai et al. 2025, arXiv 2509.14230)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

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
    step of `--round-to`. The experts of a mixture get one width, by the means of their best neurons, of their second
    best and so on. f is the mean over the vocabulary and the samples of the model's logits, each at the token where it
    is largest. In a model without a language-modelling head it is that of the last hidden states, hidden features in
    the place of the vocabulary. No labels. The paper also prunes attention heads, and rounds widths up beyond
    the share.

    >>> NIRVANA()
    NIRVANA()
    """

    def needs(self) -> CalibrationNeeds:
        """Needs of the calibration: the gradients of this f."""
        return CalibrationNeeds(scalar="peak")


def compress(blocks: Sequence[Block], config: NIRVANA) -> list[Narrowed]:
    """Keeps the neurons above one threshold for all blocks, in their old order.

    The blocks of a group get one width: they are ranked as one block, whose j-th neuron has the mean saliency of their
    j-th best and counts once for each of them. Ties go to the earlier block, then to the lower index. The metric is the
    share of the block's saliency that is kept. No randomness. Raises `InputError` if a saliency overflows.
    """
    # one block at a time: the traces of all may be more than fits into memory
    ranked = [_Ranked.of(block, number) for number, block in enumerate(blocks)]
    members: dict[int | str, list[_Ranked]] = {}
    for one in ranked:
        members.setdefault(one.group, []).append(one)
    scores = [torch.stack([one.score for one in group]) for group in members.values()]
    total, steps = sum(one.num_neurons for one in ranked), [group[0].step for group in members.values()]
    widths = dict(zip(members, widths_under_one_threshold(scores, total, steps), strict=True))
    return [
        keep_best(replace(block, num_neurons=widths[one.group]), one.score)
        for block, one in zip(blocks, ranked, strict=True)
    ]


@dataclass(frozen=True)
class _Ranked:
    """The score of a block and how many of its neurons are to stay, in steps; blocks of one group get one width."""

    score: Float64[Tensor, " neurons"]
    num_neurons: int
    step: int
    group: int | str

    @classmethod
    def of(cls, block: Block, number: int) -> Self:
        score = saliency(block.mlp, block.inputs.trace, block.inputs.num_samples)
        check_finite(score, "the saliency |w df/dw|")
        return cls(score, block.num_neurons, block.round_to, number if block.group is None else block.group)


def saliency(mlp: MLP, trace: BlockTrace, num_samples: int | None = None) -> Float64[Tensor, " neurons"]:
    """Sums |w df/dw| over the weights of each neuron.

    f is the mean of the trace's f over the samples, whose gradients are added before the absolute value: those of the
    trace, or `num_samples`, of which the others have no gradient here. The weights
    of a neuron are its rows of `up` and `gate`, its column of `down`, and its biases, which go with it (the
    models of the paper have none). Computed in fp32 or better; the activation must be element-wise.

    >>> mlp = MLP(torch.ones(1, 1), torch.ones(1, 1), torch.relu)
    >>> trace = BlockTrace(torch.tensor([[3.0]]), torch.tensor([[-2.0]]), torch.tensor([1]))
    >>> saliency(mlp, trace).tolist()
    [12.0]
    """
    block = in_compute_dtype(mlp)
    effects = neurons(block) * neurons(_gradient(block, trace))
    return effects.abs().sum(1, dtype=torch.float64) / (num_samples or trace.num_samples)


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


def widths_under_one_threshold(
    scores: Sequence[Float[Tensor, "members neurons"]], total: int, steps: Sequence[int]
) -> list[int]:
    """Counts the neurons of each group of blocks above one threshold for all.

    The j-th neuron of a group has the mean of the j-th highest scores of its members, which all get one width. The
    threshold is the lowest that keeps at most `total` neurons, those of every member counted. Each width is rounded up
    to a multiple of the group's step, or to the whole block, and is at least one step; the sum is less than one step of
    a group below `total`, which must allow a step of every group.

    >>> widths_under_one_threshold([torch.tensor([[9.0, 8.0, 7.0]]), torch.tensor([[1.0, 2.0, 3.0]])], 4, [1, 1])
    [3, 1]
    """
    starts = [torch.arange(0, score.shape[1], step) for score, step in zip(scores, steps, strict=True)]
    sizes = [(score.shape[1] - first).clamp(max=step) for score, first, step in zip(scores, starts, steps, strict=True)]
    # a step is kept if its largest neuron is above the threshold, the first step of a block always
    sorted_scores = [score.cpu().sort(dim=1, descending=True).values.mean(0) for score in scores]
    largest = [
        values[::step].index_fill(0, torch.tensor([0]), torch.inf)
        for values, step in zip(sorted_scores, steps, strict=True)
    ]
    order = torch.cat(largest).argsort(descending=True, stable=True)
    costs = torch.cat([size * len(score) for size, score in zip(sizes, scores, strict=True)])
    is_kept = torch.zeros_like(order, dtype=torch.bool).index_put((order,), costs[order].cumsum(0) <= total)
    kept = torch.cat(sizes) * is_kept
    return [int(one.sum()) for one in kept.split([len(first) for first in starts])]
