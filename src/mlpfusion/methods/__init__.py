"""The tables of one-shot methods, one for each kind of outcome: config type -> function.

A method is one file with a frozen config and a function `compress`, and one row here. It knows nothing of models,
layers, files or devices.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import torch

from mlpfusion.checks import check_finite
from mlpfusion.errors import InputError, shown
from mlpfusion.kernel import BlockTrace
from mlpfusion.kinds.outcome import LowRank as LowRank
from mlpfusion.kinds.outcome import Masked as Masked
from mlpfusion.kinds.outcome import Narrowed as Narrowed
from mlpfusion.kinds.outcome import Outcome as Outcome
from mlpfusion.kinds.outcome import Routed as Routed
from mlpfusion.methods.calibrated import maintain_ntk_gradient, maintain_output, ntk_match
from mlpfusion.methods.calibrated.calibration import Calibration as Calibration
from mlpfusion.methods.calibrated.calibration import token_weights as token_weights
from mlpfusion.methods.data_free import (
    clustering,
    folded_fusion,
    fusion,
    magnitude,
    mmd,
    neuron_pruning,
    ntk_sap,
    random_neurons,
    sketch,
    svd,
)
from mlpfusion.mlp import MLP
from mlpfusion.storage.yaml import check_type, parse_option

# (mlp, num_neurons, config, generator): fewer neurons
METHODS: dict[type, Callable[[MLP, int, Any, torch.Generator], Narrowed]] = {
    fusion.Fusion: fusion.compress,
    folded_fusion.FoldedFusion: folded_fusion.compress,
    clustering.Clustering: clustering.compress,
    neuron_pruning.NeuronPruning: neuron_pruning.compress,
    random_neurons.RandomNeurons: random_neurons.compress,
    sketch.Sketch: sketch.compress,
    mmd.MMD: mmd.compress,
}

# (mlp, num_neurons, config, generator, calibration): fewer neurons, with the help of unlabelled data
CALIBRATED_METHODS: dict[type, Callable[[MLP, int, Any, torch.Generator, Calibration], Narrowed]] = {
    maintain_output.MaintainOutput: maintain_output.compress,
    maintain_ntk_gradient.MaintainNTKGradient: maintain_ntk_gradient.compress,
    ntk_match.NTKMatch: ntk_match.compress,
}

# (original, its trace, narrowed, its trace, config): other scales, the same outputs. The second step of a calibrated
# method whose scales depend on the gradients that come back through the compressed model.
RESCALED_METHODS: dict[type, Callable[[MLP, BlockTrace, Narrowed, BlockTrace, Any], Narrowed]] = {
    ntk_match.NTKMatch: ntk_match.rescale,
}

NARROW_METHODS: tuple[type, ...] = (*METHODS, *CALIBRATED_METHODS)

# (mlp, rank, config, generator): two factors for each matrix
LOW_RANK_METHODS: dict[type, Callable[[MLP, int, Any, torch.Generator], LowRank]] = {svd.SVD: svd.compress}

# (mlps, keep_ratio, config, generators): zeros in the matrices; all blocks at once, for ranks over all of them
MASK_METHODS: dict[type, Callable[[Sequence[MLP], float, Any, Sequence[torch.Generator]], list[Masked]]] = {
    magnitude.Magnitude: magnitude.compress,
    ntk_sap.NTKSAP: ntk_sap.compress,
}

ALL_METHODS: tuple[type, ...] = (*NARROW_METHODS, *LOW_RANK_METHODS, *MASK_METHODS)

# Methods that narrow and at full width do not give the block back, and why. All others must.
NOT_EXACT_AT_FULL_WIDTH: dict[type, str] = {
    sketch.Sketch: "S S^T is the identity only in the mean",
    mmd.MMD: "points are moved, and pulled to zero by weight decay, wherever they start",
}


def method_name(method: type) -> str:
    """The name of a method on the command line, that of its file: `NeuronPruning` is `neuron-pruning`."""
    return method.__module__.rpartition(".")[2].replace("_", "-")


METHOD_TYPES: dict[str, type] = {method_name(method): method for method in ALL_METHODS}


def method_from_name(name: str, options: dict[str, Any] | None = None, types: Mapping[str, type] = METHOD_TYPES) -> Any:
    """The config of the method of that name in `types`.

    Raises `InputError` for an unknown name, an unknown option or a bad value.
    """
    if name not in types:
        raise InputError(f"`method` must be one of {', '.join(types)}, got {shown(name)}")
    defaults, values = asdict(types[name]()), dict(options or {})
    for option, value in values.items():
        if option not in defaults:
            raise InputError(f"options of {name} must be among {', '.join(defaults) or 'none'}, got {shown(option)}")
        values[option] = check_type(f"`{option}` of {name}", value, [type(defaults[option])])
    try:
        return types[name](**values)
    except ValueError as error:
        raise InputError(re.sub(r"^`(\w+)`", rf"`\1` of {name}", str(error))) from error


def parse_method(text: str, types: Mapping[str, type] = METHOD_TYPES) -> Any:
    """`NAME:OPTION=VALUE:..` as a config, values as in YAML. Raises `InputError` as `parse_option` and
    `method_from_name` do.
    """
    name, *options = text.strip().split(":")
    return method_from_name(name, dict(parse_option(option) for option in options), types)


def method_label(method: Any) -> str:
    """The name of a config in a table: with the options that differ from its defaults."""
    defaults = asdict(type(method)())
    changed = [f"{name}={value}" for name, value in asdict(method).items() if value != defaults[name]]
    return " ".join([method_name(type(method)), *changed])


def takes_no_data(method: Any) -> bool:
    """Whether the config `method` is not calibrated, or told to draw its inputs itself."""
    return type(method) not in CALIBRATED_METHODS or bool(asdict(method).get("data_free"))


def can_be_data_free(method: type) -> bool:
    """Whether a calibrated method has the option to draw its inputs itself."""
    return method in CALIBRATED_METHODS and "data_free" in {field.name for field in fields(method)}


def head_pooling(method: Any) -> str:
    """What the head reads by which the config `method` weighs tokens: `mean`, so no weights, but for an option."""
    return str(asdict(method).get("pooling", "mean"))


def is_rescaled(method: Any) -> bool:
    """Whether the scales of the config `method` are chosen in a second step, in the compressed model."""
    return type(method) in RESCALED_METHODS and method.match != "none"


def narrow(
    mlp: MLP,
    num_neurons: int,
    method: Any,
    generator: torch.Generator,
    calibration: Calibration | None = None,
    *,
    rescaled: bool = True,
) -> Narrowed:
    """`mlp` made `num_neurons` wide by `method`; the input is left as it is.

    `rescaled` says whether to do the second step of a method that has one (`RESCALED_METHODS`) on the calibration.

    Raises `InputError` for something that is no method of that kind, a width out of range, NaN or Inf in a weight or in
    the calibration, and a calibration where the method takes none, or none where it needs one.
    """
    if type(method) not in NARROW_METHODS:
        raise InputError(f"`method` must be a config of {_names(NARROW_METHODS)}, got {shown(method)}")
    if (type(method) in CALIBRATED_METHODS) != (calibration is not None):
        wanted = "must be given" if calibration is None else "must be left out"
        raise InputError(f"`calibration` {wanted} for {method_name(type(method))}")
    if not 1 <= num_neurons <= mlp.num_neurons:
        raise InputError(f"`num_neurons` must be between 1 and {mlp.num_neurons}, got {num_neurons}")
    _check_finite(mlp)
    if calibration is None:
        return METHODS[type(method)](mlp, num_neurons, method, generator)
    calibration.check(mlp)
    result = CALIBRATED_METHODS[type(method)](mlp, num_neurons, method, generator, calibration)
    if not (rescaled and is_rescaled(method)):
        return result
    return RESCALED_METHODS[type(method)](mlp, calibration.trace, result, calibration.trace, method)


def factorise(mlp: MLP, rank: int, method: Any, generator: torch.Generator) -> LowRank:
    """Factors of rank `rank` for the matrices of `mlp`, which is left as it is.

    Raises `InputError` for something that is no method of that kind, a rank out of range, and NaN or Inf in a weight.
    """
    _check_method(method, LOW_RANK_METHODS)
    largest = min(mlp.up.shape)
    if not 1 <= rank <= largest:
        raise InputError(f"`rank` must be between 1 and {largest}, got {rank}")
    _check_finite(mlp)
    return LOW_RANK_METHODS[type(method)](mlp, rank, method, generator)


def mask(mlps: Sequence[MLP], keep_ratio: float, method: Any, generators: Sequence[torch.Generator]) -> list[Masked]:
    """`mlps` with all but the share `keep_ratio` of the entries of their matrices zeroed; the inputs stay.

    Raises `InputError` for something that is no method of that kind, a bad ratio, and NaN or Inf in a weight.
    """
    _check_method(method, MASK_METHODS)
    if not 0 < keep_ratio <= 1:
        raise InputError(f"`keep_ratio` must be above 0 and at most 1, got {keep_ratio}")
    for mlp in mlps:
        _check_finite(mlp)
    return MASK_METHODS[type(method)](mlps, keep_ratio, method, generators)


def budget_rank(hidden_size: int, num_neurons: int, keep_ratio: float) -> int:
    """The largest rank at which two factors hold at most `keep_ratio` of the entries of one matrix, but at least 1.

    At `keep_ratio` 1 that is below full rank: two full factors hold more than their product.
    """
    return max(1, int(keep_ratio * hidden_size * num_neurons / (hidden_size + num_neurons)))


def _check_method(method: Any, table: dict[type, Any]) -> None:
    if type(method) not in table:
        raise InputError(f"`method` must be a config of {_names(table)}, got {shown(method)}")


def _names(methods: Iterable[type]) -> str:
    return ", ".join(method.__name__ for method in methods)


def _check_finite(mlp: MLP) -> None:
    for name, tensor in mlp.tensors().items():
        check_finite(tensor, f"`{name}`")
