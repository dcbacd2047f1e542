"""Writing texts by a small GPT-2: how it was pretrained, and what the methods make of WebNLG."""

import statistics
from collections.abc import Mapping
from typing import Any

from mlpfusion.report.grid.columns import labels
from mlpfusion.report.numbers import score_with_deviation
from parts.page import markdown
from parts.verdict import order_of

_SHOWN = (100, 200, 400, 800, 1600, 2400)  # steps of the loss curve, and the last
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


def pretraining_table(record: Mapping[str, Any]) -> str:
    """The command, the loss by step, and what came out."""
    losses = dict(map(tuple, record["training_loss"]))
    steps = [*(step for step in _SHOWN if step in losses), max(losses)]
    head, validation = ["step", *(f"{step:,}" for step in steps)], record["validation"]
    return "\n\n".join(
        [
            f"```text\n{record['command']}\n```",
            markdown(head, [["loss", *(f"{losses[step]:.2f}" for step in steps)]]),
            f"{record['windows']:,} windows of {record['window']} tokens, {record['parameters']:,} parameters, "
            f"{record['steps']:,} steps. Perplexity of the validation text {validation['perplexity']:.1f}. SHA-256 of "
            f"`model.safetensors`: `{record['weights_sha256']}`.",
        ]
    )


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
    theirs, ours = [PAPER_BLEU[label] for label in shared], [means[label] for label in shared]
    return order_of("Table 3", "BLEU of all texts", theirs, ours)


def webnlg_examples(record: Mapping[str, Any]) -> str:
    """What every method wrote for some entries of the test split, by its first seed: the facts, then a column each."""
    entries = record["entries"]
    facts = [f"{number}. {entry['group']}: `{entry['facts']}`" for number, entry in enumerate(entries, 1)]
    head = ["method", *(f"entry {number}" for number in range(1, len(entries) + 1))]
    rows = [[label, *(entry["texts"][label] or "(nothing)" for entry in entries)] for label in entries[0]["texts"]]
    return "\n".join(facts) + "\n\n" + markdown(head, rows)
