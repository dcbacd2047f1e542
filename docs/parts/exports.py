"""The records of benchmarks/exports.py and gguf_perplexity.py as tables."""

from collections.abc import Mapping
from typing import Any

from parts.page import markdown


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
        unit = " nats" if "nats" in row.get("compared", "") else ""
        difference = f"{row['difference']:.0e}".removesuffix("e+00") + f"{unit} ({row['engine']}, {row['dtype']})"
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.0f}"
        rows.append([*start, size, seconds, difference])
    return markdown(["model", "cut", "`--to`", "size", "seconds", "difference of the outputs"], rows)


def gguf_perplexity_table(record: Mapping[str, Any]) -> str:
    """Cut and file x perplexity: in torch, in llama.cpp, and how far the two are apart."""
    rows = []
    for row in record["rows"]:
        file = row["dtype"] + ("" if row["pad"] is None else f", --pad-to {row['pad']}")
        apart = 100 * (row["in_llama_cpp"] / row["in_torch"] - 1)
        numbers = [f"{row['in_torch']:.2f}", f"{row['in_llama_cpp']:.2f}", f"{apart:+.3f} %"]
        rows.append([row["case"], file, f"{row['bytes'] / 1e6:.0f} MB", *numbers])
    return markdown(["cut", "file", "size", "in torch, fp32", "in llama.cpp", "apart"], rows)
