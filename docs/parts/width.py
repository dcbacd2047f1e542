"""The record of benchmarks/width_limit.py as a table."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from parts.page import markdown

_LIMIT = "limit"


def width_limit_table(record: Mapping[str, Any]) -> str:
    """Layer x fit: the limit of the width, and every fit as a multiple of it; below them processor seconds."""
    fits = [fit for fit in record["fits"] if fit != _LIMIT]
    lines = []
    for model in dict.fromkeys(row["model"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["model"] == model]
        layers = list(dict.fromkeys(row["layer"] for row in rows))
        shares = {fit: [_share(rows, layer, fit) for layer in layers] for fit in fits}
        for number, layer in enumerate(layers):
            found = (f"{shares[fit][number]:.2f}" for fit in fits)
            lines.append([f"{model}, {layer}", f"{_error(rows, layer, _LIMIT):.3f}", *found])
        limit = statistics.mean(_error(rows, layer, _LIMIT) for layer in layers)
        lines.append([f"{model}, mean", f"{limit:.3f}", *(f"{statistics.mean(shares[fit]):.2f}" for fit in fits)])
        for title, field in (("a fit", "seconds"), ("the pass over the texts", "pass_seconds")):
            seconds = (f"{_seconds(rows, fit, field):.0f}" for fit in (_LIMIT, *fits))
            lines.append([f"{model}, seconds of {title}", *seconds])
    return markdown(["layer", "limit", *fits], lines)


def _error(rows: Sequence[Mapping[str, Any]], layer: int, fit: str) -> float:
    """Mean over the seeds."""
    return statistics.mean(row["error"] for row in rows if (row["layer"], row["fit"]) == (layer, fit))


def _share(rows: Sequence[Mapping[str, Any]], layer: int, fit: str) -> float:
    return _error(rows, layer, fit) / _error(rows, layer, _LIMIT)


def _seconds(rows: Sequence[Mapping[str, Any]], fit: str, field: str) -> float:
    """Median over layers and seeds."""
    return statistics.median(row[field] for row in rows if row["fit"] == fit)
