"""The record of an experiment as Markdown tables."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlpfusion.data.labelled.metrics import METRICS
from mlpfusion.data.tasks import find_task
from mlpfusion.report.numbers import FULL, markdown_table, score_with_deviation

Row = dict[str, Any]
_PERCENT = "score, percent"


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


def score_table(record: Row) -> str:
    """Markdown: methods x columns, headline metric, mean +- sample deviation."""
    return _table(record, lambda label, column: score_with_deviation(column.scores(record, label)))


def share_table(record: Row) -> str:
    """Markdown: scores over the full model's with the same seed, in percent."""

    def cell(label: str, column: ScoreColumn) -> str:
        return score_with_deviation(shares(record, label, column))

    return _table(record, cell, without=FULL)


def shares(record: Row, label: str, column: ScoreColumn) -> list[float]:
    """Score over the full model's in percent, for every seed run by both."""
    full = {row["seed"]: score for row, score in _scored(record, FULL, column)}
    return [100 * score / full[row["seed"]] for row, score in _scored(record, label, column) if row["seed"] in full]


def cost_table(record: Row) -> str:
    """Markdown: parameters, median seconds per step on the first task, chosen rate."""
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
    """All tables under headings, after one paragraph on the settings."""
    seeds, rates = (", ".join(f"{value:g}" for value in record[name]) for name in ("seeds", "learning_rate"))
    samples = "" if record["max_train_samples"] is None else f", {record['max_train_samples']:,} training examples"
    ratios = ", ".join(f"{100 * ratio:.4g} %" for ratio in record["keep_ratio"])
    chosen = {
        "holdout": f"chosen on {100 * record['holdout']:g} % of train, held out",
        "validation": "chosen on the reported split (the paper's habit): optimistic",
        "last": "the last epoch",
    }[record["select_on"]]
    settings = (
        f"{record['model']}, layers {', '.join(record['layers'])} at {ratios}{samples}, {record['epochs']} epochs, "
        f"batches of {record['batch_size']}, learning rate {rates}, seeds {seeds}; epoch and rate {chosen}."
    )
    parts = [f"# {record['title']}", record["description"], settings]
    named = "" if all(column.unit == _PERCENT for column in columns(record)) else " where no other unit is named"
    parts += [f"## Scores, percent{named}: mean and sample standard deviation over the seeds", score_table(record)]
    if FULL in labels(record):
        parts += ["## Share of the full model's score with the same seed, percent", share_table(record)]
    parts += ["## Cost", cost_table(record)]
    failed = [f"- {row['label']}, {row['task']}, seed {row['seed']}: {row['diverged']}" for row in _diverged(record)]
    parts += ["## Diverged", "\n".join(failed)] if failed else []
    return "\n\n".join(part for part in parts if part) + "\n"


def _scored(record: Row, label: str, column: ScoreColumn) -> list[tuple[Row, float]]:
    return list(zip(column.rows(record, label), column.scores(record, label), strict=True))


def _table(record: Row, cell: Callable[[str, ScoreColumn], str], without: str = "") -> str:
    all_columns = columns(record)
    lines = [["method", *(column.title() for column in all_columns)], ["---"] * (len(all_columns) + 1)]
    lines += [[label, *(cell(label, column) for column in all_columns)] for label in labels(record) if label != without]
    return markdown_table(lines)


def _diverged(record: Row) -> list[Row]:
    return [row for row in record["rows"] if "diverged" in row]
