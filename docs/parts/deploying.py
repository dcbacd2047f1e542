"""The record of benchmarks/deploy_paths.py as a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from parts.page import markdown

COLUMNS = {
    "trainable (Fusion, NTKMatch)": ("fusion", "ntk-match"),
    "folded, one width": ("folded",),
    "folded, several widths": ("uneven",),
}
METHODS = {"fusion": "Fusion", "ntk-match": "NTKMatch"}


def paths_table(record: Mapping[str, Any]) -> str:
    """Path x form: whether it works, and by how much of their size the outputs differ at most; or why not."""
    rows, lines = record["rows"], []
    for name in dict.fromkeys(row["path"] for row in rows):
        own = [row for row in rows if row["path"] == name]
        models = " and ".join(dict.fromkeys(row["model"] for row in own))
        cells = [_cell([row for row in own if row["form"] in forms]) for forms in COLUMNS.values()]
        lines.append([name, models, *cells])
    return markdown(["path", "tried with", *COLUMNS], lines)


def paths_versions(record: Mapping[str, Any]) -> str:
    """What the paths were tried with."""
    return ", ".join(f"{name} {version}" for name, version in record["versions"].items())


def _cell(rows: Sequence[dict[str, Any]]) -> str:
    """What all rows did; where they did different things, each with the method or model that did."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(_kind(row), []).append(row)
    told = []
    for kind, group in groups.items():
        differences = [row["difference"] for row in group if "difference" in row]
        number = f", {max(differences):.0e}".removesuffix("e+00") if differences else ""
        told.append(f"{'' if len(groups) == 1 else _names(group, rows) + ': '}{kind}{number}")
    return "; ".join(told)


def _kind(row: Mapping[str, Any]) -> str:
    """The outcome in words, without its number."""
    if row["outcome"] == "works":
        return "works, warns" if "warned" in row else "works"
    return f"{row['outcome']}: {row['reason']}" if "reason" in row else row["outcome"]


def _names(group: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> str:
    """What tells the rows of a group from the others: their methods, or their models, or both."""
    for label in (lambda row: METHODS.get(row["form"], ""), lambda row: row["model"]):
        names, others = {label(row) for row in group}, {label(row) for row in rows if row not in group}
        if not names & others:
            return " and ".join(sorted(names))
    return ", ".join(f"{row['model']} {METHODS.get(row['form'], '')}".strip() for row in group)
