"""The record of `mlpfusion reproduce small-table3` as tables, and its order against the paper's Table 3."""

import statistics
from collections.abc import Mapping
from typing import Any

from page import markdown
from scipy.stats import kendalltau

from mlpfusion.report.experiment import labels
from mlpfusion.report.numbers import score_with_deviation

SPLITS = {"seen": "test SEEN", "unseen": "test UNSEEN", "all": "test"}
# Score of the record -> its name in tables, and a factor.
SCORES = {"bleu_protocol": ("BLEU", 1), "chrf": ("chrF", 1), "meteor_exact_stem": ("METEOR", 100), "ter": ("TER", 1)}
# The paper's Table 3: labels of ours -> BLEU of all texts there, GPT-2 small.
PAPER_BLEU = {
    "full": 42.17,
    "sketch": 27.28,
    "mmd": 40.17,
    "magnitude": 40.55,
    "clustering": 39.81,
    "fusion": 40.79,
    "fusion + layer-wise": 41.04,
}


def scores(record: Mapping[str, Any], label: str, split: str, metric: str) -> list[float]:
    """A score of a method at the chosen rate, by seed."""
    rows = [row for row in record["rows"] if row["label"] == label and row["chosen"] and "run" in row]
    factor = SCORES[metric][1]
    return [factor * row["run"]["scores"][SPLITS[split]][metric] for row in sorted(rows, key=lambda row: row["seed"])]


def webnlg_table(record: Mapping[str, Any], metrics: tuple[str, ...]) -> str:
    """Method x (score, part of the test split): mean and sample standard deviation over the seeds."""
    head = ["method", *(f"{SCORES[metric][0]}, {split}" for metric in metrics for split in SPLITS)]
    rows = [
        [label, *(score_with_deviation(scores(record, label, split, metric)) for metric in metrics for split in SPLITS)]
        for label in labels(record)
    ]
    return markdown(head, rows)


def webnlg_order(record: Mapping[str, Any]) -> str:
    """Whether the methods' order by BLEU is that of the paper's Table 3, by Kendall's test at 5 %."""
    means = {label: statistics.mean(scores(record, label, "all", "bleu_protocol")) for label in labels(record)}
    shared = [label for label in PAPER_BLEU if label in means]
    tau = kendalltau([PAPER_BLEU[label] for label in shared], [means[label] for label in shared])
    word = "neither confirmed nor refuted"
    if tau.pvalue < 0.05:
        word = "confirmed" if tau.statistic > 0 else "refuted"
    return (
        f"The order of the paper's Table 3 is {word}: Kendall's tau between its BLEU of all texts and ours, over the "
        f"{len(shared)} rows in both, is {tau.statistic:.2f} (p = {tau.pvalue:.2f})."
    )


def webnlg_examples(record: Mapping[str, Any]) -> str:
    """What every method wrote for some entries of the test split, by its first seed."""
    parts = []
    for number, entry in enumerate(record["entries"]):
        rows = [[label, text or "(nothing)"] for label, text in entry["texts"].items()]
        parts.append(f"{entry['group'].lower()}: `{entry['facts']}`\n\n" + markdown(["method", f"text {number + 1}"], rows))
    return "\n\n".join(parts)
