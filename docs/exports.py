"""The record of benchmarks/exports.py as a table."""

from collections.abc import Mapping
from typing import Any

from page import markdown


def exports_table(record: Mapping[str, Any]) -> str:
    """Model, cut and target x what came out: bytes, seconds, how near the outputs are, or why there is none."""
    rows = []
    for row in record["rows"]:
        target = row["target"] + ("" if row["pad"] is None else f" --pad-to {row['pad']}")
        start = [row["model"], row["case"], target]
        if "refused" in row:
            reason = row["refused"].partition("model, ")[2].removeprefix("but ")
            rows.append([*start, "", "", f"refused: {reason}"])
            continue
        padding = f", {100 * row['padding'] / row['parameters']:.0f} % of it zeros" if row["padding"] else ""
        size = f"{row['bytes'] / 1e6:.1f} MB{padding}"
        difference = f"{row['difference']:.0e}".removesuffix("e+00") + f" ({row['engine']}, {row['dtype']})"
        rows.append([*start, size, f"{row['seconds']:.0f}", difference])
    return markdown(["model", "cut", "`--to`", "size", "seconds", "difference of the outputs"], rows)
