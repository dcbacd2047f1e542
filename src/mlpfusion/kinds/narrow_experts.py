"""The narrow kind for experts that share one tensor a matrix: all of a mixture get one width, P stands beside them.

transformers computes all experts at once, by kernels that know of no scale, so P enters as a factor of `down`: the
module runs its own forward pass on a view of itself in which `down` is multiplied. The stored `down` stays what it is,
its gradient is that of MLP Fusion.
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
from mlpfusion.kinds.kind import BlockSize, Kind, replace_module
from mlpfusion.kinds.narrow import (
    NarrowSite,
    is_narrow_there,
    narrow_size,
    original_width,
    read_narrow_entry,
    scale_of,
)
from mlpfusion.kinds.outcome import Narrowed, NarrowedExperts, Outcome
from mlpfusion.mlp import scale_neurons
from mlpfusion.sites.sites import Site, base_model, by_holder, read_mlp
from mlpfusion.sites.weights import Tensors, Weight, written

SCALES = ("none", "cluster-sizes")


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


class ScaledExperts(nn.Module):
    """What is mixed into the class of a module of experts that has scales; `scaled_class` makes the whole class.

    `cluster_sizes` are those of the clusters by expert, an int32 buffer: never trained, exact under any dtype.
    """

    cluster_sizes: Int[Tensor, "experts neurons"]
    stock: type[nn.Module]
    down: str
    neuron_axis: int

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.stock.forward(_Scaled(self), *args, **kwargs)

    def scaled_down(self) -> Tensor:
        """`down` of all experts times P."""
        return times_neurons(getattr(self, self.down), self.cluster_sizes, self.neuron_axis)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _unpickled, (self.stock, self.down, self.neuron_axis), self.__dict__


class _Scaled:
    """The view of a module of experts that its stock forward pass is given."""

    def __init__(self, experts: ScaledExperts):
        self._experts = experts

    def __getattr__(self, name: str) -> Any:
        experts = self._experts
        return experts.scaled_down() if name == experts.down else getattr(experts, name)


@cache
def scaled_class(stock: type[nn.Module], down: str, neuron_axis: int) -> type[nn.Module]:
    """The class of modules of experts of class `stock` that have scales. `neuron_axis` is that of the tensor `down`."""
    own = {"stock": stock, "down": down, "neuron_axis": neuron_axis}
    return type(f"Scaled{stock.__name__}", (ScaledExperts, stock), own)


def _unpickled(stock: type[nn.Module], down: str, neuron_axis: int) -> nn.Module:
    kind = scaled_class(stock, down, neuron_axis)
    return kind.__new__(kind)


def times_neurons(down: Tensor, scale: Tensor, neuron_axis: int) -> Tensor:
    """`down` of all experts, every neuron multiplied by its number in `scale` (experts, neurons).

    >>> times_neurons(torch.ones(1, 2, 3), torch.tensor([[1, 2, 3]]), neuron_axis=2)[0, 0].tolist()
    [1.0, 2.0, 3.0]
    """
    return scale_neurons(down, scale.unsqueeze(1 if neuron_axis == 2 else 2))


def _holder(model: PreTrainedModel, site: Site) -> nn.Module:
    """The module of all experts of the mixture that the expert at `site` is in."""
    return base_model(model).get_submodule(site.holder)


def _read_entry(path: str, data: Mapping[str, Any]) -> NarrowExpertsSite:
    return NarrowExpertsSite(**asdict(read_narrow_entry(path, data)))


def _entry_of(site: Site, outcome: NarrowedExperts, original: Tensors) -> NarrowExpertsSite:
    mlps = [expert.mlp for expert in outcome.experts]
    widths, scales = {mlp.num_neurons for mlp in mlps}, {scale_of(mlp) for mlp in mlps}
    assert len(widths) == len(scales) == 1
    assert scales <= set(SCALES)
    size = sum(mlp.num_parameters for mlp in mlps)
    return NarrowExpertsSite(widths.pop(), site.intermediate_size, scales.pop(), size)


def _tensors(site: Site, outcome: NarrowedExperts, original: Tensors) -> dict[str, Tensor]:
    mlps = [expert.mlp for expert in outcome.experts]
    tensors = dict[str, Tensor]()
    for number, mlp in enumerate(mlps):  # one after the other, for they may be large
        for name, tensor in written(site.weights, mlp.tensors()).items():
            tensors.setdefault(name, tensor.new_empty(len(mlps), *tensor.shape))[number] = tensor
    sizes = [mlp.output_scale for mlp in mlps if mlp.output_scale is not None]
    return tensors | ({f"{site.holder}.cluster_sizes": torch.stack(sizes)} if sizes else {})


def _is_there(model: PreTrainedModel, site: Site, entry: NarrowExpertsSite) -> bool:
    installed = "cluster-sizes" if isinstance(_holder(model, site), ScaledExperts) else "none"
    return is_narrow_there(site, entry, installed, SCALES)


def _make_room(model: PreTrainedModel, site: Site, entry: NarrowExpertsSite) -> None:
    """A new module of experts with narrower tensors. Device, dtype and `requires_grad` are kept."""
    old = _holder(model, site)
    axis = 2 if site.stack.layout == "rows" else 1
    kind = type(old) if entry.scale == "none" else scaled_class(type(old), site.stack.down, axis)
    new, num_experts = _twin(old, kind), len(old.get_parameter(site.stack.down))
    for weight in site.weights:
        name = weight.name.rpartition(".")[2]
        if name in dict(old.named_parameters(recurse=False)):
            like = old.get_parameter(name)
            empty = like.new_empty(num_experts, *_new_shape(site, weight, entry.intermediate_size))
            new.register_parameter(name, nn.Parameter(empty, requires_grad=like.requires_grad))
    if entry.scale != "none":
        device = new.get_parameter(site.stack.down).device
        ones = torch.ones(num_experts, entry.intermediate_size, dtype=torch.int32, device=device)
        new.register_buffer("cluster_sizes", ones)
    replace_module(base_model(model), site.holder, new)


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
    """The cluster sizes of every expert must be a partition of its original neurons."""
    holder = _holder(model, site)
    if isinstance(holder, ScaledExperts) and not holder.cluster_sizes.is_meta:
        smallest, totals = int(holder.cluster_sizes.min()), set(holder.cluster_sizes.sum(1).tolist())
        if smallest < 1 or totals != {entry.original_size}:
            raise InputError(
                f"the `cluster_sizes` at {site.holder} must be at least 1 and sum up to {entry.original_size} in every "
                f"expert, got a minimum of {smallest} and sums from {min(totals)} to {max(totals)}"
            )


@torch.no_grad()
def _fold(model: PreTrainedModel, site: Site) -> None:
    """Multiplies the scales into `down`."""
    holder = _holder(model, site)
    if isinstance(holder, ScaledExperts):
        new, down = _twin(holder, holder.stock), getattr(holder, site.stack.down)
        del new._buffers["cluster_sizes"]
        folded = nn.Parameter(holder.scaled_down().detach(), requires_grad=down.requires_grad)
        new.register_parameter(site.stack.down, folded)
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
    buffers=(".cluster_sizes",),
    buffers_of="the cluster sizes of the experts",
    can_be_cut=False,
    original_width=original_width,
)
