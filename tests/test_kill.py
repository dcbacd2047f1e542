"""`compress` killed at any moment leaves no output folder or a complete one.

One run is counted: every time it touches a file below the output's parent is a moment to die at. Then it is repeated
and killed (SIGKILL, no clean-up) at each of these moments, and at some more that a clock chooses.
"""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from kill import fork_server, run, start
from pico import pico_model

OLD = {"old.txt": b"old"}


def compress(fields: dict[str, Any]) -> None:
    """In the child."""
    from mlpfusion.recipe import Recipe, run_recipe

    run_recipe(Recipe(**fields))


def command(arguments: list[str]) -> None:
    """In the child."""
    from mlpfusion.cli import main

    main(arguments)


@pytest.fixture(scope="module")
def server() -> Any:
    return fork_server("mlpfusion.recipe", "transformers.models.bert.modeling_bert")


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
    code, moments = run(server, compress, (fields | {"out": str(reference / "out")},), reference)
    assert code == 0
    complete = contents(reference / "out")
    assert moments >= 15
    outcomes = []
    for moment in [*range(1, moments + 1), *(0.02 * step for step in range(10))]:
        work = tmp_path / f"killed-{moment}"
        out = work / "out"
        prepare(work, overwrite)
        touch = moment if isinstance(moment, int) else 0
        process, _ = start(server, compress, (fields | {"out": str(out)},), work, touch)
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
    assert run(server, command, (arguments,), work, moment, signum=signal.SIGTERM)[0] == 143
    assert not list(work.iterdir())
