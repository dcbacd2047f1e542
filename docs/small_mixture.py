"""The record of benchmarks/experts.py as tables."""

from statistics import mean, median
from typing import Any

from page import markdown

TITLES = {
    "ntk-match refit=False refine_epochs=0 match=none": "ntk-match, choice alone",
    "ntk-match refine_epochs=0 match=none": "ntk-match, refit alone",
    "ntk-match match=none": "ntk-match, refit and refinement",
}
WHOLE = "experts"  # in the names of what drops or merges whole ones


def mixture_table(record: dict[str, Any]) -> str:
    """Method x share of the experts' parameters: how far the loss rises, the best at a half first; medians of seeds."""
    sizes = sorted({row["keep"] for row in record["rows"]}, reverse=True)
    original = mean(record["loss"].values())
    rises: dict[tuple[str, str], dict[float, list[float]]] = {}
    agreement: dict[tuple[str, str], list[float]] = {}
    for row in record["rows"]:
        start = TITLES.get(row["method"], row["method"]), "yes" if row["sees_text"] else "no"
        rises.setdefault(start, {}).setdefault(row["keep"], []).append(mean(row["loss"].values()) - original)
        if row["keep"] == 0.5 and row["router_agreement"] is not None:
            agreement.setdefault(start, []).append(row["router_agreement"])
    order = sorted(rises, key=lambda start: median(rises[start][0.5]))
    rows = [
        [
            *start,
            *(f"+{median(rises[start][size]):.3f}" for size in sizes),
            f"{100 * median(agreement[start]):.0f} %" if start in agreement else "-",
        ]
        for start in order
    ]
    head = ["small mixture", "sees text", *(f"{100 * size:.0f} %" for size in sizes), "same experts at 50 %"]
    return markdown(head, rows)


def mixture_experts(record: dict[str, Any]) -> str:
    """How far apart the experts are and how evenly they are used, and the loss by kind of text."""
    names = {
        "distance": "distance of two experts' matrices, 1.41 for unrelated ones",
        "cosine": "cosine of two experts' outputs",
        "load_entropy": "evenness of use, 1 for all alike",
        "kind_distance": "largest difference in use between two kinds of text, 1 for none in common",
    }
    rows = [[title, f"{record['experts'][name]:.2f}"] for name, title in names.items()]
    rows += [[f"loss of the original, {kind}", f"{loss:.3f}"] for kind, loss in record["loss"].items()]
    return markdown(["the small mixture", ""], rows)
