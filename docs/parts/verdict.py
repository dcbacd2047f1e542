"""What the records of the fine-tuning runs say of what is claimed: the share of the score, and the paper's order."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from scipy.stats import kendalltau

from mlpfusion.report.grid.columns import ScoreColumn, columns, labels
from mlpfusion.report.grid.tables import shares

# Table 2 of the paper, SST-2: labels of ours -> accuracy there.
PAPER_SST2 = {
    "sketch": 91.90,
    "mmd": 92.54,
    "svd": 92.55,
    "flop": 92.12,
    "magnitude": 92.78,
    "lth": 92.91,
    "gem-miner": 92.89,
    "moefication": 92.19,
    "clustering": 93.01,
    "fusion": 93.23,
    "fusion + layer-wise": 93.79,
}
_MOST_SEEDS = 1000  # nobody will run more
# What is claimed: label of ours -> percent of the full model's score that it keeps, and by whom.
CLAIMS = {"fusion": (98.5, "the paper's claim"), "ntk-match + layer-wise": (99.5, "our aim")}


def verdict_on(records: list[dict[str, Any]]) -> str:
    """Whether what is claimed holds, by task and, once all seeds have run, for the mean of the tasks, seed by seed.

    Two standard errors over the seeds on either side of it, or not decided.
    """
    lines = []
    for name, (claim, whose) in CLAIMS.items():
        found = {
            column.title(): (shares(record, name, column), len(record["seeds"]))
            for record in records
            for column in columns(record)
        }
        lines += [f"- {name}, {title}: {judge(one, claim, whose)}" for title, (one, _) in found.items()]
        if all(len(one) == seeds for one, seeds in found.values()):
            means = shares_of_tasks(records, name)
            lines.append(f"- {name}, mean of the {len(found)} tasks: {judge(means, claim, whose)}")
    return "\n".join(lines)


def shares_of_tasks(records: list[dict[str, Any]], name: str) -> list[float]:
    """The mean over the tasks of the share of the full model's score that a method keeps, seed by seed."""
    return mean_shares([(record, column) for record in records for column in columns(record)], name)


def mean_shares(scores: Sequence[tuple[dict[str, Any], ScoreColumn]], name: str) -> list[float]:
    """The mean over columns of records of the share of the full model's score that a method keeps, seed by seed."""
    found = [shares(record, name, column) for record, column in scores]
    return [statistics.mean(tasks) for tasks in zip(*found, strict=True)]


def judge(found: list[float], claim: float, whose: str) -> str:
    """The shares of the seeds against the claim, in words."""
    if len(found) < 2:
        return f"{len(found)} seeds so far, no verdict."
    mean, error = statistics.mean(found), standard_error(found)
    answer = "holds" if mean - 2 * error >= claim else "fails" if mean + 2 * error < claim else "is not decided"
    return (
        f"{mean:.1f} % of the full model's score, standard error {error:.1f} over {len(found)} seeds. "
        f"That it keeps {claim} %, {whose}, {answer}{_more_seeds(found, claim)}."
    )


def judge_difference(found: Sequence[float]) -> str:
    """Paired differences of the seeds in points, in words: more, less, or not decided."""
    if len(found) < 2:
        return f"{len(found)} seeds so far, no verdict."
    mean, error = statistics.mean(found), standard_error(found)
    answer = "more" if mean - 2 * error > 0 else "less" if mean + 2 * error < 0 else "not decided"
    return f"{mean:+.2f} points, standard error {error:.2f} over {len(found)} seeds: {answer}{_more_seeds(found, 0)}."


def standard_error(found: Sequence[float]) -> float:
    """That of the mean over the seeds."""
    return statistics.stdev(found) / len(found) ** 0.5


def _more_seeds(found: Sequence[float], claim: float) -> str:
    """How many seeds put two standard errors between this mean and the claim, where these do not."""
    gap = abs(statistics.mean(found) - claim)
    if gap > 2 * standard_error(found):
        return ""
    seeds = math.ceil((2 * statistics.stdev(found) / gap) ** 2) if gap else math.inf
    return f"; about {seeds:,} seeds would tell" if seeds <= _MOST_SEEDS else f"; {_MOST_SEEDS:,} seeds would not tell"


def paper_order(record: dict[str, Any]) -> str:
    """Whether the methods' order on SST-2 is that of the paper's Table 2, by Kendall's test at 5 %."""
    column = columns(record)[0]
    means = {name: statistics.mean(scores) for name in labels(record) if (scores := column.scores(record, name))}
    shared = [name for name in PAPER_SST2 if name in means]
    if len(shared) < 4:
        return f"Of the methods of the paper's Table 2 {len(shared)} have run so far: too few to compare the order."
    theirs, ours = [PAPER_SST2[name] for name in shared], [means[name] for name in shared]
    return order_of("Table 2", "SST-2 column", theirs, ours)


def order_of(table: str, column: str, theirs: Sequence[float], ours: Sequence[float]) -> str:
    """Whether the methods' order is that of a table of the paper, by Kendall's test at 5 %, in a sentence."""
    tau, word = kendalltau(theirs, ours), "neither confirmed nor refuted"
    if tau.pvalue < 0.05:
        word = "confirmed" if tau.statistic > 0 else "refuted"
    return (
        f"The order of the paper's {table} is {word}: Kendall's tau between its {column} and ours, "
        f"over the {len(ours)} methods in both, is {tau.statistic:.2f} (p = {tau.pvalue:.2f}; "
        "1 is the same order, 0 none in common)."
    )
