"""The part of the page on a grid of runs, as `reproduce` makes it."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from mlpfusion.data.tasks import find_task, merit
from mlpfusion.report.grid.columns import ScoreColumn, columns, labels
from mlpfusion.report.grid.recovery import recovery, recovery_columns
from mlpfusion.report.grid.tables import diverged_runs, mean_losses, settings_words, tables
from mlpfusion.report.html.blocks import code, figure, figures, paragraph, section, table, versions_table
from mlpfusion.report.html.charts import Bar, Curve, curve_chart, dot_chart
from mlpfusion.report.html.commands import reproduce_command
from mlpfusion.report.numbers import FULL, deviation, score_with_deviation

_BEST, _OTHERS = "best mean score", "the others"


def grid_title(record: dict[str, Any]) -> str:
    """Title of the part."""
    return record["title"] or record["name"]


def grid_sections(record: dict[str, Any]) -> list[Element]:
    """Content of the part: settings, scores, tables, curves, and the command."""
    failed = [paragraph(f"Diverged: {line}", note=True) for line in diverged_runs(record)]
    scored = [column for column in columns(record) if any(column.scores(record, label) for label in labels(record))]
    curved = [column for column in recovery_columns(record) if column in scored]
    return [
        section(
            "What was run",
            *([paragraph(record["description"])] if record["description"] else []),
            paragraph(settings_words(record)),
            *failed,
        ),
        section("Scores", figures(*(_scores(record, column) for column in scored)), *map(table, tables(record))),
        *([section("Recovery", figures(*(_recovery(record, column) for column in curved)))] if curved else []),
        section("Training", figures(*(_losses(record, column) for column in scored))),
        section("How it was made", code(reproduce_command(record)), versions_table(_versions(record))),
    ]


def _scores(record: dict[str, Any], column: ScoreColumn) -> Element:
    """One dot a method, and a line at the full model's score."""
    named = [label for label in labels(record) if column.scores(record, label)]
    bars, guide = [], None
    for label in named:
        scores = column.scores(record, label)
        bar = Bar(label, statistics.mean(scores), score_with_deviation(scores), deviation(scores), label != FULL)
        bars.append(bar)
        guide = bar.value if label == FULL else guide
    note = f"{column.unit}: mean and standard deviation over the seeds"
    note += "" if guide is None else "; the broken line is the full model"
    return figure(column.title(), dot_chart(column.title(), bars, guide), note)


def _recovery(record: dict[str, Any], column: ScoreColumn) -> Element:
    """The mean score of every method by step; the full model and the best stand out."""
    curves = {
        label: [(step, statistics.mean(scores)) for step, scores in recovery(record, label, column)]
        for label in labels(record)
    }
    return _curves(record, column, f"Scores while training, {column.title()}", f"{column.unit}, by step", curves)


def _losses(record: dict[str, Any], column: ScoreColumn) -> Element:
    """The mean training loss of every method; the full model and the best stand out."""
    curves = {label: mean_losses(record, label, column) for label in labels(record)}
    return _curves(record, column, f"Training loss, {column.title()}", "by step, smoothed", curves)


def _curves(
    record: dict[str, Any],
    column: ScoreColumn,
    title: str,
    note: str,
    points: Mapping[str, Sequence[tuple[int, float]]],
) -> Element:
    """One curve a method with a score, means over the seeds; the full model and the best score stand out."""
    named = [label for label in labels(record) if column.scores(record, label)]
    best = _best([label for label in named if label != FULL], record, column)
    curves = [Curve(label, points[label], _style(label, best)) for label in named]
    curves.sort(key=lambda curve: ("thin", "full", "main").index(curve.style))
    told = [f"{curve.label} ends at {curve.points[-1][1]:.3g}" for curve in curves if curve.points]
    names = {FULL: FULL, best: f"{best} ({_BEST})"}
    legend = [
        Curve(names[curve.label], curve.points, curve.style) for curve in reversed(curves) if curve.label in names
    ]
    if len(curves) > len(legend):
        legend.append(Curve(_OTHERS, (), "thin"))
    return figure(title, curve_chart(title, curves, told), f"{note}, mean over the seeds", legend)


def _best(named: Sequence[str], record: dict[str, Any], column: ScoreColumn) -> str | None:
    """The method with the best mean score; None without any."""
    metric = find_task(column.task).headline
    means = {label: merit(metric, statistics.mean(column.scores(record, label))) for label in named}
    return max(means, key=lambda label: means[label]) if means else None


def _style(label: str, best: str | None) -> str:
    if label == FULL:
        return "full"
    return "main" if label == best else "thin"


def _versions(record: dict[str, Any]) -> dict[str, str]:
    """The versions of every package over all runs."""
    names = dict.fromkeys(name for row in record["rows"] for name in row["versions"])
    return {
        name: ", ".join(dict.fromkeys(row["versions"][name] for row in record["rows"] if name in row["versions"]))
        for name in names
    }
