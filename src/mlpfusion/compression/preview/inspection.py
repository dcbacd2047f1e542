"""What a cut of a checkpoint would give, from the config alone."""

import copy
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from mlpfusion.checkpoint.quantisation import quantisation
from mlpfusion.checkpoint.read import empty_model, read_config, resolve
from mlpfusion.checks import user_path
from mlpfusion.compression.plan import make_plan
from mlpfusion.compression.streaming.memory import expected_bytes
from mlpfusion.kinds.key import model_key
from mlpfusion.kinds.kind import KEY
from mlpfusion.kinds.narrow import unscaled
from mlpfusion.kinds.stock.form import stock_after_fold
from mlpfusion.options.mlps import USUAL_MLPS, MLPOptions
from mlpfusion.options.selection import Selection
from mlpfusion.record import model_size
from mlpfusion.sites.coverage import unnamed_mixtures, visited_share
from mlpfusion.sites.detect import detect_architecture, find_architecture, left_out
from mlpfusion.sites.mixtures.experts import expert_modules, expert_parameters
from mlpfusion.sites.parts import text_config
from mlpfusion.sites.sites import (
    Site,
    base_model,
    find_sites,
    read_mlp,
    site_module,
    site_parameters,
)
from mlpfusion.sites.table import ARCHITECTURES, Architecture, architecture_to_dict, read_architecture

# The cut that is shown unless another is asked for.
QUARTER = Selection(keep_ratio=0.25)


@dataclass(frozen=True)
class StackSummary:
    """The MLPs of one stack of layers; `widths` are those of its layers in order."""

    layers: str
    hidden_size: int
    widths: tuple[int, ...]
    gated: bool
    bias: bool
    activation: str
    linear: str


@dataclass(frozen=True)
class ExpertSummary:
    """Mixtures of experts of one size: so many of them, each of `experts` experts; `width` None where it is unclear."""

    mixtures: int
    experts: int
    width: int | None


@dataclass(frozen=True)
class Cut:
    """Numbers that keeping `keep_ratio` of the neurons of `layers` would leave.

    `streamed_bytes` is the memory that `compress --stream` would take. `no_stock_form` is the reason why the folded
    model would not be one of plain transformers; None if it would.
    """

    layers: str
    keep_ratio: float
    num_sites: int
    widths: tuple[int, ...]
    mlp_parameters: int
    parameters: int
    streamed_bytes: int
    no_stock_form: str | None


@dataclass(frozen=True)
class Inspection:
    """What was recognised in a checkpoint. `proposed_row` is YAML, the row that was found where the table has none.

    `left_out` names the layers of the stacks that are not cut, such as those of images beside one of text.
    `expert_parameters` are those of the mixtures of experts `experts`, `are_experts_found` whether a row can name them;
    `quantised` is the method of quantised weights.
    """

    model: str
    model_type: str
    model_class: str
    known: bool
    parameters: int
    mlp_parameters: int
    expert_parameters: int
    experts: tuple[ExpertSummary, ...]
    are_experts_found: bool
    visited_share: float
    stacks: tuple[StackSummary, ...]
    cut: Cut | None
    compressed: dict[str, Any] | None
    proposed_row: str | None
    left_out: tuple[str, ...]
    quantised: str | None


def inspect_checkpoint(
    model: str,
    selection: Selection = QUARTER,
    *,
    revision: str | None = None,
    mlps: MLPOptions = USUAL_MLPS,
) -> Inspection:
    """Looks at the checkpoint `model` (folder or Hub id) without reading its weights.

    Raises `InputError` if there is no such model, its config is malformed, a given row does not fit it, or its
    `stacks` are none of the model's.
    """
    config = read_config(resolve(model, revision, weights=False), allow_quantised=True)
    empty = empty_model(config)
    if isinstance(config.dtype, torch.dtype) and config.dtype.is_floating_point:
        empty.to(dtype=config.dtype)  # pyright: ignore[reportCallIssue]
    known = _given_row(config, mlps.architecture)
    is_found = known is None and config.model_type not in ARCHITECTURES
    row = detect_architecture(empty, mlps.stacks) if is_found else find_architecture(empty, mlps.stacks, known)
    sites = find_sites(empty, row) if row else []
    compressed, quantised = getattr(config, KEY, None), quantisation(config)
    experts = sum(parameter.numel() for parameter in expert_parameters(base_model(empty)))
    return Inspection(
        model=model,
        model_type=config.model_type,
        model_class=type(empty).__name__,
        known=config.model_type in ARCHITECTURES,
        parameters=model_size(empty).parameters,
        mlp_parameters=_mlp_parameters(empty, sites),
        expert_parameters=experts,
        experts=_expert_summaries(empty),
        are_experts_found=not unnamed_mixtures(empty),
        visited_share=visited_share(empty, sites) if sites else 0.0,
        stacks=_summaries(empty, sites),
        cut=_cut(empty, row, sites, selection) if row and sites and not compressed and not quantised else None,
        compressed=compressed,
        proposed_row=_as_yaml(row) if row and is_found else None,
        left_out=left_out(empty, row) if row and not compressed else (),
        quantised=quantised,
    )


