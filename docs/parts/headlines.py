"""The results in four lines."""

import statistics

from mlpfusion.report.grid.recovery import recovery, recovery_columns
from mlpfusion.report.numbers import FULL
from parts.comparison import ERRORS, labelled_rows, means_over_layers
from parts.dynamics import DYNAMICS, DYNAMICS_ON_NEW_SEEDS, over_fusion
from parts.page import read_result
from parts.verdict import shares_of_tasks, standard_error


def mean_and_error(numbers: list[float]) -> str:
    """A share in percent with its standard error."""
    return f"{statistics.mean(numbers):.1f} % ({standard_error(numbers):.1f})"


def headlines() -> str:
    """The results in four lines."""
    found, ratios = means_over_layers(), {}
    for column in ERRORS:
        ratios[column] = found["ntk-match"][column] / found["fusion"][column]
        others = [means[column] for name, means in found.items() if not name.startswith("ntk-match")]
        assert found["ntk-match"][column] < min(others), f"ntk-match is no longer first in {column}"
    distances = over_fusion(labelled_rows(DYNAMICS) + labelled_rows(DYNAMICS_ON_NEW_SEEDS))
    early, late = (distances[what]["ntk-match"] for what in distances)
    tables = [read_result(f"minilm/{name}") for name in ("minilm-table2", "minilm-table6")]
    scores = {name: mean_and_error(shares_of_tasks(tables, name)) for name in ("fusion", "ntk-match")}
    output, kernel = ratios.values()
    recovered = read_result("mpnet/mpnet-recovery")
    quarter = next(cut for cut in recovery_columns(recovered) if cut.keep_ratio == 0.25)
    names = (FULL, "ntk-match", "ntk-match, no text", "fusion")
    curves = {name: recovery(recovered, name, quarter) for name in names}
    full, matched, blind, fused = (statistics.mean(curve[-1][1]) for curve in curves.values())
    return "\n".join(
        [
            f"- Errors of a MiniLM layer at 25 %, `ntk-match` over `fusion`: output {output:.2f}, "
            f"Adam kernel {kernel:.2f}.",
            f"- Training, distance of the logits from the full model's: {early:.2f} of that of `fusion` in ten steps, "
            f"{late:.2f} after 100.",
            f"- Scores of four GLUE tasks, over the full model's (standard error): `fusion` {scores['fusion']}, "
            f"`ntk-match` {scores['ntk-match']}.",
            f"- MPNet (110 M), all layers at 25 %, accuracy after {curves[FULL][-1][0]} steps: full {full:.1f}, "
            f"`ntk-match` {matched:.1f}, no text {blind:.1f}, `fusion` {fused:.1f}.",
        ]
    )
