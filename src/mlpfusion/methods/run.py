"""Runs one-shot methods on blocks, with the checks common to all methods."""

from collections.abc import Sequence
from typing import Any

from mlpfusion.checks import check_finite
from mlpfusion.errors import InputError, shown
from mlpfusion.kinds.outcome import Outcome
from mlpfusion.methods.block import Block
from mlpfusion.methods.names import known_methods, method_name
from mlpfusion.methods.table import METHODS, ONE_SHOT, Method
from mlpfusion.mlp import MLP


def one_shot_method(config: Any) -> Method:
    """Returns the row of a config.

    Raises `InputError` unless the config is of a one-shot method.
    """
    if type(config) not in ONE_SHOT:
        raise InputError(f"`method` must be a config of {known_methods(ONE_SHOT)}, got {shown(config)}")
    return METHODS[type(config)]


def compress_block(block: Block, config: Any) -> Outcome:
    """Compresses one block by the method `config`; the block is not changed.

    Without the second step of a two-step method: it sees gradients that come back through the
    compressed model.

    Raises `InputError` for a config of another kind, a width or share out of range, NaN or Inf in a
    weight or in the calibration, a calibration for a method that takes none, and none for a method
    that needs one.
    """
    (outcome,) = compress_blocks([block], config)
    return outcome


def compress_blocks(blocks: Sequence[Block], config: Any) -> list[Outcome]:
    """Compresses all blocks by the method `config`, ranked together if the method does so.

    Raises `InputError` as `compress_block` does.
    """
    method = one_shot_method(config)
    for block in blocks:
        _check(block, method, config)
    if method.ranked_together:
        return method.compress(blocks, config)
    return [method.compress(block, config) for block in blocks]


def _check(block: Block, method: Method, config: Any) -> None:
    if (method.sees == "inputs") != (block.calibration is not None):
        wanted = "must be given" if block.calibration is None else "must be left out"
        raise InputError(f"`calibration` {wanted} for {method_name(type(config))}")
    if not 1 <= block.num_neurons <= block.mlp.num_neurons:
        raise InputError(f"`num_neurons` must be between 1 and {block.mlp.num_neurons}, got {block.num_neurons}")
    if not 1 <= block.round_to <= block.num_neurons:
        raise InputError(f"`round_to` must be between 1 and {block.num_neurons}, got {block.round_to}")
    if not 0 < block.keep_ratio <= 1:
        raise InputError(f"`keep_ratio` must be above 0 and at most 1, got {block.keep_ratio}")
    _check_finite(block.mlp)
    if block.calibration is not None:
        block.calibration.check(block.mlp)


def _check_finite(mlp: MLP) -> None:
    for name, tensor in mlp.tensors().items():
        check_finite(tensor, f"`{name}`")
