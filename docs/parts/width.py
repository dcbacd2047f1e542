"""The record of benchmarks/width_limit.py as a table."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from parts.page import markdown

# Fit in the record -> its column.
_FITS = {
    "no refinement": "256 texts, not refined",
    "as it is": "256 texts, as it is",
    "four times the texts, no refinement": "1,024 texts, not refined",
    "four times the texts, 180 steps": "1,024 texts, 180 steps",
    "four times the texts": "1,024 texts, as it is",
    "32 times the texts, 180 steps": "8,192 texts, 180 steps",
    "2,000 steps": "8,192 texts, 2,000 steps",
}
_LIMIT = "limit"


def width_limit_table(record: Mapping[str, Any]) -> str:
    """Layer x fit: the limit of the width, and every fit as a multiple of it; below them processor seconds."""
    lines = []
    for model in dict.fromkeys(row["model"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["model"] == model]
        layers = list(dict.fromkeys(row["layer"] for row in rows))
        shares = {fit: [_share(rows, layer, fit) for layer in layers] for fit in _FITS}
        for number, layer in enumerate(layers):
            found = (f"{shares[fit][number]:.2f}" for fit in _FITS)
            lines.append([f"{model}, {layer}", f"{_error(rows, layer, _LIMIT):.3f}", *found])
        limit = statistics.mean(_error(rows, layer, _LIMIT) for layer in layers)
        lines.append([f"{model}, mean", f"{limit:.3f}", *(f"{statistics.mean(shares[fit]):.2f}" for fit in _FITS)])
        for title, field in (("a fit", "seconds"), ("the pass over the texts", "pass_seconds")):
            seconds = (f"{_seconds(rows, fit, field):.0f}" for fit in (_LIMIT, *_FITS))
            lines.append([f"{model}, seconds of {title}", *seconds])
    return markdown(["layer", "limit", *_FITS.values()], lines)


def _error(rows: Sequence[Mapping[str, Any]], layer: int, fit: str) -> float:
    """Mean over the seeds."""
    return statistics.mean(row["error"] for row in rows if (row["layer"], row["fit"]) == (layer, fit))


def _share(rows: Sequence[Mapping[str, Any]], layer: int, fit: str) -> float:
    return _error(rows, layer, fit) / _error(rows, layer, _LIMIT)


def _seconds(rows: Sequence[Mapping[str, Any]], fit: str, field: str) -> float:
    """Median over layers and seeds."""
    return statistics.median(row[field] for row in rows if row["fit"] == fit)
