"""What the curves of recovery at base size say of the paper's claims, seed by seed."""

import statistics
from typing import Any

from mlpfusion.report.grid.columns import ScoreColumn
from mlpfusion.report.grid.recovery import recovery, recovery_columns, recovery_tables
from mlpfusion.report.grid.tables import shares
from parts.verdict import CLAIMS, judge, judge_difference

FUSION = "fusion"
# Pairs of rows that differ in what is asked: label, label, question.
PAIRS = (
    (FUSION, "clustering", "P beside the weights over its root in them"),
    (FUSION, "folded-fusion", "P beside the weights over P in them"),
    ("ntk-match", FUSION, "neurons fitted to text over centroids"),
)


def base_size_tables(record: dict[str, Any]) -> str:
    """For every cut: the scores after some steps, and when the full model's last score is nearly reached."""
    return "\n\n".join(f"{table.caption}:\n\n{table.markdown()}" for table in recovery_tables(record))


def base_size_claims(record: dict[str, Any]) -> str:
    """The share of the score, what P does, and what more layers and fewer neurons cost."""
    cuts = recovery_columns(record)
    lines = []
    for cut in cuts:
        lines.append(f"fusion, {cut.title()}: {judge(shares(record, FUSION, cut), *CLAIMS[FUSION])}")
    for first, second, question in PAIRS:
        for cut in cuts:
            one, other = (heights(record, label, cut) for label in (first, second))
            found = [a - b for a, b in zip(one, other, strict=True)]
            lines.append(f"{question}, {cut.title()}, mean over the steps: {judge_difference(found)}")
    return "\n".join(f"- {line}" for line in lines)


def heights(record: dict[str, Any], label: str, cut: ScoreColumn) -> list[float]:
    """The mean of a curve over its steps, seed by seed: the higher, the sooner it rises."""
    scores = [seeds for _, seeds in recovery(record, label, cut)]
    return [statistics.mean(one) for one in zip(*scores, strict=True)]
