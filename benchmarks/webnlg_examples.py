"""What every method of an experiment on WebNLG wrote for three entries of the test split.

    python benchmarks/webnlg_examples.py RUNS [--out benchmarks/results/small_table3_examples.json]

RUNS is the folder of `mlpfusion reproduce small-table3 --out RUNS`, finished. The texts are those of the first seed at
the chosen rate, for the first entries with two facts of a category that train has, with four, and with two of a
category that it has not.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from mlpfusion.storage.manifest import read_sealed_json

WANTED = (("SEEN", 2), ("SEEN", 4), ("UNSEEN", 2))  # group, facts
FACT = "<subject>"


def num_facts(entry: dict[str, Any]) -> int:
    """Number of facts in the source of an entry."""
    return entry["source"].count(FACT)


def texts_of(runs: Path, row: dict[str, Any]) -> list[dict[str, Any]]:
    """All lines that one run wrote."""
    lines = (runs / "texts" / row["name"] / "test.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def rows_of(runs: Path, record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Label -> its run with the first seed at the chosen rate, with the name of its file."""
    chosen = {(row["label"], row["seed"], row["learning_rate"]) for row in record["rows"] if row["chosen"]}
    first, rows = record["seeds"][0], {}
    for file in sorted((runs / "runs").glob("*.json")):
        row = read_sealed_json(file)
        if row["seed"] == first and (row["label"], row["seed"], row["learning_rate"]) in chosen and "run" in row:
            rows[row["label"]] = row | {"name": file.stem}
    return {label: rows[label] for label in dict.fromkeys(row["label"] for row in record["rows"]) if label in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/small_table3_examples.json"))
    arguments = parser.parse_args()
    record = json.loads((arguments.runs / "small-table3.json").read_text(encoding="utf-8"))
    written = {label: texts_of(arguments.runs, row) for label, row in rows_of(arguments.runs, record).items()}
    every, entries = next(iter(written.values())), []
    for group, count in WANTED:
        number = next(n for n, one in enumerate(every) if one["group"] == group and num_facts(one) == count)
        texts = {label: lines[number]["text"] for label, lines in written.items()}
        entries.append({"group": group, "facts": every[number]["source"], "texts": texts})
    arguments.out.write_text(json.dumps({"entries": entries}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
