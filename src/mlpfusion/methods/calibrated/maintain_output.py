"""Fusion trained to keep the outputs of the block on calibration data (paper, Table 7; our definition)."""

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
    """Fusion, then Adam on the mean squared difference of the outputs on calibration data; P stays.

    `num_epochs` over the samples in steps of about `batch_tokens` tokens; `learning_rate` is that of Adam.
    """

    learning_rate: float = 1e-3
    num_epochs: int = 1
    batch_tokens: int = 64


def compress(block: Block, config: MaintainOutput) -> Narrowed:
    """The fused block trained on the calibration; the metrics are squared errors over the squared outputs."""
    start = fused_start(block.mlp, block.num_neurons, block.generator)
    size = float(block.inputs.targets.double().square().sum()) or 1.0

    def loss(student: MLP, part: Calibration) -> Float[Tensor, ""]:
        return (forward(student, part.trace.inputs) - part.targets).square().sum() / size

    student, before, after = train_student(start.student, block.inputs, loss, config.training(), block.generator)
    metrics = {"squared_error_start": before, "squared_error": after}
    return Narrowed(student, metrics | fusion.cluster_metrics(start.clusters))
