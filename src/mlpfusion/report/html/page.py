"""Records as one HTML page."""

from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any
from xml.etree.ElementTree import Element

from mlpfusion.export.run import ExportRecord
from mlpfusion.measure.evaluation.harness import HarnessEvaluation
from mlpfusion.measure.evaluation.task import TaskEvaluation
from mlpfusion.measure.evaluation.text import Evaluation
from mlpfusion.record import Record
from mlpfusion.report.html.compression import compression_sections, compression_title
from mlpfusion.report.html.element import element, html
from mlpfusion.report.html.grids import grid_sections, grid_title
from mlpfusion.report.html.measured.comparison import comparison_sections, comparison_title
from mlpfusion.report.html.measured.dynamics import dynamics_sections, dynamics_title
from mlpfusion.report.html.measured.evaluation import evaluation_sections, evaluation_title
from mlpfusion.report.html.measured.export import export_sections, export_title
from mlpfusion.report.html.measured.records import Comparison, Dynamics
from mlpfusion.report.html.records import AnyRecord
from mlpfusion.report.html.tuning import (
    distillation_sections,
    distillation_title,
    side_by_side,
    tuning_sections,
    tuning_title,
)
from mlpfusion.tune.record import DistillRecord, TuneRecord

# How every report begins, by which one is known that may be replaced.
HEAD = "<!doctype html>\n<!-- a report of mlpfusion -->\n"
# The browser itself sees to it that nothing is loaded and no script is run.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

# Record -> title and content of its part.
_PARTS: dict[type, tuple[Callable[[Any], str], Callable[[Any], list[Element]]]] = {
    Record: (compression_title, compression_sections),
    TuneRecord: (tuning_title, tuning_sections),
    DistillRecord: (distillation_title, distillation_sections),
    ExportRecord: (export_title, export_sections),
    Comparison: (comparison_title, comparison_sections),
    Dynamics: (dynamics_title, dynamics_sections),
    Evaluation: (evaluation_title, evaluation_sections),
    TaskEvaluation: (evaluation_title, evaluation_sections),
    HarnessEvaluation: (evaluation_title, evaluation_sections),
    dict: (grid_title, grid_sections),
}


def report(records: Sequence[AnyRecord]) -> str:
    """The page of all records, the same bytes for the same records."""
    parts = [_part(record) for record in records]
    alone = len(parts) == 1
    title = parts[0][0] if alone else f"{len(parts)} runs of mlpfusion"
    body = [element("h1", title), *side_by_side([record for record in records if isinstance(record, TuneRecord)])]
    for name, sections in parts:
        body.append(element("section", *([] if alone else [element("h2", name)]), *sections))
    return HEAD + html(_document(title, body))


def _part(record: AnyRecord) -> tuple[str, list[Element]]:
    """Title and content of the part on one record."""
    title, sections = _PARTS[type(record)]
    return title(record), sections(record)


def style(name: str) -> str:
    """The text of a style sheet of this folder."""
    return resources.files("mlpfusion.report.html").joinpath(name).read_text(encoding="utf-8")


def _document(title: str, body: Sequence[Element]) -> Element:
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        element("style", style("chart.css") + style("page.css")),
    )
    footer = element("footer", "Made by mlpfusion from the records beside the models. Nothing here was measured anew.")
    return element("html", head, element("body", element("main", *body, footer)), lang="en")
