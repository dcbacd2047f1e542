"""What a one-shot method gets to work on."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from mlpfusion.kernel.trace import BlockTrace
from mlpfusion.kinds.outcome import Narrowed
from mlpfusion.methods.calibrated.calibration import Calibration
from mlpfusion.mlp import MLP

# (original block, its trace, narrowed block, its trace) -> the narrowed block with other scales
SecondStep = Callable[[MLP, BlockTrace, Narrowed, BlockTrace], Narrowed]


@dataclass(frozen=True)
class CalibrationNeeds:
    """What a calibrated method is to be given: `batches` of inputs, or else inputs drawn from the norms of the model.

    `pooling` is what the head that weights the tokens reads (`kernel.scalar.POOLINGS`); `mean` weights all alike.
    """

    batches: bool = True
    pooling: str = "mean"


@dataclass(frozen=True)
class Block:
    """One MLP to compress, how much of it is to stay, and all that a method may use beside it.

    A method that narrows keeps `num_neurons` neurons; one that keeps the width keeps the share `keep_ratio` of the
    entries of the matrices. `generator` is the random stream of this block alone, so the outcome does not depend on
    the other blocks. `calibration` is there for a method that sees inputs, and for no other.
    """

    mlp: MLP
    num_neurons: int
    generator: torch.Generator
    keep_ratio: float = 1.0
    calibration: Calibration | None = None

    @property
    def rank(self) -> int:
        """The largest rank at which two factors hold at most `keep_ratio` of the entries of a matrix, but at least 1.

        At `keep_ratio` 1 that is below full rank: two full factors hold more than their product.
        """
        return factor_rank(self.mlp.hidden_size, self.mlp.num_neurons, self.keep_ratio)

    @property
    def inputs(self) -> Calibration:
        """The calibration of a method that sees inputs."""
        assert self.calibration is not None
        return self.calibration


def factor_rank(hidden_size: int, num_neurons: int, keep_ratio: float) -> int:
    """`Block.rank` from the sizes alone.

    >>> factor_rank(hidden_size=768, num_neurons=3072, keep_ratio=0.25)
    153
    """
    return max(1, int(keep_ratio * hidden_size * num_neurons / (hidden_size + num_neurons)))
