"""`tune`, `evaluate` and `reproduce` killed again and again: what is resumed ends in the bytes of an unbroken run.

Each chain is a fresh folder and up to three kills: before or after a touch of a file, or at a time of the clock, drawn
from the seed of the chain. MLPFUSION_KILLS is the number of kills of each kind.
"""

import gzip
import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from kill import fork_server, run, start
from tiny_task import save_checkpoint, sentences
from transformers import AutoModelForCausalLM

KILLS = int(os.environ.get("MLPFUSION_KILLS", "6"))
CLOCK = {"seconds", "seconds_per_step", "peak_bytes", "compress_seconds", "sha256"}


def command(arguments: list[str], environment: dict[str, str]) -> None:
    """In the child."""
    from mlpfusion.cli import main

    os.environ.update(environment)
    main(arguments)


@pytest.fixture(scope="module")
def server() -> Any:
    preload = ["mlpfusion.tune.run", "mlpfusion.report.terminal.scores", "mlpfusion.reproduce.schedule", "peft"]
    return fork_server(*preload, "transformers.models.bert.modeling_bert")


def without_clock(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_clock(one) for name, one in value.items() if name not in CLOCK}
    return [without_clock(one) for one in value] if isinstance(value, list) else value


def contents(folder: Path) -> dict[str, Any]:
    """Every file below, hidden ones too, but for tables, cards and charts; JSON without the clock."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {
        name: without_clock(json.loads(path.read_bytes())) if path.suffix == ".json" else path.read_bytes()
        for name, path in files.items()
        if path.suffix not in (".md", ".png")
    }


@dataclass(frozen=True)
class Chains:
    """Runs of one command, killed; `arguments` are those for an output folder."""

    server: Any
    arguments: Callable[[Path], list[str]]
    environment: dict[str, str]
    resume: tuple[str, ...]

    def whole(self, folder: Path) -> tuple[dict[str, Any], int, float]:
        """What an unbroken run leaves, its moments and seconds."""
        folder.mkdir()
        started = time.monotonic()
        code, moments = run(self.server, command, (self.arguments(folder / "out"), self.environment), folder)
        assert code == 0
        return contents(folder), moments, time.monotonic() - started

    def chain(self, folder: Path, draw: random.Random, moments: int, seconds: float) -> int:
        """Up to three kills and a run to the end; the number of processes that died of one."""
        folder.mkdir()
        out, died = folder / "out", 0
        for _ in range(3):
            if self.resume and out.exists() and not out.with_name("out.unfinished").exists():
                return died  # the kill came after all was done, before the process had ended
            moment = draw.randrange(1, moments) if draw.random() < 0.7 else 0
            process, _ = self._start(out, moment)
            if not moment:
                process.join(draw.uniform(0, seconds))
                process.kill()
            process.join()
            if process.exitcode == 0:
                return died
            assert process.exitcode == -signal.SIGKILL
            died += 1
        if not out.exists() or (folder / "out.unfinished").exists() or not self.resume:
            process, _ = self._start(out, 0)
            process.join()
            assert process.exitcode == 0
        return died

    def _start(self, out: Path, moment: int) -> tuple[Any, Any]:
        resumed = [*self.arguments(out), *(self.resume if out.with_name("out.unfinished").exists() else ())]
        return start(self.server, command, (resumed, self.environment), out.parent, moment)

    def check(self, tmp_path: Path) -> None:
        """Kills and resumes until enough died; nothing but the whole result may be left."""
        expected, moments, seconds = self.whole(tmp_path / "whole")
        died, chains = 0, 0
        while died < KILLS:
            chains += 1
            died += self.chain(tmp_path / str(chains), random.Random(chains), moments, seconds)
            found = contents(tmp_path / str(chains))
            # a kill while the work folder is being removed leaves a part of it until the next run
            left = {name for name in found if name not in expected and not name.startswith(".out.unfinished.removed-")}
            assert not left, left
            different = [name for name in expected if found.get(name) != expected[name]]
            assert not different, f"chain {chains}: {different}"
        print(f"{died} kills in {chains} chains")


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(["--seeds", "0,1"], id="plain"),
        pytest.param(["--lora", "r=2", "--epochs", "3"], id="lora"),
        pytest.param(["--dsee", "rank=2,sparse=8", "--epochs", "3"], id="dsee"),
        pytest.param(["--layerwise", "2"], id="layerwise"),
    ],
)
def test_a_killed_tune_ends_in_the_bytes_of_an_unbroken_one(flags, server, checkpoint, fused, data, tmp_path):
    teacher = ["--teacher", str(checkpoint), "--cache", str(tmp_path / "cache")] if "--layerwise" in flags else []

    def arguments(out: Path) -> list[str]:
        return [str(one) for one in ("tune", fused, out, *data, "--save-steps", 2, *flags, *teacher)]

    Chains(server, arguments, {}, ("--resume",)).check(tmp_path)


@pytest.fixture
def writing(tmp_path: Path) -> tuple[Path, list[str]]:
    """A decoder, and the flags of a task for which it writes texts."""
    rows = [{"source": f"w{number} w{number % 5}", "target": f"w{number % 7}"} for number in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = save_checkpoint(tmp_path / "decoder", "gpt2", AutoModelForCausalLM)
    files = ["--validation", str(tmp_path / "rows.jsonl"), "--decode-batch", "3", "--max-new-tokens", "4"]
    return model, ["--task", "generation", *files, "--device", "cpu"]


@pytest.mark.exhaustive
def test_a_killed_tune_that_writes_texts_ends_in_the_same_ones(server, writing, tmp_path):
    model, flags = writing
    training = ["--train", flags[3], "--epochs", "2", "--batch-size", "8", "--save-steps", "2", "--select-on", "last"]

    def arguments(out: Path) -> list[str]:
        return ["tune", str(model), str(out), *flags, *training]

    Chains(server, arguments, {}, ("--resume",)).check(tmp_path)


@pytest.mark.exhaustive
def test_a_killed_evaluate_ends_in_the_texts_of_an_unbroken_one(server, writing, tmp_path):
    model, flags = writing

    def arguments(out: Path) -> list[str]:
        return ["evaluate", str(model), *flags, "--out", str(out)]

    Chains(server, arguments, {}, ()).check(tmp_path)


@pytest.mark.exhaustive
def test_a_killed_reproduce_ends_in_the_record_of_an_unbroken_one(server, checkpoint, tmp_path):
    folder = tmp_path / "data" / "glue" / "SST-2"
    folder.mkdir(parents=True)
    for split, count, seed in (("train", 64, 0), ("validation", 40, 1)):
        rows = [{"sentence": text, "label": label} for text, label in zip(*sentences(count, seed), strict=True)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    recipe = {"title": "x", "tasks": ["sst2"], "methods": ["full", "fusion+layerwise"], "layers": ["last:1"]}
    recipe |= {"learning_rate": [1e-3], "seeds": [0, 1], "epochs": 2, "batch_size": 16, "max_length": 16}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(recipe | {"device": "cpu", "model": str(checkpoint)}))

    def arguments(out: Path) -> list[str]:
        return ["reproduce", str(tmp_path / "small.yaml"), "--out", str(out)]

    Chains(server, arguments, {"MLPFUSION_DATA": str(tmp_path / "data")}, ()).check(tmp_path)
