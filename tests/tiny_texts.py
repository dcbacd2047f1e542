"""Small data for writing texts: the first word of the source, twice."""

import gzip
import json
from pathlib import Path
from typing import Any

from tiny_task import WORDS


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    """A source of one to three words; its text is the first word twice."""
    words = [[WORDS[(start + 7 * index + step) % 12] for step in range(1 + index % 3)] for index in range(count)]
    return [{"source": " ".join(one), "target": f"{one[0]} {one[0]}"} for one in words]


def write_rows(folder: Path, count: int = 180) -> list[object]:
    for name, number, start in (("train", count, 0), ("validation", 20, 12)):
        text = "".join(json.dumps(row) + "\n" for row in rows(number, start))
        (folder / f"{name}.jsonl").write_text(text)
    files = ["--train", folder / "train.jsonl", "--validation", folder / "validation.jsonl"]
    return ["--task", "generation", *files, "--device", "cpu"]


def webnlg_folder(folder: Path, monkeypatch: Any) -> None:
    (folder / "data/webnlg").mkdir(parents=True)
    for split, count in (("train", 40), ("validation", 6), ("test", 6)):
        lines = [
            {
                "category": "A",
                "triples": [[row["source"], "w1", "w2"]],
                "references": [row["target"]],
                "comments": ["good"],
                "seen": index % 2 == 0,
            }
            for index, row in enumerate(rows(count))
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"data/webnlg/{split}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    monkeypatch.setenv("MLPFUSION_DATA", str(folder / "data"))
