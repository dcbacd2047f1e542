"""The record of `benchmarks/recovery.py` as a table and a chart."""

import math
import statistics
from pathlib import Path
from typing import Any

from mlpfusion.report.numbers import FULL, method_colors
from parts.page import markdown

TUNINGS = {"full": "all weights", "lora": "LoRA"}
SOLID = (FULL, "fusion", "ntk-match")
TICKS = (4, 5, 6, 8, 10, 15, 20, 30, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
Rows = list[dict[str, Any]]


def recovery_table(record: dict[str, Any], model: str) -> str:
    """Start x tuning: steps to recover and the perplexity in the end; the fastest first, within a size."""
    last, header = record["measured_at"][-1], [model, "sees text", "kept", "parameters", "perplexity"]
    for title in TUNINGS.values():
        header += [f"{title}, steps to recover", f"after {last:,}"]
    starts = dict.fromkeys((row["keep_ratio"], row["start"]) for row in record["rows"])
    lines = []
    for keep_ratio, name in sorted(starts, key=lambda start: (-start[0], *_speed(runs(record, "full", *start)))):
        found = {tuning: runs(record, tuning, keep_ratio, name) for tuning in TUNINGS}
        one = next(rows[0] for rows in found.values() if rows)
        cells = [name, "yes" if one["sees_text"] else "no", f"{100 * keep_ratio:.0f} %", f"{one['parameters']:,}"]
        cells.append(f"{one['perplexity'][0]:,.2f}")
        for rows in found.values():
            cells += [_steps_in_words(rows, last), _in_the_end(rows)]
        lines.append(cells)
    return markdown(header, lines)


def runs(record: dict[str, Any], tuning: str, keep_ratio: float, name: str) -> Rows:
    """The runs of one start at the rate of the table, a row a seed."""
    wanted = (tuning, _rate(record, tuning), keep_ratio, name)
    return [row for row in record["rows"] if (row["tuning"], row["rate"], row["keep_ratio"], row["start"]) == wanted]


def _rate(record: dict[str, Any], tuning: str) -> float:
    """The rate of table and chart: that of the first run."""
    return next(row["rate"] for row in record["rows"] if row["tuning"] == tuning)


def draw_recovery(record: dict[str, Any], path: Path) -> None:
    """Draws the curves of the narrowest starts, means over the seeds, both axes logarithmic."""
    from matplotlib.figure import Figure

    narrowest = min(row["keep_ratio"] for row in record["rows"])
    names = list(dict.fromkeys(row["start"] for row in record["rows"] if row["keep_ratio"] == narrowest))
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (tuning, title) in zip(panels, TUNINGS.items(), strict=True):
        for name, color in method_colors([FULL, *names]).items():
            rows = runs(record, tuning, 1.0 if name == FULL else narrowest, name)
            if rows:
                style = "o-" if name in SOLID else "o--"  # many lie on one another
                axes.plot(record["measured_at"], _means(rows), style, color=color, label=name, markersize=4)
        target = record["near"] * record["perplexity"]
        axes.axhline(target, color="black", linestyle=":", linewidth=1, label="recovered: full before training + 10 %")
        axes.set_title(
            f"{title}, rate {_rate(record, tuning):g}, {100 * narrowest:.0f} % of the width", fontsize=10, loc="left"
        )
        axes.set_xscale("symlog", linthresh=10, linscale=0.5)  # step 0 has a place too
        axes.set_xlim(-1, 1.15 * record["measured_at"][-1])
        axes.xaxis.set_ticks(record["measured_at"], [f"{step:,}" for step in record["measured_at"]])
        axes.set_xlabel("optimiser steps")
        axes.grid(linewidth=0.3)
    panels[0].set_yscale("log")
    low, high = panels[0].get_ylim()
    ticks = [tick for tick in TICKS if low <= tick <= high]
    panels[0].yaxis.set_ticks(ticks, [f"{tick:,}" for tick in ticks])
    panels[0].yaxis.set_ticks([], minor=True)
    panels[0].set_ylabel("perplexity on held-out text")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _means(rows: Rows) -> list[float]:
    """The curve of perplexities, a mean over the seeds at every point."""
    return [statistics.geometric_mean(point) for point in zip(*(row["perplexity"] for row in rows), strict=True)]


def _speed(rows: Rows) -> tuple[float, float]:
    """To sort by: mean steps to recover, infinite where a seed did not, and the perplexity in the end."""
    if not rows:
        return math.inf, math.inf
    steps = [row["steps_to_recover"] for row in rows]
    return math.inf if None in steps else statistics.mean(steps), _means(rows)[-1]


def _steps_in_words(rows: Rows, last: int) -> str:
    """Mean and range over the seeds."""
    if not rows:
        return "-"
    if any(row["steps_to_recover"] is None for row in rows):
        return f"not within {last:,}"
    steps = [row["steps_to_recover"] for row in rows]
    spread = f" ({min(steps):.0f} to {max(steps):.0f})" if len(steps) > 1 else ""
    return f"{statistics.mean(steps):.0f}{spread}"


def _in_the_end(rows: Rows) -> str:
    return f"{_means(rows)[-1]:.2f}" if rows else "-"
