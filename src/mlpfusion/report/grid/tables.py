"""The record of an experiment as Markdown tables."""

import statistics
from collections.abc import Callable

from mlpfusion.data.tasks import find_task
from mlpfusion.report.cells import Table
from mlpfusion.report.grid.columns import PERCENT, Row, ScoreColumn, columns, labels
from mlpfusion.report.grid.recovery import recovery_tables
from mlpfusion.report.numbers import FULL, score_with_deviation, trailing_means

_SMOOTHED = 5  # entries of the loss log averaged into one point of a curve: 50 batches


def score_table(record: Row) -> Table:
    """Methods x columns, headline metric, mean +- sample deviation."""
    named = "" if all(column.unit == PERCENT for column in columns(record)) else " where no other unit is named"
    title = f"Scores, percent{named}: mean and sample standard deviation over the seeds"
    return _table(record, title, lambda label, column: score_with_deviation(column.scores(record, label)))


def share_table(record: Row) -> Table:
    """Scores over the full model's with the same seed, in percent."""

    def cell(label: str, column: ScoreColumn) -> str:
        return score_with_deviation(shares(record, label, column))

    return _table(record, "Share of the full model's score with the same seed, percent", cell, without=FULL)


def shares(record: Row, label: str, column: ScoreColumn) -> list[float]:
    """Score over the full model's in percent, for every seed run by both; without seeds whose full model has 0."""
    full = {row["seed"]: score for row, score in _scored(record, FULL, column)}
    return [100 * score / full[row["seed"]] for row, score in _scored(record, label, column) if full.get(row["seed"])]


def mean_losses(record: Row, label: str, column: ScoreColumn) -> list[tuple[int, float]]:
    """Training losses by step: the mean over the seeds, smoothed; [] without a finished run."""
    logs = [row["run"]["training_loss"] for row in column.rows(record, label)]
    if not logs:
        return []
    steps = [step for step, _ in logs[0]]
    means = [statistics.mean(log[number][1] for log in logs) for number in range(min(map(len, logs)))]
    return list(zip(steps, trailing_means(means, _SMOOTHED), strict=False))


def cost_table(record: Row) -> Table:
    """Parameters, median seconds per step on the first task, chosen rate."""
    header = ("method", "parameters", "not zero", "seconds a step", "layer-wise loss, before -> after", "rate")
    lines, first = [], columns(record)[0]
    for label in labels(record):
        rows = first.rows(record, label)
        if not rows:
            continue
        seconds = [row["run"]["seconds_per_step"] for row in rows if row["run"]["seconds_per_step"] is not None]
        size = rows[0]["cost"] if rows[0].get("first") is not None else rows[0]  # what a second stage left
        stages = [row["distill"] for row in rows if "distill" in row]
        losses = [statistics.mean(stage[name] for stage in stages) for name in ("loss_before", "loss_after") if stages]
        lines.append(
            (
                label,
                f"{size['parameters']:,}",
                f"{size['nonzero_parameters']:,}",
                f"{statistics.median(seconds):.2f}" if seconds else "-",
                " -> ".join(f"{loss:.3g}" for loss in losses) or "-",
                f"{rows[0]['learning_rate']:g}",
            )
        )
    return Table("Cost", header, tuple(lines))


def stage_table(record: Row) -> Table:
    """Cost of what runs leave, and their scores: of two stages after the first, before the second, after it."""
    splits = [(task, split) for task in record["tasks"] for split in find_task(task).reported]
    names = [ScoreColumn(task, split, None, None).title() for task, split in splits]
    header = ("method", "trained", "FLOPs", "without zeros", "MB", *names)
    several_layers, several_ratios = len(record["layers"]) > 1, len(record["keep_ratio"]) > 1
    lines = []
    for label, layers, keep_ratio in _places(record):
        found = [ScoreColumn(task, split, layers, keep_ratio) for task, split in splits]
        rows = found[0].rows(record, label)
        if rows:
            is_cut = rows[0]["method"] is not None
            place = f" layers {layers}" * (is_cut and several_layers)
            place += f" at {100 * keep_ratio:.4g} %" * (is_cut and several_ratios)
            steps = (column.steps(record, label) for column in found)
            lines.append((label + place, *_cost_cells(rows[0], _full_flops(record)), *steps))
    unit = "percent of the full model's" if _full_flops(record) else "billions, one text"
    title = f"Two stages: FLOPs, {unit}; scores after the first stage -> before the second -> after it"
    return Table(title, header, tuple(lines))


