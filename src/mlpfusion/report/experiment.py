"""The record of an experiment as Markdown tables."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlpfusion.data.labelled.metrics import METRICS
from mlpfusion.data.tasks import find_task
from mlpfusion.report.cells import Table
from mlpfusion.report.numbers import FULL, score_with_deviation, trailing_means

Row = dict[str, Any]
_PERCENT = "score, percent"
_SMOOTHED = 5  # entries of the loss log averaged into one point of a curve: 50 batches


@dataclass(frozen=True)
class ScoreColumn:
    """One column of scores: a split of a task, compressed layers, ratio.

    `layers` and `keep_ratio` are None where the experiment has only one.
    """

    task: str
    split: str
    layers: str | None
    keep_ratio: float | None

    def title(self) -> str:
        """Heading: the task, and everything not shared by all columns.

        >>> ScoreColumn("mnli", "validation_matched", None, 0.25).title()
        'mnli matched at 25 %'
        """
        several = len(find_task(self.task).reported) > 1
        words = [self.task, self.split.removeprefix("validation_") if several else ""]
        words += ["" if self.layers is None else f"layers {self.layers}"]
        words += ["" if self.keep_ratio is None else f"at {100 * self.keep_ratio:.4g} %"]
        words += ["" if self.unit == _PERCENT else self.unit]
        return " ".join(word for word in words if word)

    def rows(self, record: Row, label: str) -> list[Row]:
        """Finished runs of `label` at the chosen learning rate, by seed."""
        rows = [row for row in record["rows"] if row["label"] == label and row["task"] == self.task and row["chosen"]]
        if not any(row["method"] is None for row in rows):
            rows = [row for row in rows if self.layers in (None, row["layers"])]
            rows = [row for row in rows if self.keep_ratio in (None, row["keep_ratio"])]
        return sorted((row for row in rows if "run" in row), key=lambda row: row["seed"])

    def scores(self, record: Row, label: str) -> list[float]:
        """Headline metric of the finished runs in its `unit`, by seed."""
        metric = find_task(self.task).headline
        factor = 100 if metric in METRICS else 1
        return [factor * row["run"]["scores"][self.split][metric] for row in self.rows(record, label)]

    @property
    def unit(self) -> str:
        """What the scores are, for an axis: percent, or the name of the headline.

        >>> ScoreColumn("wikitext2", "test", None, None).unit
        'perplexity'
        """
        metric = find_task(self.task).headline
        return _PERCENT if metric in METRICS else metric


def labels(record: Row) -> list[str]:
    """Labels of the methods, in the order of the record.

    >>> labels({"rows": [{"label": "full"}, {"label": "fusion"}, {"label": "full"}]})
    ['full', 'fusion']
    """
    return list(dict.fromkeys(row["label"] for row in record["rows"]))


def columns(record: Row) -> list[ScoreColumn]:
    """Columns of the table: splits of tasks x layers x ratios."""
    places = record["layers"] if len(record["layers"]) > 1 else [None]
    ratios = record["keep_ratio"] if len(record["keep_ratio"]) > 1 else [None]
    splits = [(task, split) for task in record["tasks"] for split in find_task(task).reported]
    return [ScoreColumn(task, split, place, ratio) for task, split in splits for place in places for ratio in ratios]


def score_table(record: Row) -> Table:
    """Methods x columns, headline metric, mean +- sample deviation."""
    named = "" if all(column.unit == _PERCENT for column in columns(record)) else " where no other unit is named"
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
        stages = [row["distill"] for row in rows if "distill" in row]
        losses = [statistics.mean(stage[name] for stage in stages) for name in ("loss_before", "loss_after") if stages]
        lines.append(
            (
                label,
                f"{rows[0]['parameters']:,}",
                f"{rows[0]['nonzero_parameters']:,}",
                f"{statistics.median(seconds):.2f}" if seconds else "-",
                " -> ".join(f"{loss:.3g}" for loss in losses) or "-",
                f"{rows[0]['learning_rate']:g}",
            )
        )
    return Table("Cost", header, tuple(lines))


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
    """All tables; shares where the full model was run."""
    return [score_table(record), *([share_table(record)] if FULL in labels(record) else []), cost_table(record)]


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


def _scored(record: Row, label: str, column: ScoreColumn) -> list[tuple[Row, float]]:
    return list(zip(column.rows(record, label), column.scores(record, label), strict=True))


def _table(record: Row, title: str, cell: Callable[[str, ScoreColumn], str], without: str = "") -> Table:
    all_columns = columns(record)
    header = ("method", *(column.title() for column in all_columns))
    rows = [(label, *(cell(label, column) for column in all_columns)) for label in labels(record) if label != without]
    return Table(title, header, tuple(rows))
