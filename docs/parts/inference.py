"""The record of benchmarks/inference.py as tables."""

from collections.abc import Mapping
from typing import Any

from parts.page import markdown

MB = 10**6


def inference_table(record: Mapping[str, Any]) -> str:
    """Model, engine and phase x speed of the full model, of the others over it, and the peaks of memory."""
    lines, forms = [], list(record["rows"][0]["forms"])
    for row in record["rows"]:
        full = row["forms"]["full"]
        ratios = [f"{row['forms'][form]['over_full']:.2f}x" for form in forms[1:]]
        peaks = [f"{row['forms'][form]['peak_bytes'] / MB:,.0f}" for form in (forms[0], forms[-1])]
        start = [row["model"], row["engine"], row["phase"], str(row["batch"])]
        lines.append([*start, f"{row['tokens'] / full['seconds']:,.0f}", *ratios, *peaks])
    head = ["model", "engine", "phase", "texts", "full, tokens/s", *(f"at {form}" for form in forms[1:])]
    return markdown([*head, "peak full, MB", f"at {forms[-1]}"], lines)


def inference_sizes(record: Mapping[str, Any]) -> str:
    """Model and engine x megabytes of the files that it reads."""
    forms = list(record["rows"][0]["forms"])
    sizes = {
        (row["model"], row["engine"]): [f"{row['forms'][form]['bytes'] / MB:,.0f}" for form in forms]
        for row in record["rows"]
    }
    return markdown(["files, MB", "engine", *forms], [[*names, *cells] for names, cells in sizes.items()])