def has_stages(record: Row) -> bool:
    """True if a run of the grid had two stages."""
    return any(row.get("first") is not None for row in record["rows"])


def settings_words(record: Row) -> str:
    """One sentence on what was run."""
    seeds, rates = (", ".join(f"{value:g}" for value in record[name]) for name in ("seeds", "learning_rate"))
    samples = "" if record["max_train_samples"] is None else f", {record['max_train_samples']:,} training examples"
    ratios = ", ".join(f"{100 * ratio:.4g} %" for ratio in record["keep_ratio"])
    chosen = {
        "holdout": f"chosen on {100 * record['holdout']:g} % of train, held out",
        "validation": "chosen on the reported split (the paper's habit): optimistic",
        "last": "the last epoch",
    }[record["select_on"]]
    return (
        f"{record['model']}, layers {', '.join(record['layers'])} at {ratios}{samples}, {record['epochs']} epochs, "
        f"batches of {record['batch_size']}, learning rate {rates}, seeds {seeds}; epoch and rate {chosen}."
    )


def tables(record: Row) -> list[Table]:
    """All tables; shares where the full model was run, those of stages and recovery where the runs have them."""
    shared = [share_table(record)] if FULL in labels(record) else []
    stages = [stage_table(record)] if has_stages(record) else []
    return [score_table(record), *shared, *stages, *recovery_tables(record), cost_table(record)]


def diverged_runs(record: Row) -> list[str]:
    """One line for each run that failed."""
    rows = [row for row in record["rows"] if "diverged" in row]
    return [f"{row['label']}, {row['task']}, seed {row['seed']}: {row['diverged']}" for row in rows]


def experiment_markdown(record: Row) -> str:
    """All tables under headings, after one paragraph on the settings."""
    parts = [f"# {record['title']}", record["description"], settings_words(record)]
    for table in tables(record):
        parts += [f"## {table.caption}", table.markdown()]
    failed = diverged_runs(record)
    parts += ["## Diverged", "\n".join(f"- {line}" for line in failed)] if failed else []
    return "\n\n".join(part for part in parts if part) + "\n"


def _places(record: Row) -> list[tuple[str, str, float]]:
    """Label, layers and ratio of all cells of one task, in the order of the methods."""
    found = [(row["label"], row["layers"], row["keep_ratio"]) for row in record["rows"]]
    order = labels(record)
    return sorted(dict.fromkeys(found), key=lambda place: order.index(place[0]))


def _cost_cells(row: Row, full_flops: int | None) -> tuple[str, ...]:
    """Trained parameters, FLOPs with and without zeros, megabytes; runs of former versions say less."""
    cost, trained = row.get("cost"), f"{row['run']['trained_parameters']:,}"
    if cost is None:
        return (trained, "-", "-", "-")
    unit = full_flops / 100 if full_flops else 1e9
    flops = [cost[name] for name in ("flops", "flops_without_zeros")]
    return (trained, *("-" if one is None else f"{one / unit:.1f}" for one in flops), f"{cost['bytes'] / 1e6:.1f}")


def _full_flops(record: Row) -> int | None:
    costs = [row["cost"] for row in record["rows"] if row["label"] == FULL and row.get("cost") is not None]
    return costs[0]["flops"] if costs else None


def _scored(record: Row, label: str, column: ScoreColumn) -> list[tuple[Row, float]]:
    return list(zip(column.rows(record, label), column.scores(record, label), strict=True))


def _table(record: Row, title: str, cell: Callable[[str, ScoreColumn], str], without: str = "") -> Table:
    all_columns = columns(record)
    header = ("method", *(column.title() for column in all_columns))
    rows = [(label, *(cell(label, column) for column in all_columns)) for label in labels(record) if label != without]
    return Table(title, header, tuple(rows))
