"""A small grid on the words of the tiny task."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_task import save_checkpoint, sentences

SMALL = {
    "title": "A small grid",
    "tasks": ["sst2"],
    "methods": ["full", "fusion", "ntk-match+layerwise"],
    "layers": ["last:1"],
    "learning_rate": [1e-3],
    "seeds": [0, 1],
    "epochs": 2,
    "batch_size": 16,
    "max_length": 16,
    "calibration_samples": 8,
    "device": "cpu",
}


@pytest.fixture
def glue(tmp_path, monkeypatch) -> Path:
    """SST-2 and MRPC with the words of the tiny task, where the code looks for them."""
    for task, columns_ in (("SST-2", ("sentence",)), ("MRPC", ("sentence1", "sentence2"))):
        folder = tmp_path / "data" / "glue" / task
        folder.mkdir(parents=True)
        for split, count, seed in (("train", 64, 0), ("validation", 40, 1)):
            texts, answers = sentences(count, seed)
            rows = [
                dict.fromkeys(columns_, text) | {"label": label} for text, label in zip(texts, answers, strict=True)
            ]
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{split}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    monkeypatch.setenv("MLPFUSION_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def recipe(tmp_path, glue) -> Any:
    """Writes a recipe; a function of what is different."""
    model = save_checkpoint(tmp_path / "model")

    def write(**changed: Any) -> Path:
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump(SMALL | {"model": str(model)} | changed))
        return path

    return write
