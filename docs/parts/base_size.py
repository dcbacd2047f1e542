"""What the curves of recovery at base size say of the paper's claims, seed by seed."""

import statistics
from pathlib import Path
from typing import Any

from mlpfusion.report.grid.chart import draw_band
from mlpfusion.report.grid.columns import ScoreColumn, labels
from mlpfusion.report.grid.recovery import recovery, recovery_columns, recovery_tables
from mlpfusion.report.grid.tables import shares
from mlpfusion.report.numbers import FULL, method_colors
from parts.verdict import CLAIMS, judge, judge_difference

FUSION = "fusion"
_LAYERS, _NEAR = 12, 1.5  # layers of MPNet; points in which two names do not fit
# Pairs of rows that differ in what is asked: label, label, question.
PAIRS = (
    (FUSION, "clustering", "P beside the weights over its root in them"),
    (FUSION, "folded-fusion", "P beside the weights over P in them"),
    ("ntk-match", FUSION, "neurons fitted to text over centroids"),
)


def base_size_tables(record: dict[str, Any]) -> str:
    """For every cut: the scores after some steps, and when the full model's last score is nearly reached."""
    return "\n\n".join(f"{table.caption}:\n\n{table.markdown()}" for table in recovery_tables(record))


def base_size_claims(record: dict[str, Any]) -> str:
    """The share of the score, what P does, and what more layers and fewer neurons cost."""
    cuts = recovery_columns(record)
    lines = []
    for cut in cuts:
        lines.append(f"fusion, {cut.title()}: {judge(shares(record, FUSION, cut), *CLAIMS[FUSION])}")
    for first, second, question in PAIRS:
        for cut in cuts:
            one, other = (heights(record, label, cut) for label in (first, second))
            found = [a - b for a, b in zip(one, other, strict=True)]
            lines.append(f"{question}, {cut.title()}, mean over the steps: {judge_difference(found)}")
    return "\n".join(f"- {line}" for line in lines)


def draw_base_size(record: dict[str, Any], path: Path) -> None:
    """Draws the curves of every cut with a band of one standard deviation, each named at its end."""
    from matplotlib.figure import Figure

    cuts, colors = recovery_columns(record), method_colors(labels(record))
    figure = Figure(figsize=(5.6 * len(cuts), 4.6), layout="constrained")
    panels = figure.subplots(1, len(cuts), sharey=True, squeeze=False)[0]
    for axes, cut in zip(panels, cuts, strict=True):
        ends: dict[str, float] = {}
        steps = [step for step, _ in recovery(record, FULL, cut)]
        for label in labels(record):
            width = 2.4 if label in (FULL, "ntk-match") else 1.4
            ends[label] = draw_band(axes, recovery(record, label, cut), colors[label], linewidth=width)[-1]
        for names, height in _apart(ends):
            axes.annotate(", ".join(names), (steps[-1], height), (6, 0), textcoords="offset points", va="center")
        axes.set_title(f"all {_LAYERS} layers at {100 * (cut.keep_ratio or 1):.4g} % of their neurons", loc="left")
        axes.set_xlim(steps[0], steps[-1] * 1.75)  # room for the names
        axes.set_xticks(steps[:-1])
        axes.set_xlabel("training steps after the cut")
        axes.grid(linewidth=0.3)
    panels[0].set_ylabel("accuracy on SST-2, percent (chance: 50.9)")
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _apart(ends: dict[str, float]) -> list[tuple[list[str], float]]:
    """Names whose curves end within a point and a half of each other share one place."""
    groups: list[tuple[list[str], float]] = []
    for name, height in sorted(ends.items(), key=lambda end: end[1]):
        if groups and height - groups[-1][1] < _NEAR:
            groups[-1][0].append(name)
        else:
            groups.append(([name], height))
    return groups


def heights(record: dict[str, Any], label: str, cut: ScoreColumn) -> list[float]:
    """The mean of a curve over its steps, seed by seed: the higher, the sooner it rises."""
    scores = [seeds for _, seeds in recovery(record, label, cut)]
    return [statistics.mean(one) for one in zip(*scores, strict=True)]
