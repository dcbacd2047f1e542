"""How near a small model stays to the path of the full one while it trains."""

import statistics
from functools import partial
from typing import Any

from mlpfusion.report.dynamics import FIRST, at_step, distance_table, first_steps, loss_table
from mlpfusion.report.numbers import FULL
from parts.comparison import labelled_rows
from parts.page import markdown, read_result

# Record of training dynamics -> the same.
DYNAMICS = {"dynamics": "", "dynamics_pooling": "", "dynamics_1024": ", 1,024 sentences"}
# The same on seeds on which no option was chosen.
DYNAMICS_ON_NEW_SEEDS = {"dynamics_new_seeds": "", "dynamics_new_seeds_1024": ", 1,024 sentences"}


def dynamics() -> str:
    """Method x step: distance of the logits' change from the full model's, of all records; then the training loss."""
    result = read_result("dynamics")
    return f"{distance_table(result | {'rows': labelled_rows(DYNAMICS)})}\n\n{loss_table(result)}"


def over_fusion(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """When -> method -> its mean distance from the full model's path, over that of Fusion."""
    record = {"rows": rows, "measured_at": read_result("dynamics")["measured_at"]}
    names = [name for name in dict.fromkeys(row["label"] for row in rows) if name != FULL]
    found = {}
    for what, number in {f"mean of 1 to {FIRST}": first_steps, "step 100": partial(at_step, step=100)}.items():
        means = {name: statistics.mean(number(record, name=name)) for name in names}
        found[what] = {name: mean / means["fusion"] for name, mean in means.items()}
    return found


def dynamics_over_fusion() -> str:
    """NTKMatch x seeds: its distance over that of Fusion, on the seeds that chose its options, on new ones, on all."""
    chosen_on, new = labelled_rows(DYNAMICS), labelled_rows(DYNAMICS_ON_NEW_SEEDS)
    names = [name for name in dict.fromkeys(row["label"] for row in new) if name not in (FULL, "fusion")]
    parts = {
        ", ".join(map(str, sorted({row["seed"] for row in rows}))): over_fusion(rows)
        for rows in (chosen_on, new, chosen_on + new)
    }
    columns = {
        f"{what}, seeds {seeds}": part[what] for what in next(iter(parts.values())) for seeds, part in parts.items()
    }
    lines = [[name, *(f"{column[name]:.2f}x" for column in columns.values())] for name in names]
    return markdown(["distance over Fusion's", *columns], lines)
