"""The record of training dynamics as tables and as a chart."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlpfusion.extras import CHARTS
from mlpfusion.report.cells import Table
from mlpfusion.report.numbers import FULL, mean_with_deviation, method_colors, trailing_means

_SHOWN = (1, 2, 5, 10, 25, 50, 75, 100)  # steps of the table, as many as a page has room for, and the last step
FIRST = 10  # steps averaged into one number: there the kernel of the start still describes the training
SMOOTHED = 10  # batches averaged into one point of a loss curve: batches of 32 alone differ by more than methods do

# Number of a run -> what it is, in words.
TITLES = {
    "distance": "Distance from the full model's change, ||df_c - df|| / ||df||",
    "length": "Length of the change, ||df_c|| / ||df||",
    "training_loss": "Training loss",
}


def curves(record: dict[str, Any], name: str, column: str) -> list[list[float]]:
    """One curve per seed of the method `name`.

    `column` is `distance`, `length` or `training_loss`.

    >>> rows = [{"label": "svd", "distance": [0.5, 0.25]}]
    >>> curves({"rows": rows}, "svd", "distance")
    [[0.5, 0.25]]
    """
    return [row[column] for row in record["rows"] if row["label"] == name]


def distance_table(record: dict[str, Any], column: str = "distance") -> str:
    """Markdown: methods x steps, mean and standard deviation over the seeds.

    The first column is the mean of the steps 1 to `FIRST`.
    """
    return distances(record, column).markdown()


def distances(record: dict[str, Any], column: str = "distance") -> Table:
    """The same as a table under its title; `column` is `distance` or `length`."""
    steps = record["measured_at"]
    shown = [step for step in steps if step in _SHOWN or step == steps[-1]]
    rows = []
    for name in methods_of(record):
        columns = [at_step(record, name, step, column) for step in shown]
        rows.append((name, *map(mean_with_deviation, [first_steps(record, name, column), *columns])))
    header = ("method", f"mean of 1 to {FIRST}", *(f"step {step}" for step in shown))
    return Table(TITLES[column], header, tuple(rows))


def first_steps(record: dict[str, Any], name: str, column: str = "distance") -> list[float]:
    """Mean of the measured values up to step `FIRST`, one per seed."""
    early = [index for index, step in enumerate(record["measured_at"]) if step <= FIRST]
    return [statistics.mean([curve[index] for index in early]) for curve in curves(record, name, column)]


def at_step(record: dict[str, Any], name: str, step: int, column: str = "distance") -> list[float]:
    """Values measured after `step`, one per seed.

    >>> rows = [{"label": "svd", "distance": [0.5, 0.25]}]
    >>> at_step({"rows": rows, "measured_at": [1, 5]}, "svd", 5)
    [0.25]
    """
    index = record["measured_at"].index(step)
    return [curve[index] for curve in curves(record, name, column)]


def loss_table(record: dict[str, Any]) -> str:
    """Markdown: training loss of the first and last ten batches, trained parameters, time."""
    return training_losses(record).markdown()


def training_losses(record: dict[str, Any]) -> Table:
    """The same as a table under its title."""
    lines = []
    for name in (FULL, *methods_of(record)):
        losses = curves(record, name, "training_loss")
        first = mean_with_deviation([statistics.mean(curve[:10]) for curve in losses])
        last = mean_with_deviation([statistics.mean(curve[-10:]) for curve in losses])
        rows = [row for row in record["rows"] if row["label"] == name]
        seconds = statistics.median([row["seconds_per_step"] for row in rows])
        lines.append((name, first, last, f"{rows[0]['trained_parameters']:,}", f"{seconds:.2f}"))
    header = ("method", "first 10 batches", "last 10 batches", "trained parameters", "seconds a step")
    return Table(TITLES["training_loss"], header, tuple(lines))


def dynamics_settings(record: dict[str, Any]) -> str:
    """What was trained, how, and where the change of the logits was measured."""
    recipe, held_out = record["recipe"], record["held_out"]
    answers = held_out.get("answers", 1)
    each = "" if answers == 1 else f", {answers} tokens of each"
    where = f"{held_out['samples']} examples of {held_out['split']}{each},"
    seeds = ", ".join(map(str, recipe["seeds"]))
    return (
        f"{record['model']} on {record['task']}, layers {recipe['layers']} at {100 * recipe['keep_ratio']:g} %, "
        f"{recipe['steps']} steps, batches of {recipe['batch_size']}, rate {recipe['learning_rate']:g}, seeds {seeds}. "
        f"{record['optimizer']}. df is the change of the logits on {where} since the beginning."
    )


def dynamics_tables(record: dict[str, Any]) -> list[Table]:
    """Distances, lengths and losses."""
    return [distances(record), distances(record, "length"), training_losses(record)]


def dynamics_markdown(record: dict[str, Any]) -> str:
    """All tables, each under a heading, after one paragraph on the settings."""
    parts = [f"## {table.caption}\n\n{table.markdown()}" for table in dynamics_tables(record)]
    return "\n\n".join([dynamics_settings(record), *parts]) + "\n"


def write_dynamics(record: dict[str, Any], folder: Path) -> None:
    """Writes dynamics.md and, where matplotlib is installed, dynamics.png into `folder`."""
    (folder / "dynamics.md").write_text(dynamics_markdown(record), encoding="utf-8")
    write_dynamics_chart(record, folder / "dynamics.png")


def write_dynamics_chart(record: dict[str, Any], path: Path) -> list[Path]:
    """Writes the chart to `path`; returns [] without matplotlib.

    Left the distance from the full model's change of the logits, right the training loss. Lines are
    means over the seeds. Bands reach from the smallest to the largest seed, for the nearest and the
    farthest method only.
    """
    if CHARTS.missing():
        return []
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    distance, loss = figure.subplots(1, 2)
    names, steps = methods_of(record), record["measured_at"]
    early = {name: statistics.mean(first_steps(record, name)) for name in names}
    nearest, farthest = min(names, key=lambda name: early[name]), max(names, key=lambda name: early[name])
    colors = method_colors([FULL, *names])
    for name in names:
        seeds = curves(record, name, "distance")
        _draw_mean(distance, steps, seeds, colors[name], label=name, marker="o", markersize=4)
        if name in (nearest, farthest):
            _draw_band(distance, steps, seeds, colors[name])
    for name in (FULL, *names):
        smooth = [trailing_means(curve, SMOOTHED) for curve in curves(record, name, "training_loss")]
        _draw_mean(loss, range(1, len(smooth[0]) + 1), smooth, colors[name], label=name)
    distance.set_title(
        f"{nearest} stays nearest to the full model: distance {early[nearest]:.2f}\n"
        f"over the first {FIRST} steps, {farthest} {early[farthest]:.2f}"
        if len(names) > 1
        else f"distance {early[nearest]:.2f} over the first {FIRST} steps",
        fontsize=10,
        loc="left",
    )
    loss.set_title("training loss of the same runs", fontsize=10, loc="left")
    distance.set_ylabel("distance of the logits' change from the full model's")
    loss.set_ylabel(f"training loss, mean of the last {SMOOTHED} batches")
    for axes in (distance, loss):
        axes.set_xlabel("step")
        axes.grid(linewidth=0.3)
    _set_logarithmic_steps(distance, record["recipe"]["steps"])
    distance.set_ylim(bottom=0)
    handles, labels = loss.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(7, len(labels)), fontsize=9, frameon=False)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return [path]


def methods_of(record: dict[str, Any]) -> list[str]:
    """Labels of the methods, each once, without the full model."""
    return [name for name in dict.fromkeys(row["label"] for row in record["rows"]) if name != FULL]


def _draw_mean(axes: Any, steps: Sequence[int], seeds: Sequence[Sequence[float]], color: str, **line: Any) -> None:
    means = [statistics.mean(step) for step in zip(*seeds, strict=True)]
    axes.plot(steps, means, color=color, linewidth=1.8, zorder=3, **line)


def _draw_band(axes: Any, steps: Sequence[int], seeds: Sequence[Sequence[float]], color: str) -> None:
    of_steps = list(zip(*seeds, strict=True))
    axes.fill_between(steps, list(map(min, of_steps)), list(map(max, of_steps)), color=color, alpha=0.1, linewidth=0)


def _set_logarithmic_steps(axes: Any, last: int) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    axes.set_xscale("log")
    decades = [base * 10**power for power in range(len(str(last))) for base in (1, 2, 5)]
    axes.xaxis.set_major_locator(FixedLocator([step for step in decades if step <= last]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
