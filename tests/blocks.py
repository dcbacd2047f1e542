"""One-shot methods on blocks alone, without a model around them."""

from collections.abc import Sequence
from typing import Any

import torch

from mlpfusion.kinds.outcome import LowRank, Masked, Narrowed
from mlpfusion.methods.block import Block
from mlpfusion.methods.calibrated.calibration import Calibration
from mlpfusion.methods.run import compress_block, compress_blocks
from mlpfusion.methods.table import METHODS
from mlpfusion.mlp import MLP


def narrow(
    mlp: MLP, num_neurons: int, method: Any, generator: torch.Generator, calibration: Calibration | None = None
) -> Narrowed:
    """The block at this width, the second step of the method done on the block's own calibration."""
    block = Block(mlp, num_neurons, generator, calibration=calibration)
    outcome = compress_block(block, method)
    assert isinstance(outcome, Narrowed)
    step = METHODS[type(method)].second_step(method)
    return outcome if step is None else step(mlp, block.inputs.trace, outcome, block.inputs.trace)


def factorise(
    mlp: MLP, keep_ratio: float, method: Any, generator: torch.Generator, calibration: Calibration | None = None
) -> LowRank:
    """The factors that hold this share of the entries of the matrices."""
    outcome = compress_block(Block(mlp, mlp.num_neurons, generator, keep_ratio, calibration), method)
    assert isinstance(outcome, LowRank)
    return outcome


def mask(mlps: Sequence[MLP], keep_ratio: float, method: Any, generators: Sequence[torch.Generator]) -> list[Masked]:
    """The blocks with zeros, this share of the entries of their matrices left."""
    pairs = zip(mlps, generators, strict=True)
    outcomes = compress_blocks([Block(mlp, mlp.num_neurons, generator, keep_ratio) for mlp, generator in pairs], method)
    return [outcome for outcome in outcomes if isinstance(outcome, Masked)]
