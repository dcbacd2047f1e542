"""A pico model with a tokenizer, and a task for it: in memory, and as files of one's own."""

import json
from pathlib import Path

import pytest
from command import call
from tiny_task import TASK, examples, save_checkpoint, sentences, tiny_tokenizer

from mlpfusion.tasks.encode import EncodedTask, encode_task
from mlpfusion.tasks.load import TaskData


@pytest.fixture
def task() -> EncodedTask:
    data = TaskData(TASK, examples(96, 0), {"validation": examples(40, 1)}, "made up")
    return encode_task(data, tiny_tokenizer(), max_length=16)


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path]:
    """The same task as files of one's own."""
    paths = tmp_path / "train.jsonl", tmp_path / "validation.jsonl"
    for path, count, seed in zip(paths, (96, 40), (0, 1), strict=True):
        rows = [{"sentence": text, "label": label} for text, label in zip(*sentences(count, seed), strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return save_checkpoint(tmp_path / "model")


@pytest.fixture
def data(files) -> list[object]:
    """The flags of `mlpfusion tune` for these files."""
    train, validation = files
    columns = ["--text-column", "sentence", "--label-column", "label", "--max-length", 16]
    speed = ["--batch-size", 16, "--epochs", 2, "--device", "cpu", "--learning-rate", "2e-3"]
    return ["--train", train, "--validation", validation, *columns, *speed]


@pytest.fixture
def fused(checkpoint, tmp_path) -> Path:
    """The model, two layers fused."""
    folder = tmp_path / "fused"
    assert call("compress", checkpoint, folder, "--layers", "last:2", "--keep-ratio", 0.25).exit_code == 0
    return folder
