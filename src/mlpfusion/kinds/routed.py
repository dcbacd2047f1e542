"""The routed kind: the neurons of a site in experts, a router in front of the activation chooses among them."""

from transformers import PreTrainedModel

from mlpfusion.checks import num_not_finite
from mlpfusion.errors import InputError
from mlpfusion.kinds.key import RoutedSite
from mlpfusion.kinds.linear import replace_module
from mlpfusion.kinds.narrow import copy_weights, make_room
from mlpfusion.kinds.outcome import Routed
from mlpfusion.modules.routed import RoutedLinear
from mlpfusion.sites.sites import Site, base_model, site_parameters


def install(model: PreTrainedModel, site: Site, outcome: Routed) -> RoutedSite:
    """Puts the neurons in the order of their experts and the router in front. Changes the model; values are copied."""
    base = base_model(model)
    make_room(model, site, outcome.mlp.num_neurons, scale="none")
    copy_weights(model, site, outcome.mlp)
    _wrap(model, site, len(outcome.router_in), outcome.num_selected).set_router(outcome.router_in, outcome.router_out)
    num_parameters = sum(parameter.numel() for parameter in site_parameters(base, site))
    return RoutedSite(len(outcome.router_in), outcome.num_selected, num_parameters)


def rebuild(model: PreTrainedModel, site: Site, entry: RoutedSite) -> None:
    """Makes room for the router. Changes the model; idempotent. Raises `InputError` for experts that do not fit."""
    if site.intermediate_size % entry.num_experts or entry.num_selected > entry.num_experts:
        raise InputError(
            f"`mlp_fusion` wants {entry.num_selected} of {entry.num_experts} experts of one size at {site.path}, "
            f"the config gives that layer {site.intermediate_size} neurons"
        )
    _wrap(model, site, entry.num_experts, entry.num_selected)


def check(model: PreTrainedModel, site: Site, entry: RoutedSite) -> None:
    """Raises `InputError` unless the loaded router is finite and chooses as many experts as the key says."""
    routed = base_model(model).get_submodule(_routed_path(site))
    if not isinstance(routed, RoutedLinear) or routed.router_in_bits.is_meta:
        return
    stored = int(routed.weight)
    if stored not in (0, entry.num_selected):
        raise InputError(
            f"`mlp_fusion` must choose {stored} experts at {site.path}, as many as the weights were made for, "
            f"got {entry.num_selected}"
        )
    for name in ("router_in", "router_out"):
        if num_not_finite(getattr(routed, name)):
            raise InputError(f"the `{name}` at {site.path} must be finite, got NaN or Inf")


def fold(model: PreTrainedModel, site: Site) -> None:
    """Raises `InputError`: a choice among experts is no stock block."""
    raise InputError("`model` must have a stock form to be folded, got one with routed experts, which has none")


def _routed_path(site: Site) -> str:
    """Path of the linear map in front of the activation."""
    return site.module_path("up" if site.stack.gate is None else "gate")


def _wrap(model: PreTrainedModel, site: Site, num_experts: int, num_selected: int) -> RoutedLinear:
    base, path = base_model(model), _routed_path(site)
    linear = base.get_submodule(path)
    if isinstance(linear, RoutedLinear):
        linear = linear.linear
    routed = RoutedLinear(linear, site.intermediate_size, site.hidden_size, num_experts, num_selected)
    replace_module(base, path, routed.train(linear.training))
    return routed
