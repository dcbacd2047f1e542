"""Streamed cuts that are killed, run out of disk, or share their blocks: the same bytes, and nothing half-written."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
from kill import Ending, contents, forked
from streamed import cut, moments_of, save, steady, stream, text_flags, written_and_interrupted

from mlpfusion.compression.streaming.block_files import BlockFiles


def killed_and_resumed(source: Path, folder: Path, ending: Ending, expected: dict[str, bytes]) -> None:
    """A run that ends so in the new folder `folder` leaves nothing or all of OUT; then it goes on to the same bytes."""
    folder.mkdir()
    out, before = folder / "out", contents(source)
    forked(lambda: stream(source, out), folder, ending)
    assert not out.exists() or steady(out) == expected
    is_over = out.exists() and not (folder / "out.unfinished").exists()
    assert cut(source, out, "--stream", "--overwrite" if is_over else "--resume") == expected
    assert [path.name for path in folder.iterdir()] == ["out"]
    assert contents(source) == before
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("name", "kills"), [("mixtral", 8), pytest.param("mixtral", 100, marks=pytest.mark.exhaustive)]
)
def test_a_killed_run_goes_on_to_the_same_bytes(name, kills, tmp_path):
    source = save(name, tmp_path / "source")
    expected, moments = cut(source, tmp_path / "whole"), moments_of(source, tmp_path / "run")
    random = Random(kills)
    for _ in range(kills):
        killed_and_resumed(source, tmp_path / "run", Ending(random.randint(1, moments)), expected)


def test_a_full_disk_leaves_no_out_and_the_run_goes_on_later(tmp_path):
    source = save("mixtral", tmp_path / "source")
    expected, moments = cut(source, tmp_path / "whole"), moments_of(source, tmp_path / "run")
    for moment in (moments // 3, 2 * moments // 3):
        killed_and_resumed(source, tmp_path / "run", Ending(moment, error=errno.ENOSPC), expected)


def test_finished_blocks_are_not_computed_again(tmp_path, monkeypatch):
    source, out = save("bert", tmp_path / "source"), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(BlockFiles, "write", written_and_interrupted(BlockFiles.write))
        assert stream(source, out).exit_code == 130
    assert not out.exists()
    written, write = [], BlockFiles.write

    def told(files: BlockFiles, number: int, *rest: Any) -> None:
        written.append(number)
        write(files, number, *rest)

    monkeypatch.setattr(BlockFiles, "write", told)
    assert stream(source, out, "--resume").exit_code == 0
    assert written == [1, 2]


def torchrun(source: Path, out: Path, *flags: object, before: str = "") -> subprocess.CompletedProcess[str]:
    """The command by two processes; `before` is code that each runs first."""
    script = out.parent / "command.py"
    script.write_text(f"import os, signal, sys\nfrom mlpfusion import cli\n{before}\nsys.exit(cli.main())\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [script, "compress", source, out, "--keep-ratio", "0.5", "--stream", *flags]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    return subprocess.run(
        [*command, "--max-restarts", "1", *map(str, words)],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


# The second process dies once, after its first block.
DIES = """
from mlpfusion.compression.streaming.block_files import BlockFiles
write = BlockFiles.write
def dying(self, number, *rest):
    write(self, number, *rest)
    if number == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
BlockFiles.write = dying
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "calibrated"), [("", False), (DIES, False), ("", True)], ids=["whole", "killed", "with texts"]
)
def test_two_processes_write_the_same_bytes_also_after_one_died(before, calibrated, tmp_path):
    source = save("mixtral", tmp_path / "source")
    flags = text_flags(source, tmp_path / "texts.txt") if calibrated else ()
    expected, out = cut(source, tmp_path / "whole", *flags), tmp_path / "out"
    result = torchrun(source, out, "--resume", *flags, before=before)
    assert result.returncode == 0, result.stderr
    assert steady(out) == expected
    assert result.stdout.count("is complete") == 1
    assert ("exitcode: -9" in result.stderr) == bool(before)
