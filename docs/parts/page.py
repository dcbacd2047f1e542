"""What the generators of the documents share."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlpfusion.report.numbers import markdown_table

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"
MINILM = "all-MiniLM-L6-v2, last 4 of 6 layers"


def read_result(name: str) -> dict[str, Any]:
    """The record of a benchmark."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of a header and rows."""
    return markdown_table([header, ["---"] * len(header), *rows])
