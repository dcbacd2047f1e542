"""The record of training dynamics as tables, on the terminal, and as a chart."""

import statistics
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlpfusion.report.numbers import FULL, markdown_table, mean_and_deviation

# Steps of the table: more columns are not read.
_SHOWN = (1, 2, 5, 10, 25, 50, 75, 100)
# The steps that are averaged into one number, and those that a loss on the chart is the mean of.
FIRST, _SMOOTHED = 10, 10
_COLORS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#D55E00", "#7F7F7F", "#8C564B", "#17BECF", "#BCBD22")


def curves(record: dict[str, Any], name: str, column: str) -> list[list[float]]:
    """One curve a seed of the method labelled `name`: `distance`, `length` or `training_loss`."""
    return [row[column] for row in record["rows"] if row["label"] == name]


def distance_table(record: dict[str, Any], column: str = "distance") -> str:
    """Markdown: methods x steps, mean and standard deviation over the seeds; the mean of steps 1 to 10 first."""
    steps = record["measured_at"]
    shown = [step for step in steps if step in _SHOWN or step == steps[-1]]
    lines = [["method", f"mean of 1 to {FIRST}", *(f"step {step}" for step in shown)]]
    lines.append(["---"] * len(lines[0]))
    for name in _methods(record):
        columns = [at_step(record, name, step, column) for step in shown]
        lines.append([name, *map(mean_and_deviation, [first_steps(record, name, column), *columns])])
    return markdown_table(lines)


def first_steps(record: dict[str, Any], name: str, column: str = "distance") -> list[float]:
    """The mean of the measured values up to step 10, one a seed."""
    early = [index for index, step in enumerate(record["measured_at"]) if step <= FIRST]
    return [statistics.mean([curve[index] for index in early]) for curve in curves(record, name, column)]


def at_step(record: dict[str, Any], name: str, step: int, column: str = "distance") -> list[float]:
    """The values measured after `step`, one a seed."""
    index = record["measured_at"].index(step)
    return [curve[index] for curve in curves(record, name, column)]


def loss_table(record: dict[str, Any]) -> str:
    """Markdown: the mean training loss of the first and of the last ten batches, and what trains."""
    lines = [["method", "first 10 batches", "last 10 batches", "trained parameters", "seconds a step"], ["---"] * 5]
    for name in (FULL, *_methods(record)):
        found = curves(record, name, "training_loss")
        ends = [
            [statistics.mean(part) for part in parts] for parts in ([c[:10] for c in found], [c[-10:] for c in found])
        ]
        rows = [row for row in record["rows"] if row["label"] == name]
        seconds = statistics.median([row["seconds_per_step"] for row in rows])
        lines.append([name, *map(mean_and_deviation, ends), f"{rows[0]['trained_parameters']:,}", f"{seconds:.2f}"])
    return markdown_table(lines)


def dynamics_markdown(record: dict[str, Any]) -> str:
    """All tables, each under a heading."""
    recipe, held_out = record["recipe"], record["held_out"]
    where = f"{held_out['samples']} examples of {held_out['split']}"
    seeds = ", ".join(map(str, recipe["seeds"]))
    told = (
        f"{record['model']} on {record['task']}, layers {recipe['layers']} at {100 * recipe['keep_ratio']:g} %, "
        f"{recipe['steps']} steps, batches of {recipe['batch_size']}, rate {recipe['learning_rate']:g}, seeds {seeds}. "
        f"{record['optimizer']}. df is the change of the logits on {where} since the beginning."
    )
    tables = {
        "Distance from the full model's change, ||df_c - df|| / ||df||": distance_table(record),
        "Length of the change, ||df_c|| / ||df||": distance_table(record, "length"),
        "Training loss": loss_table(record),
    }
    return "\n\n".join([told, *(f"## {title}\n\n{table}" for title, table in tables.items())]) + "\n"


def write_dynamics_chart(record: dict[str, Any], path: Path) -> list[Path]:
    """Writes the chart where matplotlib is installed: distance, with steps on a logarithmic axis, and training loss.

    Lines are means over the seeds, bands reach from the smallest to the largest.
    """
    if find_spec("matplotlib") is None:
        return []
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    distance, loss = figure.subplots(1, 2)
    names, steps = _methods(record), record["measured_at"]
    colors = {name: _COLORS[index % len(_COLORS)] for index, name in enumerate(names)} | {FULL: "black"}
    for name in names:
        _draw(distance, steps, curves(record, name, "distance"), colors[name], name, marker="o", markersize=4)
    for name in (FULL, *names):
        smooth = [_trailing_mean(curve) for curve in curves(record, name, "training_loss")]
        _draw(loss, range(1, len(smooth[0]) + 1), smooth, colors[name], name)
    distance.set_ylabel("distance of the logits' change from the full model's")
    loss.set_ylabel(f"training loss, mean of the last {_SMOOTHED} batches")
    for axes in (distance, loss):
        axes.set_xlabel("step")
        axes.grid(linewidth=0.3)
    _set_logarithmic_steps(distance, record["recipe"]["steps"])
    distance.set_ylim(bottom=0)
    handles, labels = loss.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(7, len(labels)), fontsize=9)
    figure.savefig(path, dpi=120)
    return [path]


def _methods(record: dict[str, Any]) -> list[str]:
    return [name for name in dict.fromkeys(row["label"] for row in record["rows"]) if name != FULL]


def _draw(
    axes: Any, steps: Sequence[int], found: Sequence[Sequence[float]], color: str, name: str, **line: Any
) -> None:
    columns = list(zip(*found, strict=True))
    means = [statistics.mean(column) for column in columns]
    axes.plot(steps, means, color=color, linewidth=1.8, label=name, zorder=3, **line)
    if len(found) > 1:
        lowest, highest = [min(column) for column in columns], [max(column) for column in columns]
        axes.fill_between(steps, lowest, highest, color=color, alpha=0.13, linewidth=0)


def _trailing_mean(losses: Sequence[float]) -> list[float]:
    return [statistics.mean(losses[max(0, end - _SMOOTHED) : end]) for end in range(1, len(losses) + 1)]


def _set_logarithmic_steps(axes: Any, last: int) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    axes.set_xscale("log")
    decades = [base * 10**power for power in range(len(str(last))) for base in (1, 2, 5)]
    axes.xaxis.set_major_locator(FixedLocator([step for step in decades if step <= last]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
