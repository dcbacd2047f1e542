"""The part of the page on training dynamics, as `dynamics` makes it."""

import statistics
from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element

from mlpfusion.report.dynamics import (
    FIRST,
    SMOOTHED,
    curves,
    dynamics_settings,
    dynamics_tables,
    first_steps,
    methods_of,
)
from mlpfusion.report.html.blocks import code, figure, figures, paragraph, section, table, versions_table
from mlpfusion.report.html.charts import Curve, curve_chart
from mlpfusion.report.html.measured.records import Dynamics
from mlpfusion.report.numbers import FULL, trailing_means


def dynamics_title(found: Dynamics) -> str:
    """Title of the part."""
    return f"How {found.record['model']} and its cut forms train on {found.record['task']}"


def dynamics_sections(found: Dynamics) -> list[Element]:
    """Content of the part: settings, curves, tables."""
    record = found.record
    command = "mlpfusion dynamics MODEL --task NAME --out DIR"
    return [
        section("What was run", paragraph(dynamics_settings(record))),
        section("Curves", figures(_distances(record), _losses(record)), *map(table, dynamics_tables(record))),
        section("How it was made", code(command), versions_table(record["versions"])),
    ]


def _distances(record: dict[str, Any]) -> Element:
    early = {name: statistics.mean(first_steps(record, name)) for name in methods_of(record)}
    nearest = min(early, key=lambda name: early[name])
    lines = [
        Curve(name, _points(record["measured_at"], curves(record, name, "distance")), _style(name, nearest))
        for name in early
    ]
    told = [f"{name} {mean:.3f} on average up to step {FIRST}" for name, mean in early.items()]
    title = "Distance from the full model's change of the logits"
    return figure(title, curve_chart(title, lines, told), "by step, mean over the seeds", _legend(lines, nearest))


def _losses(record: dict[str, Any]) -> Element:
    early = {name: statistics.mean(first_steps(record, name)) for name in methods_of(record)}
    nearest, lines = min(early, key=lambda name: early[name]), []
    for name in (*early, FULL):
        smooth = [trailing_means(one, SMOOTHED) for one in curves(record, name, "training_loss")]
        lines.append(Curve(name, _points(range(1, len(smooth[0]) + 1), smooth), _style(name, nearest)))
    told = [f"{line.label} ends at {line.points[-1][1]:.3g}" for line in lines]
    note = f"by step, mean of the last {SMOOTHED} batches and over the seeds"
    return figure("Training loss", curve_chart("Training loss", lines, told), note, _legend(lines, nearest))


def _points(steps: Sequence[int], seeds: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    return list(zip(steps, map(statistics.mean, zip(*seeds, strict=True)), strict=True))


def _style(label: str, nearest: str) -> str:
    if label == FULL:
        return "full"
    return "main" if label == nearest else "thin"


def _legend(lines: Sequence[Curve], nearest: str) -> list[Curve]:
    """The full model, the nearest method, and one line for all others."""
    named = {FULL: FULL, nearest: f"{nearest} (nearest up to step {FIRST})"}
    legend = [Curve(named[line.label], (), line.style) for line in lines if line.label in named]
    return legend + ([Curve("the others", (), "thin")] if len(lines) > len(legend) else [])
