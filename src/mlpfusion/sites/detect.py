"""Finds where the MLPs of a model are: by its row of the table, or by their pattern where it has none."""

from collections.abc import Iterable, Iterator
from itertools import combinations, takewhile
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2CLS
from transformers.pytorch_utils import Conv1D

from mlpfusion.errors import InputError, shown
from mlpfusion.sites.mixtures.experts import expert_modules, expert_stacks
from mlpfusion.sites.parts import choose_stacks
from mlpfusion.sites.recording import hooks
from mlpfusion.sites.sites import Site, base_model, find_sites, is_beside_mlp
from mlpfusion.sites.table import ARCHITECTURES, Architecture, Stack
from mlpfusion.sites.weights import linear_shape, linear_weight
from mlpfusion.sites.width_keys import with_proven_keys

_MOST_SHOWN = 4  # stacks, and linear maps of each, in an error
_ACTIVATIONS = tuple({entry[0] if isinstance(entry, tuple) else entry for entry in ACT2CLS.values()})


class Maps(NamedTuple):
    """Paths from the layer of what makes an MLP; `ups` are one map, or two of which one is the gate."""

    ups: tuple[str, ...]
    down: str
    activation: str
    is_fused: bool


def find_architecture(
    model: PreTrainedModel, stacks: str | None = None, known: Architecture | None = None
) -> Architecture:
    """The row of `model`: `known` if given, else that of the table for its type, else what `detect_architecture` finds.

    `stacks` chooses among its stacks (`choose_stacks`); without it `known` is taken whole. Raises `InputError` for a
    choice without a stack, and where no MLP is found, with the linear maps that were seen.
    """
    if known is not None and stacks is None:
        return known
    model_type = model.config.model_type
    known = known or ARCHITECTURES.get(model_type)
    if known is not None:
        return Architecture(choose_stacks(base_model(model), known.stacks, stacks))
    found = detect_architecture(model, stacks)
    if found is None:
        raise InputError(
            f"`model` must have layers with an MLP (a linear map up, an activation, a linear map down), found none in "
            f"{type(model).__name__}, model type {shown(model_type)}: {_seen(base_model(model))}; "
            "`--architecture FILE` takes a row written by hand"
        )
    return found


def detect_architecture(model: PreTrainedModel, stacks: str | None = None) -> Architecture | None:
    """The row that the shapes and the names of `model` suggest, or None. Works on a model without weights.

    In every stack of layers it looks, outside attention, for a linear map hidden -> f (two in a gated block, or one
    hidden -> 2 f), a linear map f -> hidden, and an activation module. A layer may hold several such blocks, or none.
    `stacks` chooses among them, None those that read text (`choose_stacks`). Shapes are no proof, `check_row` runs
    the model for that; every `width_key` is (`with_proven_keys`).
    """
    found = all_stacks(model)
    if not found:
        return None
    chosen = choose_stacks(base_model(model), list(found), stacks)
    return with_proven_keys(model, Architecture(chosen), [site for stack in chosen for site in found[stack]])


def left_out(model: PreTrainedModel, row: Architecture) -> tuple[str, ...]:
    """The layers of those stacks of `model` that `row` has not, in a model with mixtures with their `up`.

    None where `row` was written by hand.
    """
    stacks = named_stacks(model)
    taken = {stack.layer for stack in row.stacks}
    if not taken <= {stack.layer for stack in stacks}:
        return ()
    kept = {(stack.layer, stack.up) for stack in row.stacks}
    others = [stack for stack in stacks if (stack.layer, stack.up) not in kept]
    mixed = any(stack.is_of_experts for stack in stacks)  # then a layer may have a shared expert, and one a dense MLP
    names = (f"{stack.layer}.{stack.up}" if mixed and not stack.is_of_experts else stack.layer for stack in others)
    return tuple(dict.fromkeys(names))


def named_stacks(model: PreTrainedModel) -> tuple[Stack, ...]:
    """Every stack of the table's row of `model`, or that the shapes suggest where it has none."""
    known = ARCHITECTURES.get(model.config.model_type)
    return known.stacks if known else tuple(all_stacks(model))


def all_stacks(model: PreTrainedModel) -> dict[Stack, list[Site]]:
    """Every stack that the shapes suggest, whatever it reads, with its sites. Its `width_key` is not looked for."""
    base, found = base_model(model), dict[Stack, list[Site]]()
    hidden_sizes = _hidden_sizes(base.config)
    for path, layers in layer_lists(base):
        for stack in _detect_stacks(path, layers, hidden_sizes):
            found[stack] = _sites_or_none(model, stack)
    found |= {stack: _sites_or_none(model, stack) for stack in expert_stacks(base)}
    return {stack: sites for stack, sites in found.items() if sites}


