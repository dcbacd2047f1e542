"""The chart of the README: output error and Adam kernel error of every method, one dot a method."""

from pathlib import Path

from mlpfusion.report.numbers import method_colors

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
