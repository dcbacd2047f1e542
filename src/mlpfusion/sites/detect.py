"""Finds where the MLPs of a model are: by its row of the table, or by their pattern where it has none."""

from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2CLS
from transformers.pytorch_utils import Conv1D

from mlpfusion.errors import InputError, shown
from mlpfusion.sites.recording import hooks
from mlpfusion.sites.sites import Site, base_model, expert_parameters, find_sites
from mlpfusion.sites.table import ARCHITECTURES, Architecture, Stack
from mlpfusion.sites.weights import linear_weight
from mlpfusion.sites.width_keys import text_config, with_proven_keys

_MOST_SHOWN = 4  # stacks, and linear maps of each, in an error
_ACTIVATIONS = tuple({entry[0] if isinstance(entry, tuple) else entry for entry in ACT2CLS.values()})


def find_architecture(model: PreTrainedModel) -> Architecture:
    """The row of the table for the type of `model`, or the one that `detect_architecture` finds.

    Raises `InputError` where no MLP is found, with the linear maps that were seen.
    """
    model_type = model.config.model_type
    if model_type in ARCHITECTURES:
        return ARCHITECTURES[model_type]
    found = detect_architecture(model)
    if found is None:
        raise InputError(
            f"`model` must have layers with an MLP (a linear map up, an activation, a linear map down), found none in "
            f"{type(model).__name__}, model type {shown(model_type)}: {_seen(base_model(model))}; "
            "`--architecture FILE` takes a row written by hand"
        )
    return found


def detect_architecture(model: PreTrainedModel) -> Architecture | None:
    """The row that the shapes and the names of `model` suggest, or None. Works on a model without weights.

    In every stack of layers it looks, outside attention, for a linear map hidden -> f (two in a gated block, or one
    hidden -> 2 f), a linear map f -> hidden, and an activation module. A stack some of whose layers have no such block
    is left out. Shapes are no proof, `check_row` runs the model for that; every `width_key` is (`with_proven_keys`).
    """
    base = base_model(model)
    stacks, sites = [], []
    for path, layer in _first_layers(base):
        stack = _detect_stack(base, path, layer)
        found = [] if stack is None else _sites_or_none(model, stack)
        if stack is not None and found:
            stacks.append(stack)
            sites += found
    return with_proven_keys(model, Architecture(tuple(stacks)), sites) if stacks else None


def _first_layers(base: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    """Path and first layer of every list of layers; a list of lists (Funnel's blocks) counts as several."""
    lists = {path: module for path, module in base.named_modules() if isinstance(module, nn.ModuleList) and len(module)}
    nested = {path for path, module in lists.items() if isinstance(module[0], nn.ModuleList)}
    return [
        (path, module[0])
        for path, module in lists.items()
        if path not in nested
        and not _has_number(parent := path.rpartition(".")[0])
        and (parent in nested or not _has_number(path))
    ]


def _seen(base: PreTrainedModel) -> str:
    """The linear maps of the first layer of every stack, in words."""
    if expert_parameters(base):
        return "its layers are mixtures of experts, which are not supported yet"
    maps = {
        path: [
            f"{name} {' x '.join(map(str, linear_weight(linear).shape))}"
            for name, linear in _outside_attention(layer, (nn.Linear, Conv1D)).items()
        ]
        for path, layer in _first_layers(base)
    }
    stacks = [f"{path} has {', '.join(names[:_MOST_SHOWN])}" for path, names in maps.items() if names]
    return "; ".join(stacks[:_MOST_SHOWN]) or "its layers hold no linear maps outside attention"


def _sites_or_none(model: PreTrainedModel, stack: Stack) -> list[Site]:
    try:
        return find_sites(model, Architecture((stack,)))
    except InputError:
        return []


def _detect_stack(base: PreTrainedModel, path: str, layer: nn.Module) -> Stack | None:
    hidden = getattr(text_config(base.config), "hidden_size", None)
    linears = _outside_attention(layer, (nn.Linear, Conv1D))
    shapes = {name: tuple(linear_weight(linear).shape) for name, linear in linears.items()}
    for down, (hidden_size, width) in shapes.items():
        ups = [name for name, shape in shapes.items() if shape == (width, hidden_size) and name != down]
        fused = [name for name, shape in shapes.items() if shape == (2 * width, hidden_size) and name != down]
        activations = list(_outside_attention(layer, _ACTIVATIONS))
        if len(ups) + len(fused) not in (1, 2) or not activations or hidden_size != hidden:
            continue
        if not _is_plain(layer, (ups + fused)[0], down):
            continue
        activation = max(activations, key=lambda name: _shared_parents(name, (ups + fused)[0]))
        gate = _gate(layer, ups, activation) if len(ups) == 2 else (fused or [None])[0]
        up = next((name for name in ups if name != gate), gate)
        assert up is not None
        return Stack(f"{path}.{{}}", up, down, activation, gate, None)
    return None


def _is_plain(layer: nn.Module, up: str, down: str) -> bool:
    """Whether the module that holds both maps holds nothing but what an MLP has; a Mamba mixer has a convolution."""
    parents = up.split(".")[: _shared_parents(up, down)]
    if not parents:
        return True
    container = layer.get_submodule(".".join(parents))
    leaves = [module for module in container.modules() if not list(module.children())]
    usual = (nn.Linear, Conv1D, nn.Dropout, nn.Identity, *_ACTIVATIONS)
    odd = [module for module in leaves if not isinstance(module, usual) and "Norm" not in type(module).__name__]
    return not odd and not list(container.parameters(recurse=False))


def _gate(layer: nn.Module, ups: list[str], activation: str) -> str:
    """Of two parallel maps the one whose output enters the activation, seen by running their module without weights."""
    container = layer.get_submodule(".".join(ups[0].split(".")[: _shared_parents(*ups)]))
    outputs: dict[str, Tensor] = {}  # the tensors, not their ids: one that is freed leaves its id to the next
    entered: list[Tensor] = []

    def keep_output(name: str) -> Any:
        return lambda _module, _args, output: outputs.update({name: output})

    with hooks() as handles:
        handles += [layer.get_submodule(name).register_forward_hook(keep_output(name)) for name in ups]
        enters = layer.get_submodule(activation).register_forward_pre_hook(
            lambda _module, args: entered.append(args[0])
        )
        handles.append(enters)
        try:
            weight = linear_weight(layer.get_submodule(ups[0]))
            container(torch.empty(1, 1, weight.shape[1], device=weight.device, dtype=weight.dtype))
        except (TypeError, NotImplementedError, RuntimeError):  # a container that wants other arguments: names must do
            return next((name for name in ups if "gate" in name), ups[0])
    return next((name for name, output in outputs.items() if any(output is one for one in entered)), ups[0])


def _outside_attention(layer: nn.Module, kinds: tuple[type, ...]) -> dict[str, Any]:
    return {name: m for name, m in layer.named_modules() if type(m) in kinds and "att" not in name.lower()}


def _shared_parents(first: str, second: str) -> int:
    """Number of path components that two paths have in common from the start."""
    pairs = zip(first.split("."), second.split("."), strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _has_number(path: str) -> bool:
    return any(part.isdigit() for part in path.split("."))
