"""A pico model with a tokenizer, and a task for it: in memory, and as files of one's own."""

from pathlib import Path

import pytest
from tiny_task import make_task, save_checkpoint, write_files

from mlpfusion.tasks.encode import EncodedTask


@pytest.fixture
def task() -> EncodedTask:
    return make_task()


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path]:
    """The same task as files of one's own."""
    return write_files(tmp_path)


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return save_checkpoint(tmp_path / "model")
