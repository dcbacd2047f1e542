"""The bar chart of a comparison (paper, Figure 1): every method, its output error and its Adam kernel error."""

import math
import statistics
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlpfusion.report.comparison import values

PANELS = {"output_error": "output error of the MLP, relative", "adam_kernel_error": "Adam kernel error, relative"}
_INCHES = {"width": 10.0, "frame": 1.3, "method": 0.16, "bar": 0.1}


def chart_note(name: str) -> str:
    """A line that says why there is no chart; nothing where matplotlib is installed."""
    if find_spec("matplotlib") is not None:
        return ""
    return f"{name} was not drawn, that needs matplotlib: pip install 'mlpfusion[report]'\n"


def write_chart(record: dict[str, Any], path: Path) -> list[Path]:
    """Writes the chart where matplotlib is installed. Bars are means over the seeds, lines standard deviations.

    A row a method, in it a bar a layer; methods lie a factor of fifty apart, so the axes are logarithmic.
    """
    if find_spec("matplotlib") is None:
        return []
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["label"] for row in record["rows"]))
    paths = list(dict.fromkeys(row["error"]["path"] for row in record["rows"]))
    height = _INCHES["frame"] + len(names) * (_INCHES["method"] + _INCHES["bar"] * len(paths))
    figure = Figure(figsize=(_INCHES["width"], height), layout="constrained")
    panels = figure.subplots(1, len(PANELS), sharey=True)
    for axes, (column, title) in zip(panels, PANELS.items(), strict=True):
        _draw(axes, record, names, paths, column)
        axes.set_xlabel(title)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    if len(paths) > 1:
        handles = panels[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside upper center", ncols=min(6, len(paths)), fontsize=8)
    else:
        figure.suptitle(f"{record.get('model', '')} {paths[0]}".strip(), fontsize=11)
    figure.savefig(path, dpi=120)
    return [path]


def _draw(axes: Any, record: dict[str, Any], names: Sequence[str], paths: Sequence[str], column: str) -> None:
    from matplotlib import colormaps

    thickness = 0.8 / len(paths)
    shades = colormaps["viridis"]([0.2 + 0.7 * index / len(paths) for index in range(len(paths))])
    reached: list[float] = []
    for index, path in enumerate(paths):
        found = [values(record, name, path, column) for name in names]
        places = [row - 0.4 + thickness * (index + 0.5) for row in range(len(names))]
        means = [statistics.mean(of_seeds) for of_seeds in found]
        spread = [statistics.stdev(of_seeds) if len(of_seeds) > 1 else 0.0 for of_seeds in found]
        lines = {"ecolor": "black", "elinewidth": 0.8}
        bars = axes.barh(places, means, height=thickness, xerr=spread, color=shades[index], label=path, error_kw=lines)
        if len(paths) == 1:
            axes.bar_label(bars, [f"{mean:.2f}" for mean in means], padding=4, fontsize=8)
        reached += means + [mean + deviation for mean, deviation in zip(means, spread, strict=True)]
    axes.margins(y=0.01)
    _set_log_axis(axes, [value for value in reached if 0 < value < math.inf])


def _set_log_axis(axes: Any, reached: Sequence[float]) -> None:
    """From a power of ten below all bars, with round numbers for ticks and room for labels."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

    if not reached:  # nothing but zeros has no logarithm
        return
    axes.set_xscale("log")
    left = 10 ** math.floor(math.log10(min(reached)))
    axes.set_xlim(left, max(reached) * (max(reached) / left) ** 0.1)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", linewidth=0.3)
    axes.set_axisbelow(True)
