"""The record of benchmarks/streaming.py as a table."""

from typing import Any

from parts.page import markdown

GIB = 2**30


def streaming_table(rows: list[dict[str, Any]]) -> str:
    """Shape x memory and time of a streamed cut; the hours of all layers are a projection."""
    cells = []
    for row in rows:
        least = row["reading_seconds"] + row["gram_seconds"] + row["writing_seconds"]
        hours = row["processor_seconds"] / row["layers"] * row["layers_of_model"] / 3600
        cells.append(
            [
                row["shape"],
                f"{row['layers']} of {row['layers_of_model']}",
                f"{row['checkpoint_bytes'] / 1e9:.1f} GB",
                f"{row['largest_block_bytes'] / GIB:.2f} GiB",
                f"{row['expected_peak_bytes'] / GIB:.2f} GiB",
                f"{row['peak_anonymous_bytes'] / GIB:.2f} GiB",
                f"{row['processor_seconds'] / least:.1f}",
                f"{hours:.1f} h",
            ]
        )
    head = ["shape of", "layers made", "checkpoint", "one layer's MLPs", "memory said before", "measured"]
    return markdown([*head, "time over the least", "all layers, projected"], cells)


def streamed_summary(record: dict[str, Any]) -> str:
    """How many types have the same bytes streamed and in memory, by dtype."""
    counted = []
    for dtype in ("fp32", "bf16"):
        found = [row[dtype] for row in record["types"]]
        refused = sum(one.startswith("refused alike") for one in found)
        others = f" (refused by both: {refused})" if refused else ""
        counted.append(f"in {dtype} {found.count('same')} of {len(found)}{others}")
    tried = f"Tiny models of {len(record['types'])} types that [go through](../architectures.md)"
    return f"{tried}, the same bytes: {'; '.join(counted)}."
