"""`compress` killed at any moment leaves no output folder or a complete one.

The runs are forked from a server that has imported everything, so that each takes a fraction of a second. One run is
counted: every time it touches a file below the output's parent is a moment to die at. Then it is repeated and killed
(SIGKILL, no clean-up) at each of these moments, and at some more that a clock chooses.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pico import pico_model

OLD = {"old.txt": b"old"}
WATCHED = {"open", "os.rename", "os.mkdir", "os.chmod", "os.remove", "os.rmdir", "shutil.copyfile", "shutil.rmtree"}


def compress_and_die(fields: dict[str, Any], folder: str, moment: int | None, counted: Any) -> None:
    """In the child: compresses, counts its touches of `folder`, and kills itself at number `moment`."""
    from mlpfusion.recipe import Recipe, run_recipe

    def touch(event: str, args: tuple[Any, ...]) -> None:
        if event in WATCHED and any(str(arg).startswith(folder) for arg in args[:2]):
            counted.value += 1
            if counted.value == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(touch)
    run_recipe(Recipe(**fields))


def terminate(arguments: list[str], folder: str, moment: int) -> None:
    """In the child: runs the command line and sends itself SIGTERM at its touch number `moment` of `folder`."""
    from mlpfusion.cli import main

    touches = 0

    def touch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal touches
        if event in WATCHED and any(str(arg).startswith(folder) for arg in args[:2]):
            touches += 1
            if touches == moment:
                os.kill(os.getpid(), signal.SIGTERM)

    sys.addaudithook(touch)
    main(arguments)


@pytest.fixture(scope="module")
def server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlpfusion.recipe", "transformers.models.bert.modeling_bert"])
    return context


def start(server: Any, fields: dict[str, Any], folder: Path, moment: int | None) -> tuple[Any, Any]:
    counted = server.Value("i", 0)
    process = server.Process(target=compress_and_die, args=(fields, str(folder), moment, counted))
    process.start()
    return process, counted


def prepare(work: Path, overwrite: bool) -> None:
    """The folder around `out`, with an old output in it where one is to be overwritten."""
    work.mkdir()
    if overwrite:
        (work / "out").mkdir()
        (work / "out" / "old.txt").write_bytes(OLD["old.txt"])


def contents(folder: Path) -> dict[str, Any]:
    """File name -> bytes; of the record only what does not depend on the clock."""
    found: dict[str, Any] = {file.name: file.read_bytes() for file in folder.iterdir()}
    if "mlp_fusion_record.json" in found:
        record = json.loads(found["mlp_fusion_record.json"])
        found["mlp_fusion_record.json"] = {key: record[key] for key in record if key not in ("seconds", "peak_bytes")}
    return found


@pytest.mark.parametrize("overwrite", [False, True])
def test_compress_killed_at_any_moment_leaves_nothing_or_everything(server, overwrite, tmp_path):
    source, reference = tmp_path / "source", tmp_path / "reference"
    pico_model("bert").save_pretrained(source)
    (source / "vocab.txt").write_text("[PAD]")
    fields = {"model": str(source), "keep_ratio": 0.25, "overwrite": overwrite}
    prepare(reference, overwrite)
    process, counted = start(server, fields | {"out": str(reference / "out")}, reference, None)
    process.join()
    assert process.exitcode == 0
    complete, moments = contents(reference / "out"), counted.value
    assert moments >= 15
    outcomes = []
    for moment in [*range(1, moments + 1), *(0.02 * step for step in range(10))]:
        work = tmp_path / f"killed-{moment}"
        out = work / "out"
        prepare(work, overwrite)
        process, _ = start(server, fields | {"out": str(out)}, work, moment if isinstance(moment, int) else None)
        if isinstance(moment, float):
            time.sleep(moment)
            process.kill()
        process.join()
        if isinstance(moment, int):
            assert process.exitcode == -signal.SIGKILL
        found = contents(out) if out.exists() else None
        assert found in ([None, complete, OLD] if overwrite else [None, complete]), f"killed at {moment}"
        outcomes.append(found == complete)
    assert len(outcomes) >= 20
    assert 0 < sum(outcomes) < len(outcomes)  # some were killed before the folder appeared, some after


@pytest.mark.parametrize("moment", [1, 4, 8, 12])
def test_a_terminated_compress_cleans_up(server, moment, tmp_path):
    source, work = tmp_path / "source", tmp_path / "work"
    pico_model("bert").save_pretrained(source)
    work.mkdir()
    arguments = ["compress", str(source), str(work / "out"), "--keep-ratio", "0.25"]
    process = server.Process(target=terminate, args=(arguments, str(work), moment))
    process.start()
    process.join()
    assert process.exitcode == 143
    assert not list(work.iterdir())
