"""Fusion trained to keep the outputs of the block (paper, Table 7; our definition)."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mlpfusion.kinds.outcome import Narrowed
from mlpfusion.methods.block import Block
from mlpfusion.methods.calibrated.calibration import Calibration
from mlpfusion.methods.calibrated.student import TrainedMethod, fused_start, train_student
from mlpfusion.methods.data_free import fusion
from mlpfusion.mlp import MLP, forward


@dataclass(frozen=True)
class MaintainOutput(TrainedMethod):
    """Trains the fused block to keep its outputs on calibration data.

    Adam minimises the mean squared error; P stays. `learning_rate` is the rate of Adam.
    `num_epochs` passes over the samples are made. `batch_tokens` is the approximate number of
    tokens a step.

    >>> MaintainOutput(num_epochs=2).learning_rate
    0.001
    """

    learning_rate: float = 1e-3  # Adam's default; not tuned
    num_epochs: int = 1  # the paper's
    batch_tokens: int = 64  # not tuned


def compress(block: Block, config: MaintainOutput) -> Narrowed:
    """Trains the fused block. The metrics are squared errors over squared outputs."""
    start = fused_start(block.mlp, block.num_neurons, block.generator)
    calibration = block.inputs.with_targets(block.mlp)
    size = float(calibration.targets_of(block.mlp).double().square().sum()) or 1.0

    def loss(student: MLP, part: Calibration) -> Float[Tensor, ""]:
        return (forward(student, part.trace.inputs) - part.targets_of(block.mlp)).square().sum() / size

    student, before, after = train_student(start.student, calibration, loss, config.training(), block.generator)
    metrics = {"squared_error_start": before, "squared_error": after}
    return Narrowed(student, metrics | fusion.cluster_metrics(start.clusters))
