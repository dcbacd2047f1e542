"""The record of benchmarks/finetune.py as a table."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from parts.page import markdown

MB = 10**6
STOCK, PADDED = "Trainer", "Trainer, padded to 128"
Rows = Sequence[Mapping[str, Any]]


def finetune_table(record: Mapping[str, Any]) -> str:
    """Model, task and loop x seconds, tokens per second, ratios to both Trainers seed by seed, memory, score."""
    lines = []
    for model, task, loop in dict.fromkeys(_names(row) for row in record["rows"]):
        rows = _runs(record, model, task, loop)
        ratios = [_over(_runs(record, model, task, other), rows) for other in (STOCK, PADDED)]
        scores = [100 * next(iter(row["scores"].values())) for row in rows]
        lines.append(
            [
                f"{model}, {task}",
                loop,
                f"{median(map(_seconds, rows)):,.0f}",
                f"{median(row['training_seconds'] for row in rows):,.0f}",
                f"{median(row['tokens'] / row['training_seconds'] for row in rows):,.0f}",
                *ratios,
                f"{median(row['peak_bytes'] for row in rows) / MB:,.0f}",
                f"{median(scores):.1f} ({min(scores):.1f} to {max(scores):.1f})",
            ]
        )
    head = ["model, task", "loop", "seconds", "of them training", "tokens/s", f"{STOCK} takes", f"{PADDED} takes"]
    return markdown([*head, "peak, MB", "score"], lines)


def _names(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["run"]["model"], row["run"]["task"], row["run"]["loop"]


def _runs(record: Mapping[str, Any], model: str, task: str, loop: str) -> list[Mapping[str, Any]]:
    """The runs of one loop by seed."""
    found = [row for row in record["rows"] if _names(row) == (model, task, loop)]
    return sorted(found, key=lambda row: row["run"]["seed"])


def _seconds(row: Mapping[str, Any]) -> float:
    """From the start of the process to the score."""
    return row["start_seconds"] + row["training_seconds"] + row["evaluation_seconds"]


def _over(stock: Rows, rows: Rows) -> str:
    """How many times the seconds of `rows` the other loop takes, the median over the seeds that both have."""
    seconds = {row["run"]["seed"]: _seconds(row) for row in stock}
    shared = [seconds[row["run"]["seed"]] / _seconds(row) for row in rows if row["run"]["seed"] in seconds]
    return f"{median(shared):.1f}x" if shared else "-"
