"""What a cut of a checkpoint would give, from the config alone."""

from dataclasses import dataclass
from typing import Any

import yaml
from transformers import PreTrainedModel

from mlpfusion.checkpoint.quantisation import quantisation
from mlpfusion.checkpoint.read import empty_model, read_config, resolve
from mlpfusion.checks import user_path
from mlpfusion.compression.plan import make_plan
from mlpfusion.kinds.key import model_key
from mlpfusion.kinds.kind import KEY
from mlpfusion.kinds.narrow import unscaled
from mlpfusion.options.selection import Selection
from mlpfusion.record import model_size
from mlpfusion.sites.detect import all_stacks, architecture_of
from mlpfusion.sites.sites import (
    Site,
    base_model,
    expert_parameters,
    find_sites,
    read_mlp,
    site_module,
    site_parameters,
    visited_share,
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
class Cut:
    """Numbers that keeping `keep_ratio` of the neurons of `layers` would leave."""

    layers: str
    keep_ratio: float
    num_sites: int
    widths: tuple[int, ...]
    mlp_parameters: int
    parameters: int


@dataclass(frozen=True)
class Inspection:
    """What was recognised in a checkpoint. `proposed_row` is YAML, the row that was found where the table has none.

    `left_out` names the stacks of a composite model that are not cut: those of images and sounds, beside one of text.
    `expert_parameters` are those of mixtures of experts, which are in no MLP of `stacks`; `quantised` is the method of
    quantised weights.
    """

    model: str
    model_type: str
    model_class: str
    known: bool
    parameters: int
    mlp_parameters: int
    expert_parameters: int
    visited_share: float
    stacks: tuple[StackSummary, ...]
    cut: Cut | None
    compressed: dict[str, Any] | None
    proposed_row: str | None
    left_out: tuple[str, ...]
    quantised: str | None


def inspect_checkpoint(
    model: str, selection: Selection = QUARTER, *, revision: str | None = None, architecture: str | None = None
) -> Inspection:
    """Looks at the checkpoint `model` (folder or Hub id) without reading its weights.

    Raises `InputError` if there is no such model, its config is malformed, or a given row does not fit it.
    """
    config = read_config(resolve(model, revision, weights=False), allow_quantised=True)
    empty = empty_model(config)
    row, proposed, left_out = _row(empty, architecture)
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
        visited_share=visited_share(empty, sites) if sites else 0.0,
        stacks=_summaries(empty, sites),
        cut=_cut(empty, sites, selection) if sites and not compressed and not quantised else None,
        compressed=compressed,
        proposed_row=None if experts else proposed,
        left_out=left_out,
        quantised=quantised,
    )


def _row(model: PreTrainedModel, file: str | None) -> tuple[Architecture | None, str | None, tuple[str, ...]]:
    """The row to go by; where it was only found by pattern, the same as YAML, and the stacks that it leaves out."""
    if file is not None:
        return read_architecture(user_path("architecture", file)), None, ()
    if model.config.model_type in ARCHITECTURES:
        return ARCHITECTURES[model.config.model_type], None, ()
    if (key := model_key(model.config)) is not None:  # a compressed block has another activation, no pattern to find
        return key.architecture, None, ()
    stacks = all_stacks(model)
    row = architecture_of(model, stacks)
    if row is None:
        return None, None, ()
    counted = {stack.layer for stack in row.stacks}
    left_out = dict.fromkeys(stack.layer for stack in stacks if stack.layer not in counted)
    return row, yaml.safe_dump(architecture_to_dict(row), sort_keys=False), tuple(left_out)


def _summaries(model: PreTrainedModel, sites: list[Site]) -> tuple[StackSummary, ...]:
    by_stack: dict[str, list[Site]] = {}
    for site in sites:
        by_stack.setdefault(site.stack.layer, []).append(site)
    return tuple(_summary(model, members) for members in by_stack.values())


def _summary(model: PreTrainedModel, sites: list[Site]) -> StackSummary:
    mlp = read_mlp(model, sites[0])
    return StackSummary(
        layers=sites[0].stack.layer,
        hidden_size=mlp.hidden_size,
        widths=tuple(site.intermediate_size for site in sites),
        gated=mlp.gate is not None,
        bias=mlp.up_bias is not None,
        activation=type(unscaled(site_module(model, sites[0], "activation"))).__name__,
        linear=type(site_module(model, sites[0], "up")).__name__,
    )


def _mlp_parameters(model: PreTrainedModel, sites: list[Site]) -> int:
    base = base_model(model)
    unique = {id(parameter): parameter for site in sites for parameter in site_parameters(base, site)}
    return sum(parameter.numel() for parameter in unique.values())


def _cut(model: PreTrainedModel, sites: list[Site], selection: Selection) -> Cut:
    plan = make_plan(sites, selection)
    assert plan.keep_ratio is not None
    saved = 0
    for site, width in plan.entries:
        mlp = read_mlp(model, site)
        saved += mlp.parameters_per_neuron * (site.intermediate_size - width)
    widths = tuple(width for _, width in plan.entries)
    mlp_left, left = _mlp_parameters(model, sites) - saved, model_size(model).parameters - saved
    return Cut(selection.layers, plan.keep_ratio, len(plan.entries), widths, mlp_left, left)
