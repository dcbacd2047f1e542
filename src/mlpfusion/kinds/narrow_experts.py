"""The narrow kind for experts that share one tensor a matrix: all of a mixture get one width, scales stand beside them.

transformers computes all experts at once, by kernels that know of no scale, so P enters as a factor of `down`: the
module runs its own forward pass on a view of itself in which `down` is multiplied. The stored `down` stays what it is,
its gradient is that of MLP Fusion. Of two matched diagonals the first enters as a factor of the map before the
activation.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from mlpfusion.errors import InputError
from mlpfusion.kinds.foreign_forward import guard, unguard
from mlpfusion.kinds.kind import BlockSize, Kind, replace_module
from mlpfusion.kinds.narrow import (
    NarrowSite,
    check_diagonal,
    is_narrow_there,
    narrow_size,
    original_width,
    read_narrow_entry,
    scale_bits,
    scale_of,
)
from mlpfusion.kinds.outcome import Narrowed, NarrowedExperts, Outcome
from mlpfusion.mlp import MLP, scale_neurons
from mlpfusion.sites.bits import as_bits, from_bits
from mlpfusion.sites.sites import Site, base_model, by_holder, read_mlp
from mlpfusion.sites.weights import Tensors, Weight, written

_BITS = ("input_scale_bits", "output_scale_bits")
# What the key of a saved model calls the scales of a mixture -> the buffers that hold them.
SCALES: dict[str, tuple[str, ...]] = {"none": (), "cluster-sizes": ("cluster_sizes",), "matched": _BITS}


def gathered(sites: Sequence[Site], outcomes: Sequence[Outcome]) -> list[tuple[Site, Outcome]]:
    """Sites and their outcomes; of experts that share their tensors the first, with one outcome for all."""
    by_site, found = dict(zip(sites, outcomes, strict=True)), list[tuple[Site, Outcome]]()
    for first, *others in by_holder(sites).values():
        outcome = by_site[first]
        if first.stack.layout is not None:
            members = [by_site[site] for site in (first, *others)]
            outcome = NarrowedExperts(tuple(one for one in members if isinstance(one, Narrowed)))
            assert len(outcome.experts) == len(members)
        found.append((first, outcome))
    return found


@dataclass(frozen=True)
class NarrowExpertsSite(NarrowSite):
    """Narrower experts of one mixture: the width of each now and before, their scales, the parameters of all."""


@dataclass(frozen=True)
class ScaledTensors:
    """Names of the tensors that scales are multiplied into, and how these hold the neurons.

    `first` is the map before the activation: of the gate, or of `up` without one; in the `first_half` alone of its
    neurons where it holds both. `in_turns`: gate and up take turns there.
    """

    down: str
    first: str
    first_half: bool
    in_turns: bool
    neuron_axis: int  # of `down`; the neurons of `first` are on the other one

    @classmethod
    def of(cls, site: Site) -> "ScaledTensors":
        """Those of the mixture that the expert at `site` is in."""
        field = "up" if site.stack.gate is None else "gate"
        first = next(weight for weight in site.weights if weight.field == field)
        axis = 2 if site.stack.layout == "rows" else 1
        name = first.name.rpartition(".")[2]
        return cls(site.stack.down, name, first.half is not None, first.interleaved, axis)


class ScaledExperts(nn.Module):
    """What is mixed into the class of a module of experts that has scales; `scaled_class` makes the whole class.

    The scales are int32 buffers (experts x neurons), never trained, exact under any dtype: `cluster_sizes`, or the bits
    of two diagonals of positive fp32 numbers.
    """

    cluster_sizes: Int[Tensor, "experts neurons"]
    input_scale_bits: Int[Tensor, "experts neurons"]
    output_scale_bits: Int[Tensor, "experts neurons"]
    stock: type[nn.Module]
    places: ScaledTensors

    @property
    def is_matched(self) -> bool:
        """Whether there are two diagonals, not P."""
        return _BITS[0] in self._buffers

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.stock.forward(_Scaled(self), *args, **kwargs)

    def scaled(self, name: str) -> Tensor | None:
        """The tensor `name` of all experts with its scales multiplied in; None where it has none."""
        places = self.places
        if name == places.down:
            scale = from_bits(self.output_scale_bits) if self.is_matched else self.cluster_sizes
            return times_neurons(getattr(self, name), scale, places.neuron_axis)
        if not self.is_matched or name not in (places.first, f"{places.first}_bias"):
            return None
        scale = from_bits(self.input_scale_bits)
        if places.first_half:
            both = (scale, torch.ones_like(scale))
            scale = torch.stack(both, dim=2).flatten(1) if places.in_turns else torch.cat(both, dim=1)
        if name != places.first:
            return scale_neurons(getattr(self, name), scale)
        return times_neurons(getattr(self, name), scale, 3 - places.neuron_axis)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _unpickled, (self.stock, self.places), self.__dict__


class _Scaled:
    """The view of a module of experts that its stock forward pass is given."""

    def __init__(self, experts: ScaledExperts):
        self._experts = experts

    def __getattr__(self, name: str) -> Any:
        scaled = self._experts.scaled(name)
        return getattr(self._experts, name) if scaled is None else scaled


@cache
def scaled_class(stock: type[nn.Module], places: ScaledTensors) -> type[nn.Module]:
    """The class of modules of experts of class `stock` that have scales."""
    return type(f"Scaled{stock.__name__}", (ScaledExperts, stock), {"stock": stock, "places": places})


def _unpickled(stock: type[nn.Module], places: ScaledTensors) -> nn.Module:
    kind = scaled_class(stock, places)
    return kind.__new__(kind)


def times_neurons(matrices: Tensor, scale: Tensor, neuron_axis: int) -> Tensor:
    """A matrix of every expert, every neuron multiplied by its number in `scale` (experts, neurons).

    >>> times_neurons(torch.ones(1, 2, 3), torch.tensor([[1, 2, 3]]), neuron_axis=2)[0, 0].tolist()
    [1.0, 2.0, 3.0]
    """
    return scale_neurons(matrices, scale.unsqueeze(3 - neuron_axis))


def _holder(model: PreTrainedModel, site: Site) -> nn.Module:
    """The module of all experts of the mixture that the expert at `site` is in."""
    return base_model(model).get_submodule(site.holder)


def _read_entry(path: str, data: Mapping[str, Any]) -> NarrowExpertsSite:
    return NarrowExpertsSite(**asdict(read_narrow_entry(path, data)))


def _entry_of(site: Site, outcome: NarrowedExperts, original: Tensors) -> NarrowExpertsSite:
    mlps = [expert.mlp for expert in outcome.experts]
    widths = {mlp.num_neurons for mlp in mlps}
    assert len(widths) == 1
    size = sum(mlp.num_parameters for mlp in mlps)
    return NarrowExpertsSite(widths.pop(), site.intermediate_size, _scale_of_all(mlps), size)


def _scale_of_all(experts: Sequence[MLP]) -> str:
    """The name in `SCALES` for what holds the scales of all: two diagonals hold any, where experts differ."""
    scales = {scale_of(mlp) for mlp in experts}
    return scales.pop() if len(scales) == 1 else "matched"


def _tensors(site: Site, outcome: NarrowedExperts, original: Tensors) -> dict[str, Tensor]:
    mlps = [expert.mlp for expert in outcome.experts]
    tensors = dict[str, Tensor]()
    for number, mlp in enumerate(mlps):  # one after the other, for they may be large
        for name, tensor in written(site.weights, mlp.tensors()).items():
            tensors.setdefault(name, tensor.new_empty(len(mlps), *tensor.shape))[number] = tensor
    scale = _scale_of_all(mlps)
    if scale == "cluster-sizes":
        sizes = [mlp.output_scale for mlp in mlps if mlp.output_scale is not None]
        tensors[f"{site.holder}.cluster_sizes"] = torch.stack(sizes)
    elif scale == "matched":
        for name, bits in zip(_BITS, zip(*map(scale_bits, mlps), strict=True), strict=True):
            tensors[f"{site.holder}.{name}"] = torch.stack(bits)
    return tensors


def _is_there(model: PreTrainedModel, site: Site, entry: NarrowExpertsSite) -> bool:
    holder, installed = _holder(model, site), "none"
    if isinstance(holder, ScaledExperts):
        installed = "matched" if holder.is_matched else "cluster-sizes"
    return is_narrow_there(site, entry, installed, SCALES)


def _make_room(model: PreTrainedModel, site: Site, entry: NarrowExpertsSite) -> None:
    """A new module of experts with narrower tensors. Device, dtype and `requires_grad` are kept."""
    old = _holder(model, site)
    kind = type(old) if entry.scale == "none" else scaled_class(type(old), ScaledTensors.of(site))
    new, num_experts = _twin(old, kind), len(old.get_parameter(site.stack.down))
    for weight in site.weights:
        name = weight.name.rpartition(".")[2]
        if name in dict(old.named_parameters(recurse=False)):
            like = old.get_parameter(name)
            empty = like.new_empty(num_experts, *_new_shape(site, weight, entry.intermediate_size))
            new.register_parameter(name, nn.Parameter(empty, requires_grad=like.requires_grad))
    ones = new.get_parameter(site.stack.down).new_ones(num_experts, entry.intermediate_size, dtype=torch.float32)
    for name in SCALES[entry.scale]:
        new.register_buffer(name, as_bits(ones).clone() if name in _BITS else ones.int())
    replace_module(base_model(model), site.holder, new)
    if entry.scale != "none":
        guard(new)


def _new_shape(site: Site, weight: Weight, width: int) -> tuple[int, ...]:
    """Shape of what one expert of `width` neurons has in the tensor of `weight`."""
    is_down, hidden, neurons = weight.field.startswith("down"), site.hidden_size, weight.num_parts * width
    rows, columns = (hidden, neurons) if is_down else (neurons, hidden)
    if weight.is_bias:
        return (rows,)
    return (columns, rows) if weight.transposed else (rows, columns)


def _twin(module: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """A module of class `kind` with the attributes of `module`, which share no dictionary of theirs with it."""
    twin = kind.__new__(kind)
    own = ((name, copy(one) if isinstance(one, dict | set) else one) for name, one in vars(module).items())
    twin.__dict__.update(own)
    return twin


def _check(model: PreTrainedModel, site: Site, entry: NarrowExpertsSite) -> None:
    """The cluster sizes of every expert must be a partition of its original neurons, diagonals positive."""
    holder = _holder(model, site)
    if not isinstance(holder, ScaledExperts) or any(buffer.is_meta for buffer in holder.buffers()):
        return
    if holder.is_matched:
        for name in _BITS:
            check_diagonal(from_bits(holder.get_buffer(name)), name.removesuffix("_bits"), site.holder)
        return
    smallest, totals = int(holder.cluster_sizes.min()), set(holder.cluster_sizes.sum(1).tolist())
    if smallest < 1 or totals != {entry.original_size}:
        raise InputError(
            f"the `cluster_sizes` at {site.holder} must be at least 1 and sum up to {entry.original_size} in every "
            f"expert, got a minimum of {smallest} and sums from {min(totals)} to {max(totals)}"
        )


@torch.no_grad()
def _fold(model: PreTrainedModel, site: Site) -> None:
    """Multiplies the scales into the maps around the activation."""
    holder = _holder(model, site)
    if isinstance(holder, ScaledExperts):
        new = _twin(holder, holder.stock)
        unguard(new)
        for name in SCALES["matched" if holder.is_matched else "cluster-sizes"]:
            del new._buffers[name]
        for name, parameter in holder.named_parameters(recurse=False):
            scaled = holder.scaled(name)
            if scaled is not None:
                new.register_parameter(name, nn.Parameter(scaled.detach(), requires_grad=parameter.requires_grad))
        replace_module(base_model(model), site.holder, new)


def _size_words(size: BlockSize, metrics: Mapping[str, float]) -> str:
    return f"{size.width:,} an expert"


KIND = Kind(
    name="narrow-experts",
    outcome=NarrowedExperts,
    entry=NarrowExpertsSite,
    blocks="narrower experts",
    without_package="Without the package transformers refuses the checkpoint with a shape error.",
    read_entry=_read_entry,
    entry_of=_entry_of,
    tensors=_tensors,
    is_there=_is_there,
    make_room=_make_room,
    check=_check,
    fold=_fold,
    trained_block=read_mlp,
    size=narrow_size,
    size_words=_size_words,
    buffers=tuple(f".{name}" for names in SCALES.values() for name in names),
    buffers_of="the scales of the experts",
    can_be_cut=False,
    original_width=original_width,
)
