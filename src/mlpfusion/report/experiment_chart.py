"""The chart of an experiment, from its record alone."""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlpfusion.report.experiment import Column, Row, columns, labels
from mlpfusion.report.numbers import FULL

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#7F7F7F", "#8C564B", "#17BECF", "#BCBD22")
_SMOOTHED = 5  # entries of the loss log that a point of the curve is the mean of


def write_experiment_chart(record: Row, path: Path) -> list[Path]:
    """Writes the chart that `record["chart"]` names, one panel a task, where matplotlib is installed.

    Error bars and bands are sample standard deviations over the seeds.
    """
    if find_spec("matplotlib") is None:
        return []
    from matplotlib.figure import Figure

    panels = _panels(record)
    of_scores = record["chart"] == "scores"
    height = 1.6 + 0.32 * len(labels(record)) if of_scores else 4.6
    figure = Figure(figsize=(max(6.5, 4.6 * len(panels)), height), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False, sharey="row" if of_scores else "none")[0]
    draw = {"scores": _scores, "training_loss": _losses}.get(record["chart"], _lines)
    for axes, (title, found) in zip(all_axes, panels.items(), strict=True):
        draw(axes, record, found)
        axes.set_title(title, fontsize=11)
        axes.grid(linewidth=0.3, axis="both")
    if not of_scores:
        handles = {
            label: handle for axes in all_axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=2 + len(panels), fontsize=8)
    figure.savefig(path, dpi=120)
    return [path]


def _panels(record: Row) -> dict[str, list[Column]]:
    """Title -> its columns: a panel a split of a task, for scores also one a place and size."""
    found: dict[str, list[Column]] = {}
    for column in columns(record):
        place = column if record["chart"] == "scores" else replace(column, layers=None, keep_ratio=None)
        found.setdefault(place.title(), []).append(column)
    return found


def _scores(axes: Any, record: Row, found: Sequence[Column]) -> None:
    """A dot a method, and a line where the full model is."""
    (column,) = found
    names = [label for label in labels(record) if column.scores(record, label)]
    scores = [column.scores(record, label) for label in names]
    means, deviations = [statistics.mean(values) for values in scores], [_deviation(values) for values in scores]
    axes.errorbar(means, range(len(names)), xerr=deviations, fmt="o", color=_COLORS[0], capsize=3)
    if FULL in names:
        axes.axvline(means[names.index(FULL)], color="black", linewidth=1.0, linestyle="--", zorder=0)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.1)
    axes.set_xlabel("score, percent")


def _lines(axes: Any, record: Row, found: Sequence[Column]) -> None:
    """Scores over the layers or the ratio."""
    over_layers = record["chart"] == "layers"
    places = [column.layers if over_layers else 100 * (column.keep_ratio or 0) for column in found]
    for index, label in enumerate(name for name in labels(record) if name != FULL):
        scores = [column.scores(record, label) for column in found]
        kept = [number for number, values in enumerate(scores) if values]
        means = [statistics.mean(scores[number]) for number in kept]
        deviations = [_deviation(scores[number]) for number in kept]
        x = [places[number] for number in kept]
        axes.errorbar(x, means, deviations, color=_COLORS[index % len(_COLORS)], marker="o", capsize=3, label=label)
    full = found[0].scores(record, FULL)
    if full:
        axes.axhline(statistics.mean(full), color="black", linewidth=1.2, linestyle="--", label=FULL)
    axes.set_xlabel("compressed layers" if over_layers else "share of the MLP kept, percent")
    axes.set_ylabel("score, percent")


def _losses(axes: Any, record: Row, found: Sequence[Column]) -> None:
    """Training loss over the steps: the mean over the seeds, smoothed; a curve a label and column."""
    curves = [(FULL, found[0])] if FULL in labels(record) else []
    curves += [(label, column) for label in labels(record) if label != FULL for column in found]
    for index, (label, column) in enumerate(curves):
        logs = [row["run"]["training_loss"] for row in column.rows(record, label)]
        if not logs:
            continue
        steps = [step for step, _ in logs[0]]
        means = [statistics.mean(log[number][1] for log in logs) for number in range(min(map(len, logs)))]
        smooth = [statistics.mean(means[max(0, end - _SMOOTHED) : end]) for end in range(1, len(means) + 1)]
        name = label if label == FULL or len(found) == 1 else f"{label} {_place(column)}"
        color = "black" if label == FULL else _COLORS[index % len(_COLORS)]
        axes.plot(steps[: len(smooth)], smooth, color=color, linewidth=1.6, label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("training loss")


def _place(column: Column) -> str:
    layers = "" if column.layers is None else f"layers {column.layers} "
    return layers + ("" if column.keep_ratio is None else f"at {100 * column.keep_ratio:.4g} %")


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
