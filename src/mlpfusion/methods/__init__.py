"""The table of one-shot methods that give a narrower block: config type -> function.

A method is one file with a frozen config and `compress(mlp, num_neurons, config, generator) -> Narrowed`, and one row
here. It knows nothing of models, layers, files or devices.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from mlpfusion.errors import InputError
from mlpfusion.methods import clustering, folded_fusion, fusion, mmd, neuron_pruning, random_neurons, sketch
from mlpfusion.methods.outcome import Narrowed as Narrowed
from mlpfusion.mlp import MLP

METHODS: dict[type, Callable[[MLP, int, Any, torch.Generator], Narrowed]] = {
    fusion.Fusion: fusion.compress,
    folded_fusion.FoldedFusion: folded_fusion.compress,
    clustering.Clustering: clustering.compress,
    neuron_pruning.NeuronPruning: neuron_pruning.compress,
    random_neurons.RandomNeurons: random_neurons.compress,
    sketch.Sketch: sketch.compress,
    mmd.MMD: mmd.compress,
}

# Methods that at full width do not give the block back, and why. All others must.
NOT_EXACT_AT_FULL_WIDTH: dict[type, str] = {
    sketch.Sketch: "S S^T is the identity only in the mean",
    mmd.MMD: "points are moved, and pulled to zero by weight decay, wherever they start",
}


def method_name(method: type) -> str:
    """The name of a method on the command line, that of its file: `NeuronPruning` is `neuron-pruning`."""
    return method.__module__.rpartition(".")[2].replace("_", "-")


METHOD_TYPES: dict[str, type] = {method_name(method): method for method in METHODS}


def method_from_name(name: str, options: dict[str, Any] | None = None) -> Any:
    """The config of the named method. Raises `InputError` for an unknown name, an unknown option or a bad value."""
    if name not in METHOD_TYPES:
        raise InputError(f"`method` must be one of {', '.join(METHOD_TYPES)}, got {name!r}")
    fields = asdict(METHOD_TYPES[name]())
    for option, value in (options or {}).items():
        if option not in fields:
            raise InputError(f"options of {name} must be among {sorted(fields) or 'none'}, got {option!r}")
        if type(value) is not type(fields[option]):
            raise InputError(f"`{option}` of {name} must be of type {type(fields[option]).__name__}, got {value!r}")
    try:
        return METHOD_TYPES[name](**(options or {}))
    except ValueError as error:
        raise InputError(str(error)) from error


def narrow(mlp: MLP, num_neurons: int, method: Any, generator: torch.Generator) -> Narrowed:
    """`mlp` made `num_neurons` wide by `method`; the input is left as it is.

    Raises `InputError` for something that is no method, a width out of range, and NaN or Inf in a weight.
    """
    if type(method) not in METHODS:
        raise InputError(f"`method` must be a config of {', '.join(m.__name__ for m in METHODS)}, got {method!r}")
    if not 1 <= num_neurons <= mlp.num_neurons:
        raise InputError(f"`num_neurons` must be between 1 and {mlp.num_neurons}, got {num_neurons}")
    for name, tensor in mlp.tensors().items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"`{name}` must be finite, got {int((~torch.isfinite(tensor)).sum())} NaN or Inf")
    return METHODS[type(method)](mlp, num_neurons, method, generator)
