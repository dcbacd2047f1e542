"""Errors of every method on MiniLM and on a tiny Llama, and the chart of the README: one dot a method."""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlpfusion.methods.names import method_name
from mlpfusion.methods.table import CALIBRATED
from mlpfusion.report.comparison import comparison_table
from mlpfusion.report.numbers import method_colors
from parts.page import markdown, read_result

# Record of a comparison -> what its calibrated method is called beside that of the first.
COMPARISONS = {
    "minilm_comparison": "",
    "minilm_ntk_match_1024": ", 1,024 sentences",
    "minilm_ntk_match_random_tokens": ", random tokens",
}
ERRORS = {"output_error": "output error", "adam_kernel_error": "Adam kernel error"}
# Dots to name, and where the name goes: offset in points from the dot, and which end of the name is there.
NAMED = {
    "ntk-match": (8, -4, "left"),
    "ntk-match, random tokens": (8, -4, "left"),
    "maintain-ntk-gradient": (8, -4, "left"),
    "maintain-output": (8, -4, "left"),
    "neuron-pruning": (-8, -10, "right"),
    "clustering": (-8, -3, "right"),
    "magnitude": (-8, 5, "right"),
    "ntk-sap": (8, -1, "left"),
    "folded-fusion": (8, -6, "left"),
    "fusion": (8, 4, "left"),
    "random-neurons": (8, -3, "left"),
    "svd": (8, -4, "left"),
    "mmd": (8, -4, "left"),
    "sketch": (-8, -4, "right"),
}


def draw_errors(means: dict[str, dict[str, float]], path: Path) -> None:
    """Draws the means over the layers, method -> error -> number, both axes logarithmic."""
    from matplotlib.figure import Figure

    highlighted = method_colors(["fusion", "ntk-match"])
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, (right, up, end) in NAMED.items():
        x, y = (means[name][column] for column in ("output_error", "adam_kernel_error"))
        colour = highlighted.get(name.partition(",")[0], "#777777")
        axes.plot(x, y, "o", color=colour, markersize=7)
        axes.annotate(name, (x, y), (right, up), textcoords="offset points", ha=end, color=colour, fontsize=9)
    axes.set(xscale="log", yscale="log", xlim=(0.2, 8), ylim=(0.08, 1.4))
    for axis, ticks in ((axes.xaxis, (0.2, 0.5, 1, 2, 5)), (axes.yaxis, (0.1, 0.2, 0.5, 1))):
        axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_ticks([], minor=True)
    axes.set_xlabel("output error, mean over six layers")
    axes.set_ylabel("Adam kernel error")
    axes.set_title("ntk-match is nearest to the original, in output and in how it trains", fontsize=11, loc="left")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    figure.savefig(path, dpi=130, metadata={"Software": None})


def labelled_rows(records: dict[str, str]) -> list[dict[str, Any]]:
    """The rows of several records, the labels of the calibrated methods of each with its suffix."""
    calibrated = {method_name(kind) for kind in CALIBRATED}
    return [
        row | {"label": row["label"] + suffix * (row["method"] in calibrated)}
        for name, suffix in records.items()
        for row in read_result(name)["rows"]
    ]


def comparison() -> dict[str, Any]:
    """The rows of all comparisons on MiniLM as one record."""
    return {"rows": labelled_rows(COMPARISONS)}


def errors(column: str) -> Callable[[], str]:
    """Method x layer, mean and standard deviation over the seeds, of one number of the comparison."""
    return lambda: comparison_table(comparison(), column)


def llama_errors(column: str) -> Callable[[], str]:
    """The same for the tiny Llama."""
    return lambda: comparison_table(read_result("stories260k_comparison"), column)


def means_over_layers() -> dict[str, dict[str, float]]:
    """Method -> error -> its mean over the layers and seeds of the comparison on MiniLM, the best output first."""
    rows = comparison()["rows"]
    found: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(row["label"] for row in rows):
        own = [row["error"] for row in rows if row["label"] == name]
        found[name] = {column: statistics.mean(error[column] for error in own) for column in ERRORS}
    return dict(sorted(found.items(), key=lambda item: item[1]["output_error"]))


def mean_errors() -> str:
    """Method x error, mean over the layers and seeds, and the same over that of Fusion."""
    found = means_over_layers()
    lines = [
        [name, *(f"{means[column]:.3f} ({means[column] / found['fusion'][column]:.2f}x)" for column in ERRORS)]
        for name, means in found.items()
    ]
    return markdown(["method, mean over the six layers", *ERRORS.values()], lines)
