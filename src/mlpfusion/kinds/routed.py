"""The routed kind: the neurons of a site in experts, a router in front of the activation chooses among them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from mlpfusion.checks import num_not_finite
from mlpfusion.errors import InputError
from mlpfusion.kinds.kind import BlockSize, Kind, entry_place, number_at, replace_module
from mlpfusion.kinds.narrow import read_block, resize_maps
from mlpfusion.kinds.outcome import Routed
from mlpfusion.sites.bits import as_bits, from_bits
from mlpfusion.sites.sites import Part, Site, base_model, site_module
from mlpfusion.sites.weights import Tensors, linear_shape, written

_NO_STOCK_FORM = "its blocks are routed to experts, which no stock model does"


@dataclass(frozen=True)
class RoutedSite:
    """An MLP of experts: how many, how many of them compute for a token, and its parameters, those of all experts."""

    num_experts: int
    num_selected: int
    num_parameters: int


class RoutedLinear(nn.Module):
    """`linear(x)`, 0 at the neurons of the experts that the router does not choose for a token.

    What follows is an activation with act(0) = 0, so these neurons contribute nothing, and get no gradient. They are
    computed all the same: this is a mask, it saves no time. Experts are runs of neighbouring neurons of one size; where
    the map holds a second half that does not go through the activation (gate | up), `num_neurons` is the first.

    The scores of the experts are R_out tanh(R_in x), always in fp32; the `num_selected` highest compute, of equal ones
    the first. The router is constant: two buffers with the bits of fp32 numbers as int32, which no change of dtype
    touches, so in a model that is loaded in bf16 its numbers are exact, and only x is rounded.

    The buffer `weight` holds the number of chosen experts (0 in files that older versions wrote). It makes transformers
    without this package fail on its shape, where it would run all experts.
    """

    weight: Int[Tensor, " 1"]
    router_in_bits: Int[Tensor, "experts hidden"]
    router_out_bits: Int[Tensor, "experts experts"]
    made_of = "linear"

    def __init__(self, linear: nn.Module, num_neurons: int, hidden_size: int, num_experts: int, num_selected: int):
        super().__init__()
        assert num_neurons % num_experts == 0
        self.linear, self.num_neurons, self.num_selected = linear, num_neurons, num_selected
        self.dense_type = type(linear)
        like = next(linear.parameters())
        self.register_buffer("weight", torch.full((1,), num_selected, dtype=torch.int32, device=like.device))
        for name, columns in (("router_in_bits", hidden_size), ("router_out_bits", num_experts)):
            self.register_buffer(name, torch.zeros(num_experts, columns, dtype=torch.int32, device=like.device))

    @property
    def num_experts(self) -> int:
        return len(self.router_in_bits)

    @property
    def router_in(self) -> Float[Tensor, "experts hidden"]:
        return from_bits(self.router_in_bits)

    @property
    def router_out(self) -> Float[Tensor, "experts experts"]:
        return from_bits(self.router_out_bits)

    def scores(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch experts"]:
        """The scores of the experts, in fp32, under autocast too."""
        with torch.autocast(x.device.type, enabled=False):
            return torch.tanh(x.detach().float() @ self.router_in.T) @ self.router_out.T

    def selected(self, x: Float[Tensor, "*batch hidden"]) -> Bool[Tensor, "*batch experts"]:
        """Which experts compute."""
        order = self.scores(x).argsort(dim=-1, descending=True, stable=True)
        chosen = torch.zeros(order.shape, dtype=torch.bool, device=x.device)
        return chosen.scatter_(-1, order[..., : self.num_selected], True)

    def forward(self, x: Tensor) -> Tensor:
        neurons = self.selected(x).repeat_interleave(self.num_neurons // self.num_experts, dim=-1)
        outputs = self.linear(x)
        first = torch.where(neurons, outputs[..., : self.num_neurons], 0.0)
        rest = outputs[..., self.num_neurons :]
        return first if rest.shape[-1] == 0 else torch.cat([first, rest], dim=-1)

    def shape(self) -> tuple[int, int]:
        """(out, in) of the map of all experts."""
        return linear_shape(self.linear)

    def check_readable(self) -> None:
        """Raises `InputError`: no plain map computes what a choice among experts does."""
        raise InputError(
            "an MLP must compute all its neurons to be read as one, got one whose experts a router chooses"
        )

    def dense_weight(self) -> Tensor:
        """Raises `InputError`."""
        self.check_readable()
        raise AssertionError

    def dense_bias(self) -> Tensor | None:
        """Raises `InputError`."""
        self.check_readable()

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, num_selected={self.num_selected}"


def _read_entry(path: str, data: Mapping[str, Any]) -> RoutedSite:
    where = entry_place(path)
    return RoutedSite(
        num_experts=number_at(f"{where}.num_experts", data["num_experts"]),
        num_selected=number_at(f"{where}.num_selected", data["num_selected"]),
        num_parameters=number_at(f"{where}.num_parameters", data["num_parameters"]),
    )


def _entry_of(site: Site, outcome: Routed, original: Tensors) -> RoutedSite:
    return RoutedSite(len(outcome.router_in), outcome.num_selected, outcome.mlp.num_parameters)


def _tensors(site: Site, outcome: Routed, original: Tensors) -> dict[str, Tensor]:
    """The neurons in the order of their experts, and the router, rounded to fp32."""
    routed = site.module_path(_part(site))
    inner = {f"{routed}.{leaf}": f"{routed}.linear.{leaf}" for leaf in ("weight", "bias")}
    tensors = {inner.get(name, name): tensor for name, tensor in written(site.weights, outcome.mlp.tensors()).items()}
    for name, values in (("router_in", outcome.router_in), ("router_out", outcome.router_out)):
        tensors[f"{routed}.{name}_bits"] = as_bits(values)
    return tensors


def _is_there(model: PreTrainedModel, site: Site, entry: RoutedSite) -> bool:
    if site.intermediate_size % entry.num_experts or entry.num_selected > entry.num_experts:
        raise InputError(
            f"`mlp_fusion` wants {entry.num_selected} of {entry.num_experts} experts of one size at {site.path}, "
            f"the config gives that layer {site.intermediate_size} neurons"
        )
    routed = site_module(model, site, _part(site))
    chosen = (entry.num_experts, entry.num_selected)
    return isinstance(routed, RoutedLinear) and (routed.num_experts, routed.num_selected) == chosen


def _make_room(model: PreTrainedModel, site: Site, entry: RoutedSite) -> None:
    """The plain maps, one of them behind the router."""
    base, path = base_model(model), site.module_path(_part(site))
    linear = base.get_submodule(path)
    if isinstance(linear, RoutedLinear):
        replace_module(base, path, linear.linear)
    resize_maps(model, site, site.intermediate_size)
    linear = base.get_submodule(path)
    routed = RoutedLinear(linear, site.intermediate_size, site.hidden_size, entry.num_experts, entry.num_selected)
    replace_module(base, path, routed.train(linear.training))


def _check(model: PreTrainedModel, site: Site, entry: RoutedSite) -> None:
    """The loaded router must be finite and choose as many experts as the key says."""
    routed = site_module(model, site, _part(site))
    if not isinstance(routed, RoutedLinear) or routed.router_in_bits.is_meta:
        return
    stored = int(routed.weight)
    if stored not in (0, entry.num_selected):
        raise InputError(
            f"`mlp_fusion` must choose {stored} experts at {site.path}, as many as the weights were made for, "
            f"got {entry.num_selected}"
        )
    for name, values in (("router_in", routed.router_in), ("router_out", routed.router_out)):
        if num_not_finite(values):
            raise InputError(f"the `{name}` at {site.path} must be finite, got NaN or Inf")


def _fold(model: PreTrainedModel, site: Site) -> None:
    raise AssertionError(_NO_STOCK_FORM)  # `no_stock_form` is asked before


def _part(site: Site) -> Part:
    """The linear map in front of the activation."""
    return "up" if site.stack.gate is None else "gate"


def _size(site: Site, entry: RoutedSite) -> BlockSize:
    return BlockSize(site.intermediate_size, entry.num_parameters, entry.num_parameters)


def _size_words(size: BlockSize, metrics: Mapping[str, float]) -> str:
    return f"{metrics['num_selected']} of {metrics['num_experts']} experts"


KIND = Kind(
    name="routed",
    outcome=Routed,
    entry=RoutedSite,
    blocks="experts and routers in the MLPs",
    without_package="Without the package transformers refuses the checkpoint with a shape error.",
    read_entry=_read_entry,
    entry_of=_entry_of,
    tensors=_tensors,
    is_there=_is_there,
    make_room=_make_room,
    check=_check,
    fold=_fold,
    trained_block=read_block,
    size=_size,
    size_words=_size_words,
    buffers=(".router_in_bits", ".router_out_bits"),
    buffers_of="the router of every routed block",
    can_be_cut=False,
    no_stock_form=_NO_STOCK_FORM,
)
