"""The chart of an experiment, from its record alone."""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlpfusion.extras import CHARTS
from mlpfusion.report.grid.columns import Row, ScoreColumn, columns, labels
from mlpfusion.report.grid.recovery import recovery, recovery_columns
from mlpfusion.report.grid.tables import mean_losses
from mlpfusion.report.numbers import FULL, deviation, method_colors


def write_experiment_chart(record: Row, path: Path) -> list[Path]:
    """Writes the chart of kind `record["chart"]` to `path`; returns [] without matplotlib.

    One panel per task, of scores and recovery also per layers and ratio. Error bars and bands are sample standard
    deviations over the seeds.
    """
    if CHARTS.missing():
        return []
    from matplotlib.figure import Figure

    panels = _panels(record)
    of_scores = record["chart"] == "scores"
    height = 1.6 + 0.32 * len(labels(record)) if of_scores else 4.6
    figure = Figure(figsize=(max(6.5, 4.6 * len(panels)), height), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False, sharey="row" if of_scores else "none")[0]
    draw = {"scores": _scores, "training_loss": _losses, "recovery": _recovery}.get(record["chart"], _lines)
    for axes, (title, panel) in zip(all_axes, panels.items(), strict=True):
        draw(axes, record, panel)
        axes.set_title(title, fontsize=11)
        axes.grid(linewidth=0.3, axis="both")
    if not of_scores:
        handles = {
            label: handle for axes in all_axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=2 + len(panels), fontsize=8)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return [path]


def _panels(record: Row) -> dict[str, list[ScoreColumn]]:
    """Groups columns by panel: split of a task, for scores and recovery also layers and ratio."""
    panels: dict[str, list[ScoreColumn]] = {}
    of_recovery = record["chart"] == "recovery"
    for column in recovery_columns(record) if of_recovery else columns(record):
        is_own = of_recovery or record["chart"] == "scores"
        place = column if is_own else replace(column, layers=None, keep_ratio=None)
        panels.setdefault(place.title(), []).append(column)
    return panels


def _scores(axes: Any, record: Row, panel: Sequence[ScoreColumn]) -> None:
    """Draws one dot per method, and a line at the full model's score."""
    (column,) = panel
    names = [label for label in labels(record) if column.scores(record, label)]
    scores = [column.scores(record, label) for label in names]
    means, deviations = [statistics.mean(values) for values in scores], [deviation(values) for values in scores]
    axes.errorbar(means, range(len(names)), xerr=deviations, fmt="o", color="#0072B2", capsize=3)
    if FULL in names:
        axes.axvline(means[names.index(FULL)], color="black", linewidth=1.0, linestyle="--", zorder=0)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.1)
    axes.set_xlabel(column.unit)


def _lines(axes: Any, record: Row, panel: Sequence[ScoreColumn]) -> None:
    """Draws scores over the layers or the ratio."""
    over_layers, colors = record["chart"] == "layers", method_colors(labels(record))
    for label in (name for name in labels(record) if name != FULL):
        finished = [column for column in panel if column.scores(record, label)]
        scores = [column.scores(record, label) for column in finished]
        places = [column.layers if over_layers else 100 * (column.keep_ratio or 0) for column in finished]
        means, deviations = [statistics.mean(values) for values in scores], [deviation(values) for values in scores]
        axes.errorbar(places, means, deviations, color=colors[label], marker="o", capsize=3, label=label)
    full = panel[0].scores(record, FULL)
    if full:
        axes.axhline(statistics.mean(full), color="black", linewidth=1.2, linestyle="--", label=FULL)
    axes.set_xlabel("compressed layers" if over_layers else "share of the MLP kept, percent")
    axes.set_ylabel(panel[0].unit)


def _recovery(axes: Any, record: Row, panel: Sequence[ScoreColumn]) -> None:
    """Draws mean scores over the steps, each in a band of one deviation; the full model above all others."""
    (column,) = panel
    colors = method_colors(labels(record))
    for label in labels(record):
        curve = recovery(record, label, column)
        if not curve:
            continue
        width, order = (2.0, 3) if label == FULL else (1.4, 2)
        draw_band(axes, curve, colors[label], linewidth=width, label=label, zorder=order)
    axes.set_xlabel("training steps")
    axes.set_ylabel(column.unit)


def draw_band(axes: Any, curve: Sequence[tuple[int, Sequence[float]]], color: str, **line: Any) -> list[float]:
    """Draws the mean over the seeds of a `recovery`, in a band of one sample deviation; returns the means.

    `line` are arguments of matplotlib's `plot`.
    """
    steps, means = [step for step, _ in curve], [statistics.mean(scores) for _, scores in curve]
    spread = [deviation(scores) for _, scores in curve]
    low, high = ([mean + sign * one for mean, one in zip(means, spread, strict=True)] for sign in (-1, 1))
    axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
    axes.plot(steps, means, color=color, **line)
    return means


def _losses(axes: Any, record: Row, panel: Sequence[ScoreColumn]) -> None:
    """Draws mean training losses, one curve per method and column."""
    curves = [(FULL, panel[0])] if FULL in labels(record) else []
    curves += [(label, column) for label in labels(record) if label != FULL for column in panel]
    names = {curve: _curve_name(*curve, alone=len(panel) == 1) for curve in curves}
    colors = method_colors(list(names.values()))
    for label, column in curves:
        losses = mean_losses(record, label, column)
        if losses:
            name = names[label, column]
            axes.plot(*zip(*losses, strict=True), color=colors[name], linewidth=1.6, label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("training loss")


def _curve_name(label: str, column: ScoreColumn, *, alone: bool) -> str:
    if label == FULL or alone:
        return label
    layers = "" if column.layers is None else f"layers {column.layers} "
    return f"{label} {layers}" + ("" if column.keep_ratio is None else f"at {100 * column.keep_ratio:.4g} %")
