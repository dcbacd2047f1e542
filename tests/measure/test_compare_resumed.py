"""`compare` killed and started again: no layer that was complete with a seed is repeated, the record is the same."""

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import call, refused
from kill import fork_server, run
from tiny_task import save_checkpoint, write_files

from mlpfusion.compression.calibration.traces import trace_calibration
from mlpfusion.compression.compress import compress
from mlpfusion.measure import comparison

METHODS = ("fusion", "maintain-output")
LAYERS, SEEDS = (0, 2), (0, 1)


@pytest.fixture
def compared(tmp_path) -> Callable[..., list[object]]:
    """The words of a command, of its output folder and further flags: two methods, two layers, two seeds."""
    model, (_, texts) = save_checkpoint(tmp_path / "model"), write_files(tmp_path)
    data = ["--data", texts, "--column", "sentence", "--max-samples", 6, "--calibration-samples", 5]
    flags = ["--methods", ",".join(METHODS), "--layers", "0,2", "--seeds", "0,1"]
    return lambda out, *more: ["compare", model, *data, *flags, *([] if out is None else ["--out", out]), *more]


class Work:
    """Counts the cuts and the traces, and interrupts the cut number `until`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.cuts, self.traced, self.until = list[tuple[str, int]](), list[int](), 0
        monkeypatch.setattr(comparison, "compress", self._cut)
        monkeypatch.setattr(comparison, "trace_calibration", self._traced)

    def _cut(self, model: Any, method: Any, *, layers: str, seed: int, **more: Any) -> Any:
        self.cuts.append((layers, seed))
        if len(self.cuts) == self.until:
            raise KeyboardInterrupt
        return compress(model, method, layers=layers, seed=seed, **more)

    def _traced(self, model: Any, sites: Any, batches: Any, seed: int, *more: Any) -> Any:
        self.traced.append(seed)
        return trace_calibration(model, sites, batches, seed, *more)

    def start_again(self, until: int = 0) -> None:
        self.cuts, self.traced, self.until = [], [], until


def without_clock(text: str) -> str:
    return re.sub(r'"seconds": [^,]*', "", text)


def interrupted(words: list[object], work: Work, until: int) -> None:
    work.start_again(until)
    result = call(*words)
    assert result.exit_code == 130, result.output
    assert "The same command with the same --out goes on where it was." in result.stderr
    work.start_again()


def test_an_interrupted_comparison_goes_on_where_it_was(compared, tmp_path, monkeypatch):
    work = Work(monkeypatch)
    whole = call(*compared(None, "--json"))
    interrupted(compared(tmp_path / "out"), work, until=6)  # in the second cut of the third part
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / "out.unfinished").glob("seed-*/complete"))) == 2
    assert call(*compared(tmp_path / "out")).exit_code == 0
    assert work.cuts == [(str(layer), 1) for layer in LAYERS for _ in METHODS]
    assert work.traced == [1]
    record = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert without_clock(json.dumps(record)) == without_clock(json.dumps(json.loads(whole.stdout)))
    assert [(row["seed"], row["error"]["layer"], row["method"]) for row in record["rows"]] == [
        (seed, layer, method) for seed in SEEDS for layer in LAYERS for method in METHODS
    ]
    assert {path.name for path in tmp_path.glob("*out*")} == {"out"}


def test_without_out_nothing_is_kept(compared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    work, before = Work(monkeypatch), set(tmp_path.rglob("*"))
    work.until = 6
    assert call(*compared(None)).exit_code == 130
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--keep-ratio", 0.5], "`--keep-ratio` must be 0.25 to resume the run in"),
        (["--methods", "maintain-output"], "`--methods` must be ['fusion', 'maintain-output'] to resume"),
        (["--max-samples", 5], "`--data` must be"),
    ],
)
def test_another_comparison_is_not_resumed(flags, message, compared, tmp_path, monkeypatch):
    interrupted(compared(tmp_path / "out"), Work(monkeypatch), until=3)
    assert message in refused(*compared(tmp_path / "out", *flags))
    assert (tmp_path / "out.unfinished").is_dir()


def test_other_texts_and_another_model_are_told_and_overwrite_starts_anew(compared, tmp_path, monkeypatch):
    work = Work(monkeypatch)
    interrupted(compared(tmp_path / "out"), work, until=3)
    texts = tmp_path / "validation.jsonl"
    known = texts.read_text()
    texts.write_text("".join(reversed(known.splitlines(keepends=True))))
    assert "`--data` must be" in refused(*compared(tmp_path / "out"))
    texts.write_text(known)
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace('"hidden_act": "gelu"', '"hidden_act": "relu"'))
    assert "MODEL must be" in refused(*compared(tmp_path / "out"))
    assert call(*compared(tmp_path / "out", "--overwrite")).exit_code == 0
    assert len(work.cuts) == 8


@pytest.mark.filterwarnings("default::mlpfusion.errors.DamageWarning")
def test_a_damaged_part_is_made_again(compared, tmp_path, monkeypatch):
    work = Work(monkeypatch)
    interrupted(compared(tmp_path / "out"), work, until=5)
    rows = sorted((tmp_path / "out.unfinished").glob("seed-*/rows.json"))
    assert len(rows) == 2
    rows[0].write_text(rows[0].read_text().replace("0", "1"))
    result = call(*compared(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert "is not what was written (rows.json has other bytes): it is made again" in result.stderr
    assert len(work.cuts) == 6


def command(arguments: list[str]) -> None:
    """In the child."""
    from mlpfusion.cli import main

    main(arguments)


@pytest.mark.slow
def test_a_killed_comparison_ends_in_the_record_of_an_unbroken_one(compared, tmp_path):
    server = fork_server("mlpfusion.measure.comparison", "mlpfusion.report.terminal.results")

    def done(folder: Path, moment: int) -> tuple[int, int]:
        folder.mkdir(exist_ok=True)
        return run(server, command, ([str(word) for word in compared(folder / "out")],), folder, moment)

    code, moments = done(tmp_path / "whole", 0)
    assert code == 0
    kept = set[int]()
    for share in (0.4, 0.8):
        folder = tmp_path / f"killed-{share}"
        assert done(folder, round(share * moments))[0] == -signal.SIGKILL
        kept.add(len(list(folder.glob("out.unfinished/seed-*/complete"))))
        if not (folder / "out").exists():
            assert done(folder, 0)[0] == 0
        for name in ("comparison.json", "comparison.md"):
            whole, found = ((place / "out" / name).read_text() for place in (tmp_path / "whole", folder))
            assert without_clock(found) == without_clock(whole)
    assert kept & {1, 2, 3}  # of four
