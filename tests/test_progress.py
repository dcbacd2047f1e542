"""What a run says while it works: to a callback, a bar of tqdm, the logger `mlpfusion`, the command line."""

import logging

import pytest
from command import call, refused
from pico import pico_model
from tqdm import auto

import mlpfusion
from mlpfusion.progress import shown_progress


class Drawn(auto.tqdm):
    """A bar that remembers what it showed."""

    shown: list[tuple[str, int, int]] = []  # noqa: RUF012, of all bars

    def refresh(self, *args, **named):
        self.shown.append((self.desc, self.n, self.total))
        return super().refresh(*args, **named)


@pytest.fixture
def drawn(monkeypatch) -> list[tuple[str, int, int]]:
    monkeypatch.setattr(auto, "tqdm", Drawn)
    monkeypatch.setattr(Drawn, "shown", [])
    return Drawn.shown


@pytest.fixture
def checkpoint(tmp_path):
    pico_model("bert").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_true_shows_a_bar_of_the_blocks(drawn):
    mlpfusion.compress(pico_model("bert"), mlpfusion.Fusion(), layers="last:2", width=14, progress=True)
    told = [one for one in dict.fromkeys(drawn) if one[0]]
    assert told == [("encoder.layer.1: ", 0, 2), ("encoder.layer.2: ", 1, 2)]
    assert drawn[-1][1:] == (2, 2)


def test_every_stage_has_a_bar_of_its_own(drawn):
    tell = shown_progress(True)
    for done, total in ((0, 2), (1, 2), (0, 2), (1, 2), (0, 5)):  # the first two stages do not say that they are over
        tell(done, total, "here")
    assert [one[1:] for one in drawn if one[0]] == [(0, 2), (1, 2), (0, 2), (1, 2), (0, 5)]


@pytest.mark.parametrize("progress", [None, False])
def test_without_it_nothing_is_shown(progress, drawn, capsys):
    mlpfusion.compress(pico_model("bert"), mlpfusion.Fusion(), width=14, progress=progress)
    assert drawn == []
    assert capsys.readouterr() == ("", "")


def test_a_callback_gets_what_the_logger_says(caplog):
    calls = []
    with caplog.at_level(logging.DEBUG, logger="mlpfusion"):
        mlpfusion.compress(
            pico_model("bert"), mlpfusion.Fusion(), layers="last:2", width=14, progress=lambda *told: calls.append(told)
        )
    assert calls == [(0, 2, "encoder.layer.1"), (1, 2, "encoder.layer.2"), (2, 2, "")]
    first, second, last = caplog.records
    assert (first.levelname, first.getMessage()) == ("DEBUG", "0 of 2: encoder.layer.1")
    assert (second.levelname, second.getMessage()) == ("DEBUG", "1 of 2: encoder.layer.2")
    assert last.levelname == "INFO"
    assert last.getMessage().startswith("compressed 2 blocks by fusion: 29448 -> 23988 parameters, ")


def test_the_logger_is_silent_by_itself(capsys):
    mlpfusion.compress(pico_model("bert"), mlpfusion.Fusion(), width=14)
    logger = logging.getLogger("mlpfusion")
    assert any(isinstance(handler, logging.NullHandler) for handler in logger.handlers)
    assert capsys.readouterr() == ("", "")


def test_verbose_says_what_is_done_and_twice_every_step(checkpoint, tmp_path):
    before = list(logging.getLogger("mlpfusion").handlers)
    lines = {}
    for flags in ((), ("-v",), ("-vv",)):
        done = call(*flags, "compress", checkpoint, tmp_path / f"out{len(lines)}", "--width", 14)
        assert done.exit_code == 0, done.output
        lines["".join(flags)] = done.stderr
    assert lines[""] == ""
    for words in (f" opened {checkpoint}, a bert", " compressed 3 blocks by fusion", f" wrote {tmp_path / 'out1'}"):
        assert words in lines["-v"]
    assert "1 of 3: encoder.layer.1" not in lines["-v"]
    assert lines["-vv"].count("1 of 3: encoder.layer.1") == 1
    assert logging.getLogger("mlpfusion").handlers == before
    assert logging.getLogger("mlpfusion").level == logging.NOTSET


def test_quiet_shows_no_progress(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("mlpfusion.report.terminal.console.progress_bar", lambda title: pytest.fail("a bar"))
    done = call("--quiet", "compress", checkpoint, tmp_path / "out", "--width", 14)
    assert done.exit_code == 0, done.output
    assert "is complete" in done.stdout
    assert "must not be given together" in refused("-q", "-v", "methods")


def test_a_hostile_name_is_one_line(checkpoint, tmp_path):
    done = call("-v", "compress", checkpoint, tmp_path / "out\n\x1b[31m", "--width", 14)
    assert done.exit_code == 0, done.output
    assert "wrote" in done.stderr
    assert "\x1b" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if "wrote" in line and "\\n" in line]) == 1
