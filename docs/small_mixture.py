"""The record of benchmarks/experts.py as tables."""

from pathlib import Path
from statistics import mean, median
from typing import Any

from page import markdown

from mlpfusion.report.numbers import method_colors

TITLES = {
    "ntk-match refit=False refine_epochs=0 match=none": "ntk-match, choice alone",
    "ntk-match refine_epochs=0 match=none": "ntk-match, refit alone",
    "ntk-match match=none": "ntk-match, refit and refinement",
}


Start = tuple[str, str]  # title of a method, whether it sees text


def _start(row: dict[str, Any]) -> Start:
    return TITLES.get(row["method"], row["method"]), "yes" if row["sees_text"] else "no"


def rises(record: dict[str, Any]) -> dict[Start, dict[float, float]]:
    """How far the mean loss over the kinds of text rises, by start and share of the experts' parameters; medians."""
    original, found = mean(record["loss"].values()), dict[Start, dict[float, list[float]]]()
    for row in record["rows"]:
        found.setdefault(_start(row), {}).setdefault(row["keep"], []).append(mean(row["loss"].values()) - original)
    return {start: {size: median(values) for size, values in sizes.items()} for start, sizes in found.items()}


def mixture_table(record: dict[str, Any]) -> str:
    """Method x share of the experts' parameters: how far the loss rises, the best at a half first; medians of seeds."""
    found, agreement = rises(record), dict[Start, list[float]]()
    for row in record["rows"]:
        if row["keep"] == 0.5 and row["router_agreement"] is not None:
            agreement.setdefault(_start(row), []).append(row["router_agreement"])
    sizes = sorted(next(iter(found.values())), reverse=True)
    rows = [
        [
            *start,
            *(f"+{found[start][size]:.3f}" for size in sizes),
            f"{100 * median(agreement[start]):.0f} %" if start in agreement else "-",
        ]
        for start in sorted(found, key=lambda start: found[start][0.5])
    ]
    head = ["small mixture", "sees text", *(f"{100 * size:.0f} %" for size in sizes), "same experts at 50 %"]
    return markdown(head, rows)


def draw_mixture(record: dict[str, Any], path: Path) -> None:
    """Draws the rise of the loss against the share that is kept; whole experts in black, without text dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes, found = figure.subplots(), rises(record)
    colors = method_colors(list(dict.fromkeys(name.partition(",")[0] for name, _ in found)))
    markers = iter("os^")
    for (name, sees_text), sizes in sorted(found.items(), key=lambda item: item[1][0.5]):
        shares, values = zip(*sorted(sizes.items()), strict=True)
        method, is_whole = name.partition(",")[0], "experts" in name
        axes.plot(
            [100 * share for share in shares],
            values,
            marker=next(markers) if method == "ntk-match" else "D" if is_whole else "o",
            linestyle="-" if sees_text == "yes" else "--",
            color="black" if is_whole else colors[method],
            alpha=0.6 if name.startswith("merge") else 1,
            markersize=4,
            label=name if sees_text == "yes" else f"{name}, no text",
        )
    axes.set(
        yscale="log", xlim=(80, 20), xlabel="% of the experts' parameters kept", ylabel="rise of the loss, nats a token"
    )
    axes.set_title("a small mixture: narrower experts, or fewer", fontsize=10, loc="left")
    axes.grid(linewidth=0.3)
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    figure.savefig(path, dpi=120, metadata={"Software": None})


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
