"""What a user is told beside the result: words of advice, and how far a long command is."""

import contextlib
import os
import pty
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command import call
from pico import pico_model
from tiny_task import sentences, tiny_tokenizer

from mlpfusion.report.terminal import console
from mlpfusion.report.terminal.console import progress_bar

FINE_TUNE = "The cut changes what a layer gives out by more than half: fine-tune the model (`mlpfusion tune`) before"


@pytest.fixture
def texts(tmp_path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(sentences(6, 0)[0]))
    return path


@pytest.mark.parametrize("equal", [0, 30])
@pytest.mark.filterwarnings("default::mlpfusion.errors.DegenerateClusteringWarning")
def test_a_degenerate_clustering_is_told_with_the_flag_that_helps(equal, tmp_path):
    model = pico_model("bert")
    mlp = model.encoder.layer[0]
    with torch.no_grad():
        for weight in (mlp.intermediate.dense.weight, mlp.intermediate.dense.bias, mlp.output.dense.weight.T):
            weight[56 - equal :] = weight[-1].clone()
    model.save_pretrained(tmp_path / "model")
    result = call("compress", tmp_path / "model", tmp_path / "out", "--width", 27, "--layers", "0")
    assert result.exit_code == 0, result.output
    told = re.findall("^Warning: the clustering is degenerate at 1 of 1 layers: .*", result.stderr, re.MULTILINE)
    assert len(told) == bool(equal), result.stderr
    assert not equal or "Leave these layers out (often they are the first: `--layers last:N`), keep more" in told[0]


@pytest.mark.parametrize(("keep_ratio", "advised"), [(0.05, True), (1.0, False)])
def test_a_large_change_of_the_output_is_told_with_what_to_do(keep_ratio, advised, texts, tmp_path):
    model = pico_model("bert")
    for layer in model.encoder.layer:
        layer.output.dense.weight.data *= 20  # the MLP is most of what leaves a layer
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    source, out = tmp_path / "model", tmp_path / "out"
    method = ("--method", "random-neurons")
    assert call("compress", source, out, "--keep-ratio", keep_ratio, *method).exit_code == 0
    result = call("measure", source, out, "--data", texts)
    assert result.exit_code == 0, result.output
    assert (FINE_TUNE in " ".join(result.stdout.split())) == advised


def test_without_a_terminal_the_lines_are_half_a_minute_apart(monkeypatch, capsys):
    waits: list[float] = []

    class Clock:
        """An event that lets two waits pass, and then says that it is set."""

        def wait(self, seconds: float) -> bool:
            waits.append(seconds)
            return len(waits) > 2

        def set(self) -> None:
            pass

    monkeypatch.setattr(console.threading, "Event", Clock)
    monkeypatch.setattr(console.threading, "Thread", Inline)
    with progress_bar("Compressing"):
        pass
    assert waits == [30.0, 30.0, 30.0]
    assert capsys.readouterr().err == "Compressing: starting, 0:00:00\n" * 2


class Inline:
    """A thread that runs when it is waited for."""

    def __init__(self, target: Any, daemon: bool):
        self.target = target

    def start(self) -> None:
        pass

    def join(self) -> None:
        self.target()


def read_to_the_end(reader: int) -> str:
    """All that was written to a terminal that is closed by now: what comes after it is an error."""
    parts = []
    with contextlib.suppress(OSError), os.fdopen(reader, "rb", buffering=0) as terminal:
        while part := terminal.read(2**16):
            parts.append(part)
    return b"".join(parts).decode()


def test_in_a_terminal_there_is_a_bar_and_nothing_of_it_is_left(monkeypatch):
    reader, writer = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress_bar("Compressing") as progress:
            progress(1, 3, "layer.1[/x]\x1b[2J")
    shown = read_to_the_end(reader)
    assert "Compressing" in shown
    assert "layer.1[/x]\\x1b[2J" in shown
    assert "1/3" in shown
    assert shown.endswith("\x1b[2K")  # the line is empty again


def test_only_the_first_of_several_processes_tells(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    with progress_bar("Compressing", every=0.0) as progress:
        progress(1, 3, "layer.1")
    assert capsys.readouterr().err == ""
