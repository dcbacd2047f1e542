"""The records of benchmarks/experts.py and benchmarks/experts_tasks.py as tables and a chart."""

from pathlib import Path
from statistics import mean, median
from typing import Any

from mlpfusion.report.numbers import method_colors
from parts.page import markdown, read_result

# Record of a small mixture -> what it is called.
MIXTURES = {"small_moe": "Mixtral, 8 experts of 176", "small_qwen3_moe": "Qwen3-MoE, 16 experts of 64"}
TITLES = {
    "ntk-match refit=False refine_epochs=0 match=none": "ntk-match, choice alone",
    "ntk-match refine_epochs=0 match=none": "ntk-match, refit alone",
    "ntk-match match=none": "ntk-match, refit and refinement",
    "ntk-match refine_epochs=0 match=none, budget": "ntk-match, refit alone, by a budget",
    "fusion, budget": "fusion, by a budget",
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


def mixture_table(record: dict[str, Any], title: str) -> str:
    """Method x share of the experts' parameters: how far the loss rises, the best at a half first; medians of seeds.

    A share that was not measured has a dash.
    """
    found, agreement = rises(record), dict[Start, list[float]]()
    for row in record["rows"]:
        if row["keep"] == 0.5:
            agreement.setdefault(_start(row), []).append(row["router_agreement"])
    sizes = sorted(next(iter(found.values())), reverse=True)
    rows = [
        [
            *start,
            *(f"+{found[start][size]:.3f}" if size in found[start] else "-" for size in sizes),
            f"{100 * median(agreement[start]):.0f} %",
        ]
        for start in sorted(found, key=lambda start: found[start][0.5])
    ]
    head = [title, "sees text", *(f"{100 * size:.0f} %" for size in sizes), "same experts at 50 %"]
    return markdown(head, rows)


def draw_mixtures(records: dict[str, dict[str, Any]], path: Path) -> None:
    """Draws the rise of the loss against the share that is kept, a panel a mixture.

    Whole experts are black, what sees no text is dashed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = figure.subplots(1, len(records), squeeze=False)[0]
    for axes, (title, record) in zip(panels, records.items(), strict=True):
        _draw(axes, rises(record))
        axes.set_title(title, fontsize=10, loc="left")
    panels[0].set_ylabel("rise of the loss, nats a token")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8, frameon=False)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _draw(axes: Any, found: dict[Start, dict[float, float]]) -> None:
    colors = method_colors(list(dict.fromkeys(name.partition(",")[0] for name, _ in found)))
    markers = dict(zip(TITLES.values(), "os^vv", strict=True))
    for (name, sees_text), sizes in sorted(found.items(), key=lambda item: item[1][0.5]):
        shares, values = zip(*sorted(sizes.items()), strict=True)
        is_whole = "experts" in name
        axes.plot(
            [100 * share for share in shares],
            values,
            marker="D" if is_whole else markers.get(name, "o"),
            linestyle="-" if sees_text == "yes" else "--",
            color="black" if is_whole else colors[name.partition(",")[0]],
            alpha=0.6 if name.startswith("merge") else 1,
            markersize=4,
            label=name if sees_text == "yes" else f"{name}, no text",
        )
    axes.set(yscale="log", xlim=(80, 20), xlabel="% of the experts' parameters kept")
    axes.grid(linewidth=0.3)


def mixture_experts(records: dict[str, dict[str, Any]]) -> str:
    """How far apart the experts are and how evenly they are used, and the loss by kind of text, of all mixtures."""
    names = {
        "distance": "distance of two experts' matrices, 1.41 for unrelated ones",
        "cosine": "cosine of two experts' outputs",
        "load_entropy": "evenness of use, 1 for all alike",
        "kind_distance": "largest difference in use between two kinds of text, 1 for none in common",
    }
    each = list(records.values())
    rows = [["parameters", *(f"{record['parameters']:,}" for record in each)]]
    rows += [[title, *(f"{record['experts'][name]:.2f}" for record in each)] for name, title in names.items()]
    rows += [
        [f"loss of the original, {kind}", *(f"{record['loss'][kind]:.3f}" for record in each)]
        for kind in each[0]["loss"]
    ]
    return markdown(["", *records], rows)


# Task, metric, heading, of the columns of `tasks_table`.
SCORES = (
    ("sst2", "accuracy", "SST-2"),
    ("mrpc", "accuracy", "MRPC"),
    ("cola", "accuracy", "CoLA"),
    ("cola", "matthews", "CoLA, Matthews"),
)


def tasks_table(record: dict[str, Any], title: str) -> str:
    """Size and start x score after fine-tuning: median, lowest and highest of the seeds in percent."""
    rows = [["always the same class", "-", *(_majority(record, task, metric) for task, metric, _ in SCORES)]]
    for keep in sorted({row["keep"] for row in record["rows"]}, reverse=True):
        for start in dict.fromkeys(row["start"] for row in record["rows"] if row["keep"] == keep):
            runs = [row for row in record["rows"] if (row["start"], row["keep"]) == (start, keep)]
            scores = (_scores(runs, task, metric) for task, metric, _ in SCORES)
            rows.append([TITLES.get(start, start), f"{100 * keep:.0f} %", *scores])
    return markdown([title, "experts kept", *(heading for _, _, heading in SCORES)], rows)


def _majority(record: dict[str, Any], task: str, metric: str) -> str:
    return f"{100 * record['majority'][task]:.1f}" if metric == "accuracy" else "0"


def _scores(runs: list[dict[str, Any]], task: str, metric: str) -> str:
    """The median of the runs on a task, with the lowest and the highest."""
    found = [round(100 * row["scores"][metric], 1) + 0.0 for row in runs if row["task"] == task]  # -0.0 becomes 0.0
    return f"{median(found):.1f} ({min(found):.1f} to {max(found):.1f})" if found else "-"


def small_mixtures() -> dict[str, dict[str, Any]]:
    """The perplexity of all small mixtures, by what they are called."""
    return {title: read_result(name) for name, title in MIXTURES.items()}
