"""A pico model with a tokenizer, and a task for it: in memory, and as files of one's own."""

import json
from pathlib import Path

import pytest
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
