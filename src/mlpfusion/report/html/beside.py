"""The files for people beside a record: card, chart and page."""

from pathlib import Path
from xml.etree.ElementTree import Element

from mlpfusion.checkpoint.open import Checkpoint
from mlpfusion.record import Record
from mlpfusion.report.card import CHART_FILE, distill_card, model_card, tune_card
from mlpfusion.report.html.charts import standalone
from mlpfusion.report.html.compression import main_chart
from mlpfusion.report.html.element import xml
from mlpfusion.report.html.page import report, style
from mlpfusion.report.html.records import AnyRecord
from mlpfusion.report.html.tuning import distillation_chart, tuning_chart
from mlpfusion.tune.record import DistillRecord, TuneRecord

REPORT_FILE = "report.html"


def about_compressed(record: Record, source: Path, *, with_report: bool = True) -> dict[str, str]:
    """The files for people beside a compressed checkpoint: name -> text."""
    return _files(record, model_card(record, source), main_chart(record), with_report)


def about_tuned(record: TuneRecord, source: Checkpoint, *, with_report: bool = True) -> dict[str, str]:
    """The files for people beside a tuned checkpoint: name -> text."""
    return _files(record, tune_card(record, source.folder, source.origin), tuning_chart(record), with_report)


def about_distilled(record: DistillRecord, source: Checkpoint, *, with_report: bool = True) -> dict[str, str]:
    """The files for people beside a distilled checkpoint: name -> text."""
    return _files(record, distill_card(record, source.folder, source.origin), distillation_chart(record), with_report)


def _files(record: AnyRecord, card: str, chart: Element, with_report: bool) -> dict[str, str]:
    page = {REPORT_FILE: report([record])} if with_report else {}
    return {"README.md": card, CHART_FILE: xml(standalone(chart, style("chart.css"))), **page}
