"""An inspection of a checkpoint in words."""

from rich.table import Table
from rich.text import Text

from mlpfusion.compression.preview.inspection import Cut, ExpertSummary, Inspection
from mlpfusion.errors import printable
from mlpfusion.report.terminal.console import PlainConsole, bold, wide_console
from mlpfusion.report.terminal.results import after_fold_words, left_out_words


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
        mixtures = "; ".join(_mixture(summary) for summary in inspection.experts)
        console.print(
            f"{inspection.expert_parameters:,} of them ({experts:.1f} %) are in experts: {mixtures}."
            + ("" if inspection.are_experts_found else " They are kept in a way that is not supported.")
        )
    if not inspection.stacks:
        if not inspection.expert_parameters:
            console.print(
                "No MLP was found. A row written by hand (see ARCHITECTURE.md) can be given by --architecture."
            )
        return
    wide_console().print(_stack_table(inspection))
    console.print(f"MLP parameters of these layers that are covered: {100 * inspection.visited_share:.1f} %")
    _print_where_from(console, inspection)
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


def _mixture(summary: ExpertSummary) -> str:
    width = "" if summary.width is None else f" of width {summary.width:,}"
    return f"{summary.mixtures} mixtures of {summary.experts} experts{width}"


def _print_where_from(console: PlainConsole, inspection: Inspection) -> None:
    if inspection.left_out:
        console.print(left_out_words(inspection.left_out), highlight=False)
    if not inspection.proposed_row:
        return
    console.print(
        f"{inspection.model_type} has no row in the table: the MLPs were found by their shapes, and `compress` runs "
        "the model once to prove them. --json prints the row, to be changed and given by --architecture."
    )
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
    console.print(after_fold_words(cut.no_stock_form), highlight=False)
    console.print(
        f"`compress --stream`, without texts, would take at most {cut.streamed_bytes / 2**30:.1f} GiB of memory."
    )


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
