"""The record of an experiment as tables."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mlpfusion.data.glue import find_task
from mlpfusion.report.numbers import FULL, markdown_table

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """One column of scores: a split of a task, and where and how much was compressed (None: one place, one size)."""

    task: str
    split: str
    layers: str | None
    keep_ratio: float | None

    def title(self) -> str:
        """The task, and what else is not the same in all columns."""
        several = len(find_task(self.task).splits) > 1
        words = [self.task, self.split.removeprefix("validation_") if several else ""]
        words += ["" if self.layers is None else f"layers {self.layers}"]
        words += ["" if self.keep_ratio is None else f"at {100 * self.keep_ratio:.4g} %"]
        return " ".join(word for word in words if word)

    def rows(self, record: Row, label: str) -> list[Row]:
        """The finished runs at the chosen rate of `label` in this column, in the order of their seeds."""
        found = [row for row in record["rows"] if row["label"] == label and row["task"] == self.task and row["chosen"]]
        if not any(row["method"] is None for row in found):
            found = [row for row in found if self.layers in (None, row["layers"])]
            found = [row for row in found if self.keep_ratio in (None, row["keep_ratio"])]
        return sorted((row for row in found if "run" in row), key=lambda row: row["seed"])

    def scores(self, record: Row, label: str) -> list[float]:
        """The headline metric of these runs, in percent."""
        metric = find_task(self.task).headline
        return [100 * row["run"]["scores"][self.split][metric] for row in self.rows(record, label)]


def labels(record: Row) -> list[str]:
    """The rows of the table."""
    return list(dict.fromkeys(row["label"] for row in record["rows"]))


def columns(record: Row) -> list[Column]:
    """The columns of scores."""
    places = record["layers"] if len(record["layers"]) > 1 else [None]
    ratios = record["keep_ratio"] if len(record["keep_ratio"]) > 1 else [None]
    splits = [(task, split) for task in record["tasks"] for split in find_task(task).splits]
    return [Column(*split, layers, ratio) for split in splits for layers in places for ratio in ratios]


def score_table(record: Row) -> str:
    """Markdown: methods x columns, headline metric in percent, mean and sample deviation over the seeds."""
    return _table(record, lambda label, column: spread(column.scores(record, label)))


def share_table(record: Row) -> str:
    """Markdown: the score over that of the full model with the same seed, in percent; the full model is left out."""

    def cell(label: str, column: Column) -> str:
        return spread(shares(record, label, column))

    return _table(record, cell, without=FULL)


def shares(record: Row, label: str, column: Column) -> list[float]:
    """Score over the full model's, seed by seed, in percent; of the seeds that both have."""
    full = {row["seed"]: score for row, score in _scored(record, FULL, column)}
    return [100 * score / full[row["seed"]] for row, score in _scored(record, label, column) if row["seed"] in full]


def cost_table(record: Row) -> str:
    """Markdown: what trains, what a step takes (median over the runs of the first task), the chosen rate."""
    lines = [["method", "parameters", "not zero", "seconds a step", "layer-wise loss, before -> after", "rate"]]
    lines.append(["---"] * len(lines[0]))
    first = columns(record)[0]
    for label in labels(record):
        rows = first.rows(record, label)
        if not rows:
            continue
        seconds = [row["run"]["seconds_per_step"] for row in rows if row["run"]["seconds_per_step"] is not None]
        stages = [row["distill"] for row in rows if "distill" in row]
        losses = [statistics.mean(stage[name] for stage in stages) for name in ("loss_before", "loss_after") if stages]
        lines.append(
            [
                label,
                f"{rows[0]['parameters']:,}",
                f"{rows[0]['nonzero_parameters']:,}",
                f"{statistics.median(seconds):.2f}" if seconds else "-",
                " -> ".join(f"{loss:.3g}" for loss in losses) or "-",
                f"{rows[0]['learning_rate']:g}",
            ]
        )
    return markdown_table(lines)


def experiment_markdown(record: Row) -> str:
    """All tables under headings, and what was done."""
    seeds, rates = (", ".join(f"{value:g}" for value in record[name]) for name in ("seeds", "learning_rate"))
    samples = "" if record["max_train_samples"] is None else f", {record['max_train_samples']:,} training examples"
    ratios = ", ".join(f"{100 * ratio:.4g} %" for ratio in record["keep_ratio"])
    chosen = {
        "holdout": f"chosen on {100 * record['holdout']:g} % of train, held out",
        "validation": "chosen on the reported split (the paper's habit): optimistic",
        "last": "the last epoch",
    }[record["select_on"]]
    told = (
        f"{record['model']}, layers {', '.join(record['layers'])} at {ratios}{samples}, {record['epochs']} epochs, "
        f"batches of {record['batch_size']}, learning rate {rates}, seeds {seeds}; epoch and rate {chosen}."
    )
    parts = [f"# {record['title']}", record["description"], told]
    parts += ["## Scores, percent: mean and sample standard deviation over the seeds", score_table(record)]
    if FULL in labels(record):
        parts += ["## Share of the full model's score with the same seed, percent", share_table(record)]
    parts += ["## Cost", cost_table(record)]
    failed = [f"- {row['label']}, {row['task']}, seed {row['seed']}: {row['diverged']}" for row in _diverged(record)]
    parts += ["## Diverged", "\n".join(failed)] if failed else []
    return "\n\n".join(part for part in parts if part) + "\n"


def spread(numbers: Sequence[float]) -> str:
    """As in `84.21 +- 0.35`; one number alone, and `-` for none."""
    if not numbers:
        return "-"
    deviation = f" +- {statistics.stdev(numbers):.2f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.2f}{deviation}"


def _scored(record: Row, label: str, column: Column) -> list[tuple[Row, float]]:
    return list(zip(column.rows(record, label), column.scores(record, label), strict=True))


def _table(record: Row, cell: Callable[[str, Column], str], without: str = "") -> str:
    found = columns(record)
    lines = [["method", *(column.title() for column in found)], ["---"] * (len(found) + 1)]
    lines += [[label, *(cell(label, column) for column in found)] for label in labels(record) if label != without]
    return markdown_table(lines)


def _diverged(record: Row) -> list[Row]:
    return [row for row in record["rows"] if "diverged" in row]
