"""Fusion trained to keep the gradients of the block on calibration data (paper, Table 7; our definition).

In the block whose neurons all are the centroids of their clusters the gradient of a fused neuron is exactly the sum of
those of its members (paper, A.3). Here the sum over the members in the original block is what is aimed at.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlpfusion.kernel.gradient import WeightGradient, check_block, neuron_slab, weight_gradients
from mlpfusion.kernel.trace import BlockTrace
from mlpfusion.kinds.outcome import Narrowed
from mlpfusion.methods.block import Block
from mlpfusion.methods.calibrated.calibration import Calibration
from mlpfusion.methods.calibrated.student import TrainedMethod, fused_start, total_loss, train_student
from mlpfusion.methods.data_free import fusion
from mlpfusion.mlp import MLP


@dataclass(frozen=True)
class MaintainNTKGradient(TrainedMethod):
    """Fusion, then Adam on the difference of every sample's gradient from the sum over each cluster's members; P stays.

    `num_epochs` over the samples in steps of about `batch_tokens` tokens; `learning_rate` is that of Adam.
    """

    learning_rate: float = 3e-4
    num_epochs: int = 1
    batch_tokens: int = 64


def compress(block: Block, config: MaintainNTKGradient) -> Narrowed:
    """The fused block trained on the calibration; the metrics are squared errors of the gradients over their squares.

    Minimises the sum over the samples x of |grad_W~ f_c(x) - C grad_W f(x)|_F^2 over all tensors but b2, with C the
    membership of the clusters, which stays, and f what the cotangents of the calibration are the gradients of. Raises
    `InputError` if the activation is not element-wise.
    """
    calibration = block.inputs
    mlp = block.mlp
    check_block(mlp, calibration.trace)
    start, training = fused_start(mlp, block.num_neurons, block.generator), config.training()
    target = GradientTarget(start.original, start.clusters.labels.long())
    compute = calibration.to(mlp.up.device, torch.promote_types(mlp.up.dtype, torch.float32))
    size = total_loss(start.student, compute, lambda _student, part: target.squares(part.trace), training) or 1.0

    def loss(student: MLP, part: Calibration) -> Float[Tensor, ""]:
        return target.squared_gap(student, part.trace) / size

    student, before, after = train_student(start.student, calibration, loss, training, block.generator)
    metrics = {"gradient_error_start": before, "gradient_error": after}
    return Narrowed(student, metrics | fusion.cluster_metrics(start.clusters))


@dataclass(frozen=True)
class GradientTarget:
    """What the gradients of a student are to be: for its neuron j the sum of those of the neurons of `labels` j.

    No gradient is made: it is a sum over the tokens of a sample of a signal times a vector that student and original
    share, an input or a cotangent, so that squares need the inner products of tokens only.
    """

    original: MLP
    labels: Int[Tensor, " neurons"]

    def squares(self, trace: BlockTrace) -> Float[Tensor, ""]:
        """The sum over the samples x of |C grad_W f(x)|_F^2."""
        return sum_of_squares(self._gradients(trace), trace)

    def squared_gap(self, student: MLP, trace: BlockTrace) -> Float[Tensor, ""]:
        """The sum over the samples x of |grad_W~ f_c(x) - C grad_W f(x)|_F^2; can be differentiated by `student`."""
        found = weight_gradients(neuron_slab(student, slice(None)), trace, create_graph=torch.is_grad_enabled())
        pairs = zip(found, self._gradients(trace), strict=True)
        return sum_of_squares([replace(one, signals=one.signals - aim.signals) for one, aim in pairs], trace)

    @torch.no_grad()
    def _gradients(self, trace: BlockTrace) -> list[WeightGradient]:
        """The aggregated gradients of the original, with one signal a cluster."""
        members = torch.nn.functional.one_hot(self.labels).to(trace.inputs)
        found = weight_gradients(neuron_slab(self.original, slice(None)), trace)
        return [replace(gradient, signals=gradient.signals @ members) for gradient in found]


def sum_of_squares(gradients: Iterable[WeightGradient], trace: BlockTrace) -> Float[Tensor, ""]:
    """The sum over the samples and the blocks of the squared norm of the gradient, biases included."""
    sample = torch.arange(trace.num_samples, device=trace.lengths.device).repeat_interleave(trace.lengths)
    together = (sample[:, None] == sample).to(trace.inputs)
    total = trace.inputs.new_zeros(())
    for gradient in gradients:
        products = gradient.vectors @ gradient.vectors.T + (gradient.bias is not None)
        total = total + (gradient.signals * ((products * together) @ gradient.signals)).sum()
    return total
