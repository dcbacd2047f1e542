"""The page of architectures, from the records of benchmarks/census.py and benchmarks/round_trips.py."""

from collections.abc import Callable
from typing import Any

from parts.page import markdown

_REASON = 160  # characters of a reason in a table
Row = dict[str, Any]


def _is_found(row: Row) -> bool:
    return row["status"] in ("row", "found")


def _holds_dense(row: Row) -> bool:
    return row["status"] != "unbuilt" and not row["experts"] and row["dense"] > 0


def _is_of_experts(row: Row) -> bool:
    return any(layer.count("{}") > 1 for layer in row["stacks"])


# What the census says of a type -> the types of which it says so; a type belongs to the first that fits.
OUTCOMES: dict[str, Callable[[Row], bool]] = {
    "a row of its own in the table": lambda row: row["status"] == "row",
    "mixture of experts, all of its experts found": lambda row: (
        row["experts"] > 0 and _is_found(row) and row["share"] == 1 and _is_of_experts(row)
    ),
    "mixture of experts, kept in another way: refused": lambda row: row["experts"] > 0,
    "found by shapes, all of its MLPs": lambda row: _is_found(row) and row["share"] == 1,
    "found by shapes, a part of its MLPs: refused": _is_found,
    "has dense MLPs by the rule, not found": _holds_dense,
    "has no dense MLP by the rule": lambda row: row["status"] == "refused",
    "not built: no Auto class loads it, its default config does not hold, or a package is missing": lambda row: True,
}


def outcome(row: Row) -> str:
    return next(name for name, fits in OUTCOMES.items() if fits(row))


def census_summary(record: dict[str, Any]) -> str:
    counts = dict.fromkeys(OUTCOMES, 0)
    for row in record["types"]:
        counts[outcome(row)] += 1
    versions = record["versions"]
    head = f"transformers {versions['transformers']}: what is found in a model of the default config"
    return markdown([head, "types"], [[name, str(count)] for name, count in counts.items()])


def trips_summary(record: dict[str, Any]) -> str:
    rows = record["types"]
    done = [row for row in rows if row["status"] == "done"]

    def of(name: str) -> str:
        tried = [row for row in done if row[name] is not None]
        return f"{sum(row[name] for row in tried)} of {len(tried)}"

    counted = {
        "cut by `fusion`, saved, loaded: the same outputs": f"{len(done)} of {len(rows)}",
        "mixtures of experts among these, the experts cut": str(sum(row["experts"] for row in done)),
        "so by `ntk-match` (of experts without its match), where the whole model runs on made-up inputs": of(
            "calibrated"
        ),
        "folded, loaded without the key: the same outputs, where the config holds the width": of("folded"),
        "so with `stacks=all`, where other stacks are left out": of("other_stacks"),
    }
    return markdown(["tiny models", "types"], [list(item) for item in counted.items()])


def trips_done(record: dict[str, Any]) -> str:
    return ", ".join(f"`{row['model_type']}`" for row in record["types"] if row["status"] == "done") + "."


def trips_missed(record: dict[str, Any]) -> str:
    words = {"refused": "the proof refuses it", "unbuilt": "no tiny model"}
    rows = [row for row in record["types"] if row["status"] != "done"]
    return markdown(
        ["type", "", "why"],
        [[f"`{row['model_type']}`", words[row["status"]], row["reason"][:_REASON].replace("|", "/")] for row in rows],
    )


def went_through(record: dict[str, Any]) -> tuple[int, int]:
    """Types whose tiny model was cut, saved and loaded, and those that were tried."""
    return sum(row["status"] == "done" for row in record["types"]), len(record["types"])


def census_missed(record: dict[str, Any]) -> str:
    missed = ("found by shapes, a part of its MLPs: refused", "has dense MLPs by the rule, not found")
    rows = [row for row in record["types"] if outcome(row) in missed]
    return markdown(
        ["type", "MLP parameters found", "why not all"],
        [[f"`{row['model_type']}`", f"{100 * row['share']:.1f} %", _reason(row)] for row in rows],
    )


def reach(record: dict[str, Any]) -> tuple[int, int]:
    """Types without a row and experts whose dense MLPs are all found, and those that have dense MLPs by the rule."""
    dense = [row for row in record["types"] if _holds_dense(row) and row["status"] != "row"]
    return sum(_is_found(row) and row["share"] == 1 for row in dense), len(dense)


def reach_of_experts(record: dict[str, Any]) -> tuple[int, int]:
    """Types without a row that are mixtures of experts: those whose experts are all found, and all."""
    mixtures = [row for row in record["types"] if row["experts"] and row["status"] != "row"]
    return sum(outcome(row) == "mixture of experts, all of its experts found" for row in mixtures), len(mixtures)


def _reason(row: Row) -> str:
    if row["reason"] is None:
        return f"found: {', '.join(row['stacks'])}"
    seen = row["reason"].partition(f"'{row['model_type']}': ")[2] or row["reason"]
    return seen.partition("; `--architecture")[0][:_REASON].replace("|", "/")
