"""Fusion trained to keep the gradients of the block (paper, Table 7; our definition).

If all neurons were the centroids of their clusters, the gradient of a fused neuron would be exactly
the sum over its members (paper, A.3). The target here is that sum over the members in the original
block.
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
    """Trains the fused block to keep the sums of the gradients over each cluster.

    Adam minimises the error of every sample's gradient; P stays. `learning_rate` is the rate of
    Adam. `num_epochs` passes over the samples are made. `batch_tokens` is the approximate number of
    tokens a step.

    >>> MaintainNTKGradient(num_epochs=2).learning_rate
    0.0003
    """

    learning_rate: float = 3e-4  # not tuned
    num_epochs: int = 1  # the paper's
    batch_tokens: int = 64  # not tuned


def compress(block: Block, config: MaintainNTKGradient) -> Narrowed:
    """Trains the fused block. The metrics are squared gradient errors over squared gradients.

    Minimises the sum over samples x of |grad_W~ f_c(x) - C grad_W f(x)|_F^2, over all tensors but
    b2. C is the cluster membership, which stays; f is the scalar of the calibration's cotangents.
    Raises `InputError` if the activation is not element-wise.
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
    """Target gradients of a student: for neuron j, the sum over the original neurons with label j.

    No gradient is ever formed. A gradient is a sum over the tokens of a sample of signal times
    vector, and student and original share the vectors (inputs or cotangents), so squares need inner
    products of tokens only.
    """

    original: MLP
    labels: Int[Tensor, " neurons"]

    def squares(self, trace: BlockTrace) -> Float[Tensor, ""]:
        """Sum over the samples x of |C grad_W f(x)|_F^2."""
        return sum_of_squares(self._gradients(trace), trace)

    def squared_gap(self, student: MLP, trace: BlockTrace) -> Float[Tensor, ""]:
        """Sum over the samples x of |grad_W~ f_c(x) - C grad_W f(x)|_F^2.

        Differentiable by the tensors of `student`.
        """
        whole = slice(None)
        gradients = weight_gradients(neuron_slab(student, whole), trace, create_graph=torch.is_grad_enabled())
        pairs = zip(gradients, self._gradients(trace), strict=True)
        gaps = [replace(gradient, signals=gradient.signals - target.signals) for gradient, target in pairs]
        return sum_of_squares(gaps, trace)

    @torch.no_grad()
    def _gradients(self, trace: BlockTrace) -> list[WeightGradient]:
        """Gradients of the original summed over each cluster, with one signal a cluster."""
        members = torch.nn.functional.one_hot(self.labels).to(trace.inputs)
        gradients = weight_gradients(neuron_slab(self.original, slice(None)), trace)
        return [replace(gradient, signals=gradient.signals @ members) for gradient in gradients]


def sum_of_squares(gradients: Iterable[WeightGradient], trace: BlockTrace) -> Float[Tensor, ""]:
    """Squared norms of the gradients, biases included, summed over samples and matrices.

    >>> ones = torch.ones(1, 1)
    >>> trace = BlockTrace(ones, ones, torch.tensor([1]))
    >>> sum_of_squares([WeightGradient("up", 3 * ones, 2 * ones)], trace).item()
    36.0
    """
    sample = torch.arange(trace.num_samples, device=trace.lengths.device).repeat_interleave(trace.lengths)
    same_sample = (sample[:, None] == sample).to(trace.inputs)
    total = trace.inputs.new_zeros(())
    for gradient in gradients:
        # |sum_t s_t v_t^T|_F^2 = sum_tu <s_t, s_u> <v_t, v_u>; a bias is one more input, of value 1
        products = gradient.vectors @ gradient.vectors.T + (gradient.bias is not None)
        total = total + (gradient.signals * ((products * same_sample) @ gradient.signals)).sum()
    return total
