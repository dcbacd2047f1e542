"""Where the numbers of an MLP are kept: tensor names and layouts, in a model or in an open file."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mlpfusion.errors import InputError
from mlpfusion.sites.table import Stack

_PLAIN = (nn.Linear, Conv1D)
_FALCON = ("transformers.models.falcon.modeling_falcon", "FalconLinear")  # x W^T + b, in a class of its own


class Tensors(Protocol):
    """Tensors by name: a dictionary, a model (`ModelTensors`), an open file."""

    def __getitem__(self, name: str, /) -> Tensor: ...

    def __contains__(self, name: object, /) -> bool: ...


@dataclass(frozen=True)
class Weight:
    """One matrix or bias of an MLP, by `field` there, and the tensor of a model with its numbers.

    `name` starts at the base model. `transposed`: the tensor is (in, out), as in `Conv1D`. `half`: the tensor holds
    gate (0) and up (1), rows one after the other, or in turns if `interleaved`. `expert`: the tensor holds this matrix
    of all experts, here that of one. A bias may be listed without being there.
    """

    field: str
    name: str
    transposed: bool = False
    half: int | None = None
    expert: int | None = None
    interleaved: bool = False

    @property
    def path(self) -> str:
        """Path of the module with the tensor: a linear map, or what holds all experts."""
        return self.name.rpartition(".")[0]

    @property
    def is_bias(self) -> bool:
        return self.field.endswith("_bias")

    @property
    def num_parts(self) -> int:
        """How many matrices, or biases, the tensor holds."""
        return 1 if self.half is None else 2

    def view(self, stored: Tensor) -> Tensor:
        """The matrix (out, in), or the bias, in `stored`, the whole tensor. Shares memory."""
        rows = _turned(stored if self.expert is None else stored[self.expert], self.transposed)
        if self.half is None:
            return rows
        return rows[self.half :: self.num_parts] if self.interleaved else rows.chunk(self.num_parts)[self.half]


def read(state: Tensors, weight: Weight) -> Tensor:
    """The matrix (out, in), or the bias, out of `state`. Shares memory where `state` does."""
    return weight.view(state[weight.name])


def read_all(state: Tensors, weights: Iterable[Weight]) -> dict[str, Tensor]:
    """Matrices and biases by field, without biases that `state` lacks. Reads every tensor once."""
    there = [weight for weight in weights if not weight.is_bias or weight.name in state]
    stored = {name: state[name] for name in dict.fromkeys(weight.name for weight in there)}
    return {weight.field: read(stored, weight) for weight in there}


def written(weights: Iterable[Weight], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensor name -> tensor as a model keeps it, for `values` by field. The inverse of `read_all`.

    Of an expert without a module of its own: the tensors of that expert alone.
    """
    parts: dict[str, list[Tensor]] = {}
    by_name: dict[str, Weight] = {}
    for weight in weights:
        if weight.field in values:
            parts.setdefault(weight.name, []).append(values[weight.field])
            by_name[weight.name] = weight
    return {name: _turned(_joined(parts[name], weight), weight.transposed) for name, weight in by_name.items()}


def _joined(parts: list[Tensor], weight: Weight) -> Tensor:
    """The parts that one tensor holds, in its order of rows."""
    if len(parts) == 1:
        return parts[0]
    return torch.stack(parts, dim=1).flatten(0, 1) if weight.interleaved else torch.cat(parts)


def mlp_weights(base: nn.Module, holder: str, stack: Stack, expert: int | None = None) -> tuple[Weight, ...]:
    """The weights of the MLP of a layer or an expert, in the order of their fields.

    Gate comes first where one map holds gate and up. Paths start at the module at `holder`.
    """
    if stack.gate == stack.up:
        parts = [("gate", stack.up, 0), ("up", stack.up, 1), ("down", stack.down, None)]
    else:
        parts = [("up", stack.up, None), ("gate", stack.gate, None), ("down", stack.down, None)]
    weights = []
    for field, part, half in parts:
        if part is None:
            continue
        path = f"{holder}.{part}"
        if stack.layout is not None:
            in_turns = stack.layout == "interleaved"
            weights.append(Weight(field, path, stack.layout != "rows", half, expert, in_turns))
            weights.append(Weight(f"{field}_bias", f"{path}_bias", False, half, expert, in_turns))
        else:
            weights.append(Weight(field, f"{path}.weight", _is_transposed(base.get_submodule(path)), half))
            weights.append(Weight(f"{field}_bias", f"{path}.bias", half=half))
    return tuple(weights)


class ModelTensors:
    """The tensors of the linear maps of a model by name from `base`, detached.

    Of a map that a kind of outcome put in place: those of the plain map that computes the same.
    """

    def __init__(self, base: nn.Module):
        self._base = base

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._find(name)
        if tensor is None:
            raise KeyError(name)
        return tensor

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._find(name) is not None

    def _find(self, name: str) -> Tensor | None:
        path, _, leaf = name.rpartition(".")
        linear = self._base.get_submodule(path)
        if leaf not in ("weight", "bias"):
            is_missing = leaf.endswith("_bias") and not hasattr(linear, leaf)
            return None if is_missing else plain_parameter(linear, leaf).detach()
        if leaf == "bias":
            return linear_bias(linear)
        return _turned(linear_weight(linear), _is_transposed(linear))


@runtime_checkable
class KindMap(Protocol):
    """A linear map of a kind of outcome, which stands in the place of a plain one of `dense_type`.

    `made_of` are the names of the linear maps in it, joined by "+", "" if there are none.
    """

    dense_type: type[nn.Module]
    made_of: str

    def shape(self) -> tuple[int, int]:
        """(out, in) of the whole map."""
        ...

    def check_readable(self) -> None:
        """Raises `InputError` if `dense_weight` would, or if an adapter or a quantiser is in the map."""
        ...

    def dense_weight(self) -> Tensor:
        """The weight (out, in) of the plain map that computes the same, detached."""
        ...

    def dense_bias(self) -> Tensor | None:
        """Its bias, detached."""
        ...


