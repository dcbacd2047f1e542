"""What `mlpfusion inspect` finds out about a checkpoint, from its config alone."""

from dataclasses import asdict, dataclass
from typing import Any

import yaml
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel

from mlpfusion.checkpoint.quantisation import quantisation
from mlpfusion.checkpoint.read import empty_model, read_config, resolve
from mlpfusion.compression.plan import make_plan
from mlpfusion.errors import printable
from mlpfusion.kinds.kind import KEY
from mlpfusion.kinds.narrow import unscaled
from mlpfusion.options.selection import Selection
from mlpfusion.record import model_size
from mlpfusion.report.console import PlainConsole, bold, wide_console
from mlpfusion.sites.detect import detect_architecture
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
from mlpfusion.sites.table import ARCHITECTURES, Architecture, architecture_to_dict, find_architecture


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
    """What keeping `keep_ratio` of the neurons of `layers` would leave."""

    layers: str
    keep_ratio: float
    num_sites: int
    widths: tuple[int, ...]
    mlp_parameters: int
    parameters: int


@dataclass(frozen=True)
class Inspection:
    """What was recognised in a checkpoint. `proposed_row` is YAML, given where the table has no row for the type.

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
    quantised: str | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def inspect_checkpoint(
    model: str,
    *,
    revision: str | None = None,
    architecture: str | None = None,
    layers: str = "all",
    keep_ratio: float = 0.25,
) -> Inspection:
    """Looks at the checkpoint `model` (folder or Hub id) without reading its weights.

    Raises `InputError` if there is no such model, its config is malformed, or a given row does not fit it.
    """
    config = read_config(resolve(model, revision, weights=False), allow_quantised=True)
    empty = empty_model(config)
    row, proposed = _row(empty, architecture)
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
        cut=_cut(empty, sites, layers, keep_ratio) if sites and not compressed and not quantised else None,
        compressed=compressed,
        proposed_row=None if experts else proposed,
        quantised=quantised,
    )


def print_inspection(inspection: Inspection, title: str | None = None) -> None:
    """Prints an inspection for people, under `title` or the name of the checkpoint."""
    console = PlainConsole()
    share = 100 * inspection.mlp_parameters / inspection.parameters
    what = printable(f": {inspection.model_class}, model type {inspection.model_type}")
    console.print(Text.assemble(bold(title or inspection.model), what))
    console.print(
        f"{inspection.parameters:,} parameters, {inspection.mlp_parameters:,} of them ({share:.1f} %) in MLPs"
    )
    if inspection.expert_parameters:
        experts = 100 * inspection.expert_parameters / inspection.parameters
        console.print(
            f"{inspection.expert_parameters:,} of them ({experts:.1f} %) are in experts. Mixtures of experts are not "
            "supported yet: no row describes them, and `compress` refuses their layers."
        )
    if not inspection.stacks:
        if not inspection.expert_parameters:
            console.print(
                "No MLP was recognised. Write a row by hand (see ARCHITECTURE.md) and pass it by --architecture."
            )
        return
    wide_console().print(_stack_table(inspection))
    console.print(f"MLP parameters of these layers that are covered: {100 * inspection.visited_share:.1f} %")
    _print_proposed_row(console, inspection)
    if inspection.quantised:
        console.print(
            f"The weights are quantised by {inspection.quantised}: nothing here can change them. Start from the model "
            "that was quantised."
        )
    if inspection.compressed:
        key = inspection.compressed
        console.print(
            f"Compressed by mlpfusion: method {key['method']}, seed {key['seed']}, {len(key['sites'])} blocks."
        )
    if inspection.cut:
        _print_cut(console, inspection, inspection.cut)


def _print_proposed_row(console: PlainConsole, inspection: Inspection) -> None:
    if not inspection.proposed_row:
        return
    console.print(
        f"\n{inspection.model_type} has no row of its own. Save this as row.yaml, check it, and pass it by "
        "--architecture row.yaml:\n"
    )
    console.print(inspection.proposed_row, highlight=False)
    if "width_key: null" in inspection.proposed_row:
        console.print(
            "`width_key: null`: no entry of the config holds this width, so a folded model of this type needs "
            "`import mlpfusion` to load."
        )


def _print_cut(console: PlainConsole, inspection: Inspection, cut: Cut) -> None:
    left, mlp_left = cut.parameters / inspection.parameters, cut.mlp_parameters / inspection.mlp_parameters
    widths = ", ".join(f"{width:,}" for width in sorted(set(cut.widths)))
    console.print(
        f"Keeping {100 * cut.keep_ratio:g} % of the neurons in layers {cut.layers} "
        f"({cut.num_sites} MLPs, width {widths})",
        f"leaves {cut.parameters:,} parameters ({100 * left:.1f} %), {100 * mlp_left:.1f} % of those in MLPs.",
    )


def _row(model: PreTrainedModel, file: str | None) -> tuple[Architecture | None, str | None]:
    """The row to go by, and the same row as YAML where it was only found by pattern."""
    if file is not None or model.config.model_type in ARCHITECTURES:
        return find_architecture(model.config.model_type, file), None
    found = detect_architecture(model)
    return found, yaml.safe_dump(architecture_to_dict(found), sort_keys=False) if found else None


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


def _cut(model: PreTrainedModel, sites: list[Site], layers: str, keep_ratio: float) -> Cut:
    plan = make_plan(sites, Selection(layers, keep_ratio))
    saved = 0
    for site, width in plan.entries:
        mlp = read_mlp(model, site)
        saved += mlp.parameters_per_neuron * (site.intermediate_size - width)
    widths = tuple(width for _, width in plan.entries)
    mlp_left, left = _mlp_parameters(model, sites) - saved, model_size(model).parameters - saved
    return Cut(layers, keep_ratio, len(plan.entries), widths, mlp_left, left)


def _stack_table(inspection: Inspection) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("layers", "number", "hidden", "width", "gated", "bias", "activation", "linear"):
        table.add_column(column, no_wrap=True)
    for stack in inspection.stacks:
        widths = ", ".join(f"{width:,}" for width in dict.fromkeys(stack.widths))
        flags = ["yes" if flag else "no" for flag in (stack.gated, stack.bias)]
        table.add_row(
            stack.layers,
            str(len(stack.widths)),
            f"{stack.hidden_size:,}",
            widths,
            *flags,
            stack.activation,
            stack.linear,
        )
    return table
