"""Draws a comparison (paper, Figure 1): output and Adam kernel error by method."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlpfusion.extras import CHARTS
from mlpfusion.report.comparison import (
    COLUMNS,
    ErrorColumn,
    LabelledRow,
    comparison_markdown,
    labelled_rows,
    labels_of,
    over_seeds,
    paths_of,
)
from mlpfusion.report.numbers import deviation

COMPARISON_FILES = ("comparison.json", "comparison.md", "comparison.png")
_PANELS = (COLUMNS["output_error"], COLUMNS["adam_kernel_error"])
_WIDTH, _FRAME = 10.0, 1.4  # inches; the frame is titles, axes and the legend
_ROW, _DOT = 0.12, 0.034  # inches of a method, and more per layer: 16 methods x 6 layers fit a screen of 800 pixels
_LEAST_ROW = 0.28  # inches: a dot and the number above
_DPI = 120


def chart_note(name: str) -> str:
    """One line about a missing matplotlib; empty if installed."""
    missing = CHARTS.missing()
    return f"{name} was not drawn, that needs {missing}: {CHARTS.install}\n" if missing else ""


def write_comparison(record: dict[str, Any], folder: Path) -> None:
    """Writes comparison.md and, where matplotlib is installed, comparison.png into `folder`."""
    _, text, chart = COMPARISON_FILES
    (folder / text).write_text(comparison_markdown(record), encoding="utf-8")
    write_chart(record, folder / chart)


def write_chart(record: dict[str, Any], path: Path) -> list[Path]:
    """Writes the chart to `path`; returns [] without matplotlib.

    Dots are means over the seeds, one per layer; lines reach one standard deviation to both sides.
    The best method is on top. Methods lie a factor of fifty apart, so the axes are logarithmic.
    """
    if CHARTS.missing():
        return []
    from matplotlib.figure import Figure

    rows = labelled_rows(record)
    paths = paths_of(rows)
    labels = _best_first(rows, _PANELS[0])
    height = _FRAME + len(labels) * max(_LEAST_ROW, _ROW + _DOT * len(paths))
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    panels = figure.subplots(1, len(_PANELS), sharey=True)
    for axes, column in zip(panels, _PANELS, strict=True):
        _draw(axes, rows, labels, paths, column)
        axes.set_xlabel(column.title)
        axes.set_title(f"smallest on average: {_best_first(rows, column)[0]}", fontsize=11, loc="left")
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    if len(paths) > 1:
        handles = panels[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=min(6, len(paths)), fontsize=8, frameon=False)
    else:
        figure.suptitle(f"{record.get('model', '')} {paths[0]}".strip(), fontsize=11)
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})  # the same bytes from the same record
    return [path]


def _best_first(rows: Sequence[LabelledRow], column: ErrorColumn) -> list[str]:
    """Labels sorted by the mean of `column` over layers and seeds."""
    means = {
        label: statistics.mean(column.read(row.error) for row in rows if row.label == label)
        for label in labels_of(rows)
    }
    return sorted(means, key=lambda label: means[label])


def _draw(
    axes: Any, rows: Sequence[LabelledRow], labels: Sequence[str], paths: Sequence[str], column: ErrorColumn
) -> None:
    from matplotlib import colormaps

    shades = colormaps["viridis"]([0.9 * index / max(1, len(paths) - 1) for index in range(len(paths))])
    edges: list[float] = []
    for index, path in enumerate(paths):
        of_methods = [over_seeds(rows, label, path, column) for label in labels]
        means, spreads = [statistics.mean(seeds) for seeds in of_methods], [deviation(seeds) for seeds in of_methods]
        # Layers of a method lie below each other within the middle 70 % of its row, so that no dot hides another.
        places = [row + 0.7 * ((index + 0.5) / len(paths) - 0.5) for row in range(len(labels))]
        axes.errorbar(
            means, places, xerr=spreads, fmt="o", markersize=3.5, color=shades[index], label=path, elinewidth=1
        )
        if len(paths) == 1:
            for mean, place in zip(means, places, strict=True):
                axes.annotate(f"{mean:.2f}", (mean, place), (0, 5), textcoords="offset points", ha="center", fontsize=8)
        edges += [mean + side * spread for mean, spread in zip(means, spreads, strict=True) for side in (0, 1)]
    for row in range(0, len(labels), 2):  # every other row is shaded, to lead the eye from the name to its dots
        axes.axhspan(row - 0.5, row + 0.5, color="0.95", zorder=0)
    _set_log_axis(axes, [edge for edge in edges if 0 < edge < math.inf])


def _set_log_axis(axes: Any, edges: Sequence[float]) -> None:
    """Sets a logarithmic axis around all dots, ticks at 1, 2, 5, 10, .."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

    if not edges:  # all errors are zero, which has no logarithm
        return
    axes.set_xscale("log")
    margin = 1.25 * (max(edges) / min(edges)) ** 0.03  # room for half a dot, and for the numbers beside one layer's
    axes.set_xlim(min(edges) / margin, max(edges) * margin)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", linewidth=0.4)
    axes.set_axisbelow(True)
