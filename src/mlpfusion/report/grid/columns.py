"""The columns of a grid's tables: where a score stands, and the runs that it is of."""

import statistics
from dataclasses import dataclass
from typing import Any

from mlpfusion.data.labelled.metrics import METRICS
from mlpfusion.data.tasks import find_task
from mlpfusion.report.numbers import score_with_deviation

Row = dict[str, Any]
PERCENT = "score, percent"


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
        words += ["" if self.unit == PERCENT else self.unit]
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
        return [self.factor * row["run"]["scores"][self.split][metric] for row in self.rows(record, label)]

    def steps(self, record: Row, label: str) -> str:
        """The mean score, of runs with two stages after each step: `85.20 -> 71.00 -> 84.90`."""
        rows, after = self.rows(record, label), self.scores(record, label)
        if any(row.get("first") is None for row in rows):
            return score_with_deviation(after)
        metric = find_task(self.task).headline
        steps = [[row["first"] for row in rows], [row["run"]["before"] for row in rows]]
        # what a model wrote is scored after the training only
        known = [[scores[self.split].get(metric) for scores in step] for step in steps]
        means = ["-" if None in step else f"{self.factor * statistics.mean(step):.2f}" for step in known]
        return " -> ".join((*means, f"{statistics.mean(after):.2f}"))

    @property
    def factor(self) -> int:
        """What a recorded score is multiplied by, to be in the unit."""
        return 100 if find_task(self.task).headline in METRICS else 1

    @property
    def unit(self) -> str:
        """What the scores are, for an axis: percent, or the name of the headline.

        >>> ScoreColumn("wikitext2", "test", None, None).unit
        'perplexity'
        """
        metric = find_task(self.task).headline
        return PERCENT if metric in METRICS else metric


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
