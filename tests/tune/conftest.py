"""A pico model with a tokenizer, and a task for it: in memory, and as files of one's own."""

from pathlib import Path

import pytest
from command import call
from tiny_task import make_task, save_checkpoint, write_files

from mlpfusion.data.encode import EncodedTask


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
