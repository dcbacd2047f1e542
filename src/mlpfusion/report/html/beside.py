"""The files for people beside a record."""

from pathlib import Path

from mlpfusion.record import Record
from mlpfusion.report.card import model_card


def about_compressed(record: Record, source: Path) -> dict[str, str]:
    """The model card of a compressed checkpoint."""
    return {"README.md": model_card(record, source)}
