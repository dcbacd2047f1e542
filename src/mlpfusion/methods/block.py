"""Input of a one-shot method: one block, its size, and a calibration."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from mlpfusion.kernel.trace import BlockTrace
from mlpfusion.kinds.outcome import Narrowed
from mlpfusion.methods.calibrated.calibration import Calibration
from mlpfusion.mlp import MLP

# The f whose gradients a calibration holds. `head`: logits of a random head on the last hidden states, in turns.
# `peak`: the mean over the vocabulary of the model's own logits, each at the token where it is largest.
# `likelihood`: the log-likelihood of every next token in a causal language model, in others that of `head`.
CalibrationScalar = Literal["head", "peak", "likelihood"]

# (original block, its trace, narrowed block, its trace) -> the narrowed block with other scales
SecondStep = Callable[[MLP, BlockTrace, Narrowed, BlockTrace], Narrowed]


@dataclass(frozen=True)
class CalibrationNeeds:
    """Needs of a calibrated method beside batches of inputs.

    `pooling` is the pooling of the head that weights the tokens (`kernel.scalar.POOLINGS`); `mean`
    weights all alike. Without `gradients` the cotangents of the calibration are zeros: no backward
    pass is made, which takes most of the memory of a calibration. `scalar` is the f that they are
    the gradients of.
    """

    pooling: str = "mean"
    gradients: bool = True
    scalar: CalibrationScalar = "head"


@dataclass(frozen=True)
class Block:
    """One MLP to compress, with its target size, random generator and calibration.

    A method that narrows keeps `num_neurons` neurons; others keep the share `keep_ratio` of the
    matrix entries. One that narrows and ranks the blocks together keeps the sum of `num_neurons`,
    in each block a multiple of `round_to` or all, and one width in all blocks of a `group`: the experts of a mixture.
    `generator` belongs to this block alone, so the
    outcome does not depend on other blocks. `calibration` is set for methods that see inputs, and
    None for others.
    """

    mlp: MLP
    num_neurons: int
    generator: torch.Generator
    keep_ratio: float = 1.0
    calibration: Calibration | None = None
    round_to: int = 1
    group: str | None = None

    @property
    def rank(self) -> int:
        """Largest rank of two factors within `keep_ratio` of the matrix entries; at least 1.

        At `keep_ratio` 1 the rank is below full rank: two full factors hold more than their
        product.
        """
        return factor_rank(self.mlp.hidden_size, self.mlp.num_neurons, self.keep_ratio)

    @property
    def inputs(self) -> Calibration:
        """Calibration of a method that sees inputs."""
        assert self.calibration is not None
        return self.calibration


def factor_rank(hidden_size: int, num_neurons: int, keep_ratio: float) -> int:
    """Computes `Block.rank` from the sizes alone.

    >>> factor_rank(hidden_size=768, num_neurons=3072, keep_ratio=0.25)
    153
    """
    return max(1, int(keep_ratio * hidden_size * num_neurons / (hidden_size + num_neurons)))