@runtime_checkable
class LinearShape(Protocol):
    """What `nn.Linear` and the linear maps of all quantisers and adapters have."""

    in_features: int
    out_features: int


def linear_weight(linear: nn.Module) -> Tensor:
    """The weight (out, in) of a linear map, detached; a view where the map is no product.

    Raises `InputError` for anything but a plain linear map or one of ours.
    """
    return linear.dense_weight() if isinstance(linear, KindMap) else held_weight(linear)


def linear_bias(linear: nn.Module) -> Tensor | None:
    """The bias of a linear map, detached. Raises `InputError` as `linear_weight` does."""
    return linear.dense_bias() if isinstance(linear, KindMap) else held_bias(linear)


def check_linear(linear: nn.Module) -> None:
    """Raises `InputError` for a linear map with an adapter, or with a quantised or sharded weight."""
    if isinstance(linear, KindMap):
        linear.check_readable()
    else:
        held_weight(linear)


def plain_parameter(holder: nn.Module, name: str) -> nn.Parameter:
    """The parameter of a module that holds one for all experts.

    Raises `InputError` if an adapter stands in its place, or a quantised or sharded tensor.
    """
    parameter = dict(holder.named_parameters(recurse=False)).get(name)
    if type(parameter) is not nn.Parameter:
        found = type(getattr(holder, name)).__name__
        raise InputError(
            f"`{name}` of {type(holder).__name__} must be a plain parameter, got {found}; "
            "merge adapters, and start from the model before it was quantised or sharded"
        )
    return parameter


def held_weight(linear: nn.Module) -> Tensor:
    """The weight (out, in) in a plain map, or in one of ours that is nearly plain. Raises as `linear_weight` does."""
    return _turned(_checked(linear).weight.detach(), _is_transposed(linear))


def held_bias(linear: nn.Module) -> Tensor | None:
    """The bias in a plain map, or in one of ours that is nearly plain. Raises `InputError` as `linear_weight` does."""
    bias = _checked(linear).bias
    return None if bias is None else bias.detach()


def linear_shape(linear: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear map of any make. Reads no weight, which a quantiser may have packed."""
    if isinstance(linear, KindMap):
        return linear.shape()
    if isinstance(linear, Conv1D):
        return linear.nf, linear.nx
    if isinstance(linear, LinearShape):
        return linear.out_features, linear.in_features
    raise InputError(f"the linear maps of an MLP must be nn.Linear or Conv1D, got {type(linear).__name__}")


def is_plain(linear: nn.Module) -> bool:
    """Whether `linear` is a stock linear map, or one that keeps its zeros, with a weight that is a plain tensor."""
    ours = isinstance(linear, KindMap)
    return isinstance(linear, _PLAIN) and (ours or is_stock(type(linear))) and _has_plain_weight(linear)


def is_stock(kind: type[nn.Module]) -> bool:
    """Whether modules of this class are plain linear maps; not so for subclasses that quantise, adapt or shard."""
    return kind in _PLAIN or (kind.__module__, kind.__name__) == _FALCON


def new_linear(kind: type[nn.Module], out_features: int, in_features: int, *, bias: bool) -> nn.Linear | Conv1D:
    """A linear map of `kind` (`nn.Linear`, or `Conv1D`, which has a bias always) without memory, on the meta device."""
    with torch.device("meta"):
        if issubclass(kind, Conv1D):
            return kind(out_features, in_features)
        assert issubclass(kind, nn.Linear)
        return kind(in_features, out_features, bias=bias)


def resized(linear: nn.Module, *, in_features: int | None = None, out_features: int | None = None) -> nn.Module:
    """A linear map of the same kind, device, dtype and `requires_grad`, maybe of another width, uninitialised."""
    rows, columns = linear_shape(linear)
    weight = linear.get_parameter("weight")
    new = new_linear(type(linear), out_features or rows, in_features or columns, bias=linear_bias(linear) is not None)
    new = new.to(weight.dtype).to_empty(device=weight.device)
    for name, parameter in linear.named_parameters():
        new.get_parameter(name).requires_grad_(parameter.requires_grad)
    return new.train(linear.training)


def _turned(weight: Tensor, transposed: bool) -> Tensor:
    """The weight in the other layout of the two if `transposed`; a view."""
    return weight.T if transposed else weight


def _is_transposed(linear: nn.Module) -> bool:
    """Whether the plain map, the one that a kind replaced included, keeps its weight as (in, out)."""
    return issubclass(linear.dense_type if isinstance(linear, KindMap) else type(linear), Conv1D)


def _has_plain_weight(linear: nn.Linear | Conv1D) -> bool:
    return type(linear.weight) in (nn.Parameter, Tensor)


def _checked(linear: nn.Module) -> nn.Linear | Conv1D:
    if is_plain(linear):
        assert isinstance(linear, nn.Linear | Conv1D)
        return linear
    kind = type(linear)
    where = "" if kind.__module__.startswith("torch.") else f" of {kind.__module__.partition('.')[0]}"
    if isinstance(linear, nn.Linear | Conv1D) and (is_stock(kind) or isinstance(linear, KindMap)):
        where = f" with a weight of type {type(linear.weight).__name__}"
    raise InputError(
        f"the linear maps of an MLP must be nn.Linear or Conv1D, got {kind.__name__}{where}; "
        "merge adapters, and start from the model before it was quantised or sharded"
    )