def layer_lists(base: nn.Module, path: str = "") -> Iterator[tuple[str, list[nn.Module]]]:
    """Path and layers of every list of layers; where its members are stages, the lists in them take its place."""
    for name, child in base.named_children():
        inner = f"{path}.{name}" if path else name
        if not _is_list(child):
            yield from layer_lists(child, inner)
        elif any(_is_stage(member) for member in child):
            for number, member in enumerate(child):
                listed = nn.ModuleDict({str(number): member})  # so that a list in a list is seen as one
                yield from layer_lists(listed, inner)
        else:
            yield inner, list(child)


def _is_list(module: nn.Module) -> TypeGuard[nn.ModuleList | nn.Sequential]:
    """Whether `module` is a list of layers, or a sequence of layers that are all of one class."""
    if isinstance(module, nn.Sequential):
        return len(module) > 0 and _are_alike(module) and any(True for _ in module[0].children())
    return isinstance(module, nn.ModuleList) and len(module) > 0


def _is_stage(module: nn.Module) -> bool:
    """Whether `module` is no layer but holds layers: a list of alike modules, and no attention beside it."""
    if isinstance(module, nn.ModuleList):
        return True
    lists = [child for child in module.children() if _is_list(child) and _are_alike(child)]
    beside = [name.lower() for name, child in module.named_children() if child not in lists]
    return bool(lists) and not any("att" in name for name in beside)


def _are_alike(layers: nn.ModuleList | nn.Sequential) -> bool:
    return len({type(layer) for layer in layers}) == 1 and any(True for _ in layers[0].parameters())


def _hidden_sizes(config: PreTrainedConfig) -> set[int]:
    """All numbers in the config and in the configs inside it: a hidden size is one of them, or that of a norm."""

    def numbers(value: Any) -> Iterator[int]:
        if isinstance(value, dict):
            value = value.values()
        if isinstance(value, int):
            yield value
        elif isinstance(value, Iterable) and not isinstance(value, str):
            for one in value:
                yield from numbers(one)

    return set(numbers(config.to_dict()))


def _detect_stacks(path: str, layers: list[nn.Module], hidden_sizes: set[int]) -> Iterator[Stack]:
    """A stack for each kind of MLP in the layers; with several in one layer, each gets a path of its own."""
    found = [(layer, _find_maps(layer, hidden_sizes)) for layer in layers]
    several = any(len(maps) > 1 for _, maps in found)
    first: dict[Maps, nn.Module] = {}
    templates = set[str]()
    for layer, all_maps in found:
        for maps in all_maps:
            first.setdefault(maps, layer)
    for maps, layer in first.items():
        names = (*maps.ups, maps.down, maps.activation)
        cut = min(_shared_parents(names[0], name) for name in names) if several else 0
        inner = ".".join(names[0].split(".")[:cut])
        gate = maps.ups[0] if maps.is_fused else _gate(layer, maps) if len(maps.ups) == 2 else None
        up = next((name for name in maps.ups if name != gate), maps.ups[0])
        template = f"{path}.{{}}.{inner}".rstrip(".")
        if several and template in templates:  # two MLPs beside each other: one path can be that of one of them
            continue
        templates.add(template)
        up, down, activation = (name.removeprefix(f"{inner}.") for name in (up, maps.down, maps.activation))
        yield Stack(template, up, down, activation, gate and gate.removeprefix(f"{inner}."), None)


def _find_maps(layer: nn.Module, hidden_sizes: set[int]) -> tuple[Maps, ...]:
    """The MLPs of a layer, those whose maps are closest to each other first."""
    shapes = {name: tuple(linear_shape(linear)) for name, linear in _outside_attention(layer, (nn.Linear, Conv1D))}
    activations = [name for name, module in _outside_attention(layer, (nn.Module,)) if _is_activation(module)]
    norms = [norm for norm in layer.modules() if "Norm" in type(norm).__name__]
    hidden_sizes = hidden_sizes | {size for norm in norms for weight in norm.parameters() for size in weight.shape}
    pairs = [
        (_shared_parents(up, down), up, down)
        for up, down in combinations(shapes, 2)  # in the order in which a class names them: up comes first
        if shapes[down][0] in hidden_sizes
        and shapes[up] in {shapes[down][::-1], (2 * shapes[down][1], shapes[down][0])}
    ]
    found: list[Maps] = []
    taken: set[str] = set()
    for depth, up, down in sorted(pairs, key=lambda pair: -pair[0]):
        parallel = [name for name, shape in shapes.items() if shape == shapes[up] and name not in {down, *taken}]
        ups = tuple(name for name in parallel if _shared_parents(name, down) == depth)
        if {up, down} & taken or len(ups) > 2:
            continue
        near = [name for name in activations if any(_is_in(name.rpartition(".")[0], one) for one in (up, down))]
        if not near or not _is_plain(layer, up, down):
            continue
        activation = max(near, key=lambda name: _shared_parents(name, up))
        is_fused = shapes[up] != shapes[down][::-1]
        if not (is_fused and len(ups) > 1):
            found.append(Maps(ups, down, activation, is_fused))
            taken |= {*ups, down}
    # beside an MLP that is wider than the hidden states, one that is not is an adapter: Gemma 4 multiplies inside it
    wide = [maps for maps in found if shapes[maps.down][1] > shapes[maps.down][0]]
    return tuple(wide or found)


