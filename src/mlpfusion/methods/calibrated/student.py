"""Training of a narrower block on calibration data, from the fused block on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlpfusion.checks import check_above_zero, check_fields, check_range
from mlpfusion.cluster import KMeansResult
from mlpfusion.methods.block import CalibrationNeeds
from mlpfusion.methods.calibrated.calibration import Calibration
from mlpfusion.methods.data_free import fusion
from mlpfusion.mlp import MLP, canonical_order, in_compute_dtype, select_neurons

# (student, some samples) -> the loss summed over the samples. About 1 over all samples, so that
# Adam's default epsilon is small against the gradients.
Loss = Callable[[MLP, Calibration], Float[Tensor, ""]]


@dataclass(frozen=True)
class Training:
    """Options of the training: Adam with a constant rate.

    `num_epochs` passes over the samples, in steps of about `batch_tokens` tokens.
    """

    learning_rate: float
    num_epochs: int
    batch_tokens: int

    def __post_init__(self) -> None:
        check_above_zero("learning_rate", self.learning_rate)
        check_range("num_epochs", self.num_epochs, 1)
        check_range("batch_tokens", self.batch_tokens, 1)


@dataclass(frozen=True)
class TrainedMethod:
    """Options of a method with training of the fused block."""

    learning_rate: float
    num_epochs: int
    batch_tokens: int

    def __post_init__(self) -> None:
        check_fields(self)
        self.training()

    def needs(self) -> CalibrationNeeds:
        """What the method is calibrated on."""
        return CalibrationNeeds()

    def training(self) -> Training:
        """Options of the training. Raises `ValueError` for a bad option."""
        return Training(self.learning_rate, self.num_epochs, self.batch_tokens)


@dataclass(frozen=True)
class FusedStart:
    """The original in canonical order, its clustering, and the fused block."""

    original: MLP
    clusters: KMeansResult
    student: MLP


def fused_start(mlp: MLP, num_neurons: int, generator: torch.Generator) -> FusedStart:
    """Fuses `mlp` with Fusion's default options, whatever the order of its neurons."""
    original = select_neurons(mlp, canonical_order(mlp))
    clusters = fusion.cluster_neurons(original, num_neurons, fusion.Fusion(), generator)
    return FusedStart(original, clusters, fusion.fused_block(original, clusters))


def train_student(
    start: MLP, calibration: Calibration, loss: Loss, training: Training, generator: torch.Generator
) -> tuple[MLP, float, float]:
    """Trains all tensors but `down_bias`. Returns the block and the loss before and after.

    The block is in the dtype of `start`, steps are made in fp32 or better, and losses are over all
    samples. If training did not lower the loss of the rounded block, `start` is returned. No
    argument is changed.
    """
    calibration = calibration.to(start.up.device, torch.promote_types(start.up.dtype, torch.float32))
    before = total_loss(start, calibration, loss, training)
    trained = _train(start, calibration, loss, training, generator)
    after = total_loss(trained, calibration, loss, training)
    return (trained, before, after) if after < before else (start, before, before)


def total_loss(student: MLP, calibration: Calibration, loss: Loss, training: Training) -> float:
    """Sums the loss of `student` over all samples, in fp32 or better, without a graph."""
    block, order = in_compute_dtype(student), torch.arange(calibration.trace.num_samples)
    with torch.no_grad():
        return sum(float(loss(block, part)) for part in _parts(calibration, order, training.batch_tokens))


def _train(start: MLP, calibration: Calibration, loss: Loss, training: Training, generator: torch.Generator) -> MLP:
    block = in_compute_dtype(start)
    leaves = {n: t.detach().clone().requires_grad_() for n, t in block.tensors().items() if n != "down_bias"}
    optimizer = torch.optim.Adam(leaves.values(), lr=training.learning_rate)
    num_samples = calibration.trace.num_samples
    for _ in range(training.num_epochs):
        order = torch.randperm(num_samples, generator=generator)
        for part in _parts(calibration, order, training.batch_tokens):
            with torch.enable_grad():
                value = loss(replace(block, **leaves), part) * (num_samples / part.trace.num_samples)
                gradients = torch.autograd.grad(value, list(leaves.values()))
            for leaf, gradient in zip(leaves.values(), gradients, strict=True):
                leaf.grad = gradient
            optimizer.step()
    return replace(start, **{name: leaf.detach().to(start.up.dtype) for name, leaf in leaves.items()})


def _parts(calibration: Calibration, order: Int[Tensor, " samples"], batch_tokens: int) -> Iterator[Calibration]:
    """Splits the samples, in the given order, into batches of about `batch_tokens` tokens.

    No sample is split.
    """
    lengths = calibration.trace.lengths.cpu()[order]
    starts = (lengths.cumsum(0) - lengths) // batch_tokens
    counts = torch.unique_consecutive(starts, return_counts=True)[1].tolist()
    return (calibration.select(samples) for samples in order.split(counts))
