"""Checks a model and a method before any work."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from mlpfusion.checkpoint.quantisation import check_not_quantised, check_parameters
from mlpfusion.compression.budget.spread import check_budget
from mlpfusion.compression.plan import choose_sites, make_plan
from mlpfusion.errors import InputError, shown
from mlpfusion.kinds.key import KEY
from mlpfusion.kinds.outcome import Narrowed
from mlpfusion.methods.names import known_methods, method_name
from mlpfusion.methods.table import METHODS, Method
from mlpfusion.options.selection import Selection
from mlpfusion.sites.proof.row_check import check_visited
from mlpfusion.sites.sites import Site, check_transformers_model, find_sites, has_gating
from mlpfusion.sites.table import Architecture


def known_method(method: Any) -> Method:
    """Returns the row of a config. Raises `InputError` for anything but a config of the table."""
    if type(method) not in METHODS:
        raise InputError(f"`method` must be a config of {known_methods()}, got {shown(method)}")
    return METHODS[type(method)]


def check_sizes(method: Any, selection: Selection) -> None:
    """Raises `InputError` for a size that the method cannot keep.

    No width, budget or step of widths fits a method of constant width; no width or budget one that chooses the widths.
    """
    row = METHODS[type(method)]
    given = [name for name in ("width", "budget") if getattr(selection, name) is not None]
    if row.makes is not Narrowed:
        wrong, reason = given + ["round_to"] * (selection.round_to != 1), "keeps the width"
    else:
        wrong, reason = given if row.ranked_together else [], "chooses the width of every layer itself"
    if wrong:
        name = method_name(type(method))
        raise InputError(f"`{wrong[0]}` must be left out for {name}, which {reason}: give `keep_ratio`")


def check_experts(model: PreTrainedModel, method: Any, sites: Sequence[Site]) -> None:
    """Raises `InputError` for what experts cannot have yet.

    That is learning on a task; calibrated, or where they share their tensors, also other kinds; a second step where
    gate and up enter one function. `model` may be on the meta device.
    """
    row, name = METHODS[type(method)], method_name(type(method))
    expert = next((site for site in sites if site.expert is not None), None)
    if expert is None:
        return
    where, is_shared = f"for experts ({expert.holder})", expert.stack.layout is not None
    if row.sees == "labels":
        raise InputError(f"`method` must be one that learns on no task {where}, got {name}; `stacks` leaves them out")
    if (is_shared or row.sees == "inputs") and row.makes is not Narrowed:
        raise InputError(f"`method` must be one that narrows {where}, got {name}")
    if row.second_step(method) is not None and has_gating(model, expert):
        told = f"{where}, which take gate and up together, as ntk-match with `match=none`"
        raise InputError(f"`method` must have no second step {told}, got {name}")


def check_not_compressed(config: PreTrainedConfig) -> None:
    """Raises `InputError` for the config of a compressed model."""
    if getattr(config, KEY, None) is not None:
        raise InputError("`model` must not be compressed already, got one with the config key `mlp_fusion`")


def check_model(model: PreTrainedModel) -> None:
    """Raises `InputError` for weights that are missing, quantised, dispatched, compressed or not finite."""
    check_transformers_model(model)
    check_not_compressed(model.config)
    check_not_quantised(model.config)
    if len(set(getattr(model, "hf_device_map", {"": 0}).values())) > 1:
        raise InputError("`model` must be on one device, got one dispatched by `device_map`")
    check_parameters(model)


def check_cut(model: PreTrainedModel, row: Architecture, selection: Selection) -> None:
    """Raises `InputError` for layers or sizes that do not fit a model, and for MLPs its row overlooks.

    Reads no weight: `model` may be on the meta device.
    """
    check_not_compressed(model.config)
    sites = find_sites(model, row)
    if selection.budget is None:
        make_plan(sites, selection)
    else:
        check_budget(model, sites, selection)
    check_visited(model, choose_sites(sites, selection.layers))
