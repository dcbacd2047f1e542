"""The comparison of methods as a Markdown table, a JSON record and a bar chart (paper, Table 1 and Figure 1)."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlpfusion.evaluate.comparison import ComparisonRow
from mlpfusion.methods import METHOD_TYPES

COLUMNS = {
    "output_error": "output error",
    "adam_kernel_error": "Adam kernel error",
    "adam_trace_ratio": "trace after / before",
    "plain_kernel_error": "plain kernel error",
}


def comparison_record(rows: Sequence[ComparisonRow], run: dict[str, Any]) -> dict[str, Any]:
    """The rows with what they were measured on, as JSON data."""
    return {**run, "rows": [asdict(row) | {"label": label(row.method, row.options)} for row in rows]}


def label(method: str, options: dict[str, Any]) -> str:
    """The name of a method in a table: with the options that differ from its defaults."""
    defaults = asdict(METHOD_TYPES[method]())
    changed = [f"{name}={value}" for name, value in options.items() if value != defaults[name]]
    return " ".join([method, *changed])


def comparison_table(record: dict[str, Any], column: str) -> str:
    """Markdown: methods x layers, mean and standard deviation over the seeds (0 where a method is not random)."""
    layers = sorted({(row["error"]["layer"], row["error"]["path"]) for row in record["rows"]})
    lines = [["method", *(path for _, path in layers)], ["---"] * (len(layers) + 1)]
    for name in dict.fromkeys(row["label"] for row in record["rows"]):
        values = [_values(record, name, path, column) for _, path in layers]
        lines.append([name, *(_mean_and_deviation(found) for found in values)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_comparison(record: dict[str, Any], folder: Path) -> list[Path]:
    """Writes comparison.json, comparison.md and, where matplotlib is installed, comparison.png into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    data, text = folder / "comparison.json", folder / "comparison.md"
    data.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    parts = [f"## {title.capitalize()}\n\n{comparison_table(record, name)}" for name, title in COLUMNS.items()]
    text.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return [data, text, *_write_chart(record, folder / "comparison.png")]


def _write_chart(record: dict[str, Any], path: Path) -> list[Path]:
    """One panel for the output error, one for the Adam kernel error; bars are means over the seeds."""
    if find_spec("matplotlib") is None:
        return []
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["label"] for row in record["rows"]))
    figure = Figure(figsize=(10, 3.2 + 0.2 * len(names)), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_bars(left, record, names, "output_error")
    _draw_bars(right, record, names, "adam_kernel_error")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(names)))
    figure.savefig(path, dpi=120)
    return [path]


def _draw_bars(axes: Any, record: dict[str, Any], names: Sequence[str], column: str) -> None:
    """A group of bars a block, a bar a method; deviations over the seeds as lines."""
    paths = list(dict.fromkeys(row["error"]["path"] for row in record["rows"]))
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        found = [_values(record, name, path, column) for path in paths]
        places = [place + width * index for place in range(len(paths))]
        deviations = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in found]
        axes.bar(places, [statistics.mean(v) for v in found], width=width, yerr=deviations, label=name)
    axes.set_xticks([place + (0.8 - width) / 2 for place in range(len(paths))], paths, fontsize=8, rotation=20)
    axes.set_yscale("log")  # methods lie a factor of fifty apart
    axes.set_ylabel(f"{COLUMNS[column]}, relative")


def _values(record: dict[str, Any], name: str, path: str, column: str) -> list[float]:
    return [r["error"][column] for r in record["rows"] if r["label"] == name and r["error"]["path"] == path]


def _mean_and_deviation(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} +- {deviation:.3f}"