def _given_row(config: PreTrainedConfig, file: str | None) -> Architecture | None:
    """The row in a file, or that of a compressed model, whose blocks have no pattern to find."""
    if file is not None:
        return read_architecture(user_path("architecture", file))
    key = model_key(config)
    return None if key is None else key.architecture


def _as_yaml(row: Architecture) -> str:
    return yaml.safe_dump(architecture_to_dict(row), sort_keys=False)


def _expert_summaries(model: PreTrainedModel) -> tuple[ExpertSummary, ...]:
    hidden_size = getattr(text_config(model.config), "hidden_size", None)
    sizes = Counter(_expert_size(module, hidden_size) for module in expert_modules(base_model(model)).values())
    return tuple(ExpertSummary(mixtures, *size) for size, mixtures in sizes.items())


def _expert_size(module: nn.Module, hidden_size: int | None) -> tuple[int, int | None]:
    """Number of experts and their width: of one tensor for all of them, or of a list of modules."""
    packed = [tuple(one.shape) for one in module.parameters(recurse=False) if one.ndim == 3]
    inside = [child for child in module.children() if any(True for _ in child.parameters())]
    shapes = [shape[1:] for shape in packed] or [tuple(one.shape) for child in inside for one in child.parameters()]
    number = min((shape[0] for shape in packed), default=len(inside))
    matrices = [shape for shape in shapes if len(shape) == 2 and hidden_size in shape]
    smallest = min(matrices, key=math.prod, default=None)  # `down`, or any without a gate
    return number, None if smallest is None or not hidden_size else math.prod(smallest) // hidden_size


def _summaries(model: PreTrainedModel, sites: list[Site]) -> tuple[StackSummary, ...]:
    by_stack: dict[str, list[Site]] = {}
    for site in sites:
        by_stack.setdefault(site.stack.layer, []).append(site)
    return tuple(_summary(model, members) for members in by_stack.values())


def _summary(model: PreTrainedModel, sites: list[Site]) -> StackSummary:
    mlp, holder = read_mlp(model, sites[0]), base_model(model).get_submodule(sites[0].holder)
    linear = holder if sites[0].stack.layout else site_module(model, sites[0], "up")
    method = None if mlp.gating is None else sites[0].stack.activation
    return StackSummary(
        layers=sites[0].stack.layer,
        hidden_size=mlp.hidden_size,
        widths=tuple(site.intermediate_size for site in sites),
        gated=mlp.gate is not None,
        bias=mlp.up_bias is not None,
        activation=method or type(unscaled(site_module(model, sites[0], "activation"))).__name__,
        linear=type(linear).__name__,
    )


def _mlp_parameters(model: PreTrainedModel, sites: list[Site]) -> int:
    base = base_model(model)
    unique = {id(parameter): parameter for site in sites for parameter in site_parameters(base, site)}
    return sum(parameter.numel() for parameter in unique.values())


def _cut(model: PreTrainedModel, row: Architecture, sites: list[Site], selection: Selection) -> Cut:
    """The cut in numbers. `model` is on the meta device."""
    plan = make_plan(sites, selection)
    assert plan.keep_ratio is not None
    saved = 0
    for site, width in plan.entries:
        mlp = read_mlp(model, site)
        saved += mlp.parameters_per_neuron * (site.intermediate_size - width)
    widths = tuple(width for _, width in plan.entries)
    mlp_left, left = _mlp_parameters(model, sites) - saved, model_size(model).parameters - saved
    streamed = expected_bytes(model, plan)
    form = stock_after_fold(copy.deepcopy(model), row, {site.holder: width for site, width in plan.entries})
    return Cut(selection.layers, plan.keep_ratio, len(plan.entries), widths, mlp_left, left, streamed, form.reason)
