"""The results in four lines."""

import statistics

from parts.comparison import ERRORS, labelled_rows, means_over_layers
from parts.dynamics import DYNAMICS, DYNAMICS_ON_NEW_SEEDS, over_fusion
from parts.page import read_result
from parts.verdict import shares_of_tasks


def mean_and_error(numbers: list[float]) -> str:
    """A share in percent with its standard error."""
    error = statistics.stdev(numbers) / len(numbers) ** 0.5
    return f"{statistics.mean(numbers):.1f} % ({error:.1f})"


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
    story = read_result("stories260k_cut")
    perplexity = {row["method"]: row["perplexity"] for row in story["rows"] if row["keep_ratio"] == 0.8}
    output, kernel = ratios.values()
    full, matched, fused = story["perplexity"], perplexity["ntk-match"], perplexity["fusion"]
    return "\n".join(
        [
            f"- Errors of a MiniLM layer at 25 %, `ntk-match` over `fusion`: output {output:.2f}, "
            f"Adam kernel {kernel:.2f}.",
            f"- Training, distance of the logits from the full model's: {early:.2f} of that of `fusion` in ten steps, "
            f"{late:.2f} after 100.",
            f"- Scores of four GLUE tasks, over the full model's (standard error): `fusion` {scores['fusion']}, "
            f"`ntk-match` {scores['ntk-match']}.",
            f"- A tiny Llama at 80 % of its width: perplexity {full:.1f} -> {matched:.1f} by `ntk-match` on text, "
            f"{fused:.1f} by `fusion`, without any.",
        ]
    )