def _seen(base: PreTrainedModel) -> str:
    """The linear maps of the first layer of every stack, in words."""
    experts = next(iter(expert_modules(base).items()), None)
    if experts is not None:
        shapes = [f"{name} {' x '.join(map(str, one.shape))}" for name, one in experts[1].named_parameters()]
        held = ", ".join(shapes[:_MOST_SHOWN])
        return f"its experts are not kept in a way that is supported, {experts[0]} has {held}"
    maps = {
        path: [
            f"{name} {' x '.join(map(str, linear_shape(linear)))}"
            for name, linear in _outside_attention(layers[0], (nn.Linear, Conv1D))
        ]
        for path, layers in layer_lists(base)
    }
    stacks = [f"{path} has {', '.join(names[:_MOST_SHOWN])}" for path, names in maps.items() if names]
    if stacks and not any(_is_activation(module) for module in base.modules()):
        return f"{stacks[0]} and no module for an activation, which seems to be a function"
    return "; ".join(stacks[:_MOST_SHOWN]) or "its layers hold no linear maps outside attention"


def _sites_or_none(model: PreTrainedModel, stack: Stack) -> list[Site]:
    try:
        return find_sites(model, Architecture((stack,)))
    except InputError:
        return []


def _is_plain(layer: nn.Module, up: str, down: str) -> bool:
    """Whether the module that holds both maps holds nothing but what an MLP has; a Mamba mixer has a convolution."""
    parents = up.split(".")[: _shared_parents(up, down)]
    if not parents:
        return True
    container = layer.get_submodule(".".join(parents))
    leaves = [module for module in container.modules() if not list(module.children())]
    odd = [leaf for leaf in leaves if not isinstance(leaf, (nn.Linear, Conv1D)) and _is_neither_norm_nor_empty(leaf)]
    return not odd and not list(container.parameters(recurse=False))


def _is_in(parent: str, path: str) -> bool:
    """Whether the module at `parent` (the layer itself, if empty) holds the one at `path`."""
    return not parent or path.startswith(f"{parent}.")


def _is_neither_norm_nor_empty(module: nn.Module) -> bool:
    return "Norm" not in type(module).__name__ and bool(list(module.parameters()))


def _is_activation(module: nn.Module) -> bool:
    """Whether `module` is an activation of transformers or torch, or is named like one and holds nothing."""
    is_known = isinstance(module, _ACTIVATIONS) or type(module).__module__ == "torch.nn.modules.activation"
    named = any(word in type(module).__name__.lower() for word in ("gelu", "relu", "silu", "swish"))
    return not list(module.children()) and not list(module.parameters()) and (is_known or named)


def _gate(layer: nn.Module, maps: Maps) -> str:
    """Of two parallel maps the one whose output enters the activation, seen by running their module without weights."""
    ups = maps.ups
    container = layer.get_submodule(".".join(ups[0].split(".")[: _shared_parents(*ups)]))
    outputs: dict[str, Tensor] = {}  # the tensors, not their ids: one that is freed leaves its id to the next
    entered: list[Tensor] = []

    def keep_output(name: str) -> Any:
        return lambda _module, _args, output: outputs.update({name: output})

    with hooks() as handles:
        handles += [layer.get_submodule(name).register_forward_hook(keep_output(name)) for name in ups]
        enters = layer.get_submodule(maps.activation).register_forward_pre_hook(
            lambda _module, args: entered.append(args[0])
        )
        handles.append(enters)
        try:
            weight = linear_weight(layer.get_submodule(ups[0]))
            container(torch.empty(1, 1, weight.shape[1], device=weight.device, dtype=weight.dtype))
        except (TypeError, ValueError, NotImplementedError, RuntimeError):  # it wants other arguments: names must do
            return next((name for name in ups if "gate" in name), ups[0])
    return next((name for name, output in outputs.items() if any(output is one for one in entered)), ups[0])


def _outside_attention(layer: nn.Module, kinds: tuple[type, ...]) -> list[tuple[str, Any]]:
    return [
        (name, module)
        for name, module in layer.named_modules()
        if isinstance(module, kinds) and not is_beside_mlp(name) and "experts" not in name.split(".")
    ]


def _shared_parents(first: str, second: str) -> int:
    """Number of path components that two paths have in common from the start."""
    pairs = zip(first.split("."), second.split("."), strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
