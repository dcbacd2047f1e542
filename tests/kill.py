"""Processes that die, are told to stop, or meet an error at a chosen touch of a file.

A touch is a Python call that reaches a file or folder below a watched folder. Each has two moments, before and after
it. The processes are forked, from this one or from a server that has imported everything, so that one takes a fraction
of a second.

    python tests/kill.py --runs 1000 [--seed 0] [--times 0.3] [--without-exchange]

kills `compress --overwrite` so often, at chosen and at random moments, and prints how often OUT was the old folder, the
new one, missing or mixed, and how often the next run did not clean up.
"""

import argparse
import builtins
import errno
import io
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import safetensors.torch
import torch
import transformers
from transformers import modeling_utils

from mlpfusion.commands.command import not_told
from mlpfusion.commands.models.compress import CompressOptions
from mlpfusion.commands.models.compress import run as run_compress
from mlpfusion.options.selection import Selection
from mlpfusion.storage import atomic
from mlpfusion.storage.output import check_output

_CLOCK = re.compile(rb'"(seconds|peak_bytes)": [0-9.e+-]+')
_CALLS: tuple[tuple[Any, str], ...] = (
    *((os, name) for name in ("open", "rename", "replace", "mkdir", "rmdir", "unlink", "remove", "fsync")),
    *((os, name) for name in ("scandir", "chmod", "utime", "link", "symlink", "truncate")),
    (builtins, "open"),
    (io, "open"),
    (Path, "write_text"),
    (Path, "write_bytes"),
    (safetensors.torch, "save_file"),
    (modeling_utils, "safe_save_file"),
    (atomic, "exchange"),
)


@dataclass
class Ending:
    """How a run ends: at which moment (0: never), by which signal, or with which error number."""

    moment: int = 0
    signum: int = signal.SIGKILL
    error: int = 0


@dataclass
class Shim:
    """Counts the moments of this process below `folder`, and ends it at one of them."""

    folder: str
    ending: Ending
    moments: int = 0
    turns: list[int] = field(default_factory=list)  # the moments before and after a rename

    def install(self) -> None:
        """Wraps the calls, in this process for good."""
        for module, name in _CALLS:
            setattr(module, name, self._wrapped(getattr(module, name)))

    def _wrapped(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def touching(*args: Any, **options: Any) -> Any:
            if not self._concerns(args, options):
                return call(*args, **options)
            is_turn = call.__name__ in ("rename", "replace", "exchange")
            self._moment(before=True, is_turn=is_turn)
            result = call(*args, **options)
            self._moment(before=False, is_turn=is_turn)
            return result

        return touching

    def _concerns(self, args: tuple[Any, ...], options: dict[str, Any]) -> bool:
        named = (*args[:2], options.get("dir_fd"), options.get("filename"))
        return any(path_of(value).startswith(self.folder) for value in named)

    def _moment(self, *, before: bool, is_turn: bool) -> None:
        self.moments += 1
        if is_turn:
            self.turns.append(self.moments)
        if self.moments == self.ending.moment:
            if self.ending.error and before:
                raise OSError(self.ending.error, os.strerror(self.ending.error))
            if not self.ending.error:
                os.kill(os.getpid(), self.ending.signum)


def path_of(value: object) -> str:
    """The path that an argument names: itself, or that of an open file; else nothing."""
    try:
        found = os.readlink(f"/proc/self/fd/{value}") if type(value) is int else value
    except OSError:
        return ""
    return os.fsdecode(found) if isinstance(found, str | bytes | os.PathLike) else ""


def without_exchange() -> None:
    """Makes this process one on a system that cannot exchange two names in one step."""

    def missing(one: Path, other: Path) -> None:
        raise OSError(errno.ENOSYS, "no call to exchange two names", str(one), None, str(other))

    atomic.exchange = missing


def forked(
    work: Callable[[], object], folder: Path, ending: Ending, seconds: float | None = None
) -> tuple[int, int, list[int]]:
    """Runs `work` in a fork that ends so, or is killed after `seconds`: exit code, number of moments, turns.

    The code is 0, minus the number of the signal, that of a `SystemExit`, or 1 after an exception.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os._exit(_in_child(work, folder, ending, writer))
    os.close(writer)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    moments, *turns = [int(word) for word in told.split()] or [0]
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), moments, turns


def _in_child(work: Callable[[], object], folder: Path, ending: Ending, writer: int) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background ignores it
    shim, code = Shim(str(folder), ending), 0
    quiet = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(quiet, stream)
    shim.install()
    try:
        work()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except KeyboardInterrupt:
        code = 130
    except BaseException as error:
        code = 1
        if not isinstance(error, OSError):
            traceback.print_exc()
    shim.ending = Ending()
    os.write(writer, " ".join(map(str, [shim.moments, *shim.turns])).encode())
    return code


def contents(folder: Path) -> dict[str, bytes] | None:
    """File name -> bytes (of the record without what hangs on the clock), None without the folder."""
    if not folder.exists():
        return None
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): _CLOCK.sub(b"", path.read_bytes()) for path in files}


@dataclass(frozen=True)
class Played:
    """What `out` was after a run, and whether the next run cleaned up."""

    outcome: str
    clean: bool
    code: int
    moments: int
    turns: list[int]


@dataclass(frozen=True)
class Scene:
    """`work(out)` writes a folder; `old` is what stood there before (None: nothing), `new` what it writes."""

    work: Callable[[Path], object]
    old: Path | None
    new: Path

    def play(self, parent: Path, ending: Ending, seconds: float | None = None) -> "Played":
        """One run in the new folder `parent`, which goes in the end."""
        parent.mkdir()
        out = parent / "out"
        if self.old is not None:
            shutil.copytree(self.old, out)
        code, moments, turns = forked(lambda: self.work(out), parent, ending, seconds)
        outcome = self._outcome(out)
        check_next_run(out)
        clean = [path.name for path in parent.iterdir()] == (["out"] if out.exists() else [])
        if outcome == "missing" and self.old is not None and self._outcome(out) == "old":
            outcome = "brought back"
        shutil.rmtree(parent)
        return Played(outcome, clean, code, moments, turns)

    def _outcome(self, out: Path) -> str:
        found = contents(out)
        if found is None:
            return "missing"
        if self.old is not None and found == contents(self.old):
            return "old"
        return "new" if found == contents(self.new) else "mixed"


def check_next_run(out: Path) -> None:
    """What the next run does first."""
    check_output(out, overwrite=True)


def compress(model: Path, out: Path, width: int = 14) -> None:
    """What `mlpfusion compress MODEL OUT --width WIDTH --overwrite` does."""
    options = CompressOptions(str(model), str(out), selection=Selection(width=width), overwrite=True)
    run_compress(options, not_told)


def compress_scene(folder: Path, *, old: bool = True) -> Scene:
    """`compress --overwrite` of a tiny BERT over a former result; what all runs share is loaded."""
    from pico import pico_model

    torch.set_num_threads(1)
    model = folder / "model"
    pico_model("bert").save_pretrained(model)
    (model / "vocab.txt").write_text("[PAD]")
    compress(model, folder / "old", width=5)
    compress(model, folder / "new")
    return Scene(lambda out: compress(model, out), folder / "old" if old else None, folder / "new")


def fork_server(*modules: str) -> Any:
    """A server with `modules` imported, for work with threads, which a fork of this process does not survive.

    One that runs already stays as it is.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    return context


def start(
    server: Any, work: Callable[..., object], arguments: tuple[Any, ...], folder: Path, moment: int = 0
) -> tuple[Any, Any]:
    """Runs `work(*arguments)` in a fork of the server, killed at its moment number `moment` below `folder` (0: never).

    Gives the process, and a shared number: that of all its moments, once it has come to its end.
    """
    moments = server.Value("i", 0)
    process = server.Process(target=_watched, args=(work, arguments, Shim(str(folder), Ending(moment)), moments))
    process.start()
    return process, moments


def run(
    server: Any, work: Callable[..., object], arguments: tuple[Any, ...], folder: Path, moment: int = 0
) -> tuple[int, int]:
    """Exit code and number of moments of the same, after its end."""
    process, moments = start(server, work, arguments, folder, moment)
    process.join()
    return process.exitcode, moments.value


def _watched(work: Callable[..., object], arguments: tuple[Any, ...], shim: Shim, moments: Any) -> None:
    shim.install()
    try:
        work(*arguments)
    finally:  # a command ends in a SystemExit
        moments.value = shim.moments


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--times", type=float, default=0.3, help="share of the runs killed at a random time")
    parser.add_argument("--without-exchange", action="store_true", help="as on a system without renameat2")
    given = parser.parse_args()
    if given.without_exchange:
        without_exchange()
    random, counts = Random(given.seed), Counter()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        scene = compress_scene(folder)
        start = time.monotonic()
        whole = scene.play(folder / "run", Ending())
        took, moments = time.monotonic() - start, whole.moments
        assert whole.code == 0
        timed = int(given.runs * given.times)
        for run in range(given.runs):
            seconds = random.uniform(0, took) if run < timed else None
            moment = (run - timed) % moments + 1 if run - timed < moments else random.randint(1, moments)
            ending = Ending(0 if seconds is not None else moment)
            found = scene.play(folder / "run", ending, seconds)
            counts[found.outcome] += 1
            counts["left uncleaned"] += not found.clean
            counts["killed alive"] += found.code == -signal.SIGKILL
    print(f"{given.runs} runs ({timed} at random times, {moments} moments a run)")
    for name in ("old", "new", "missing", "brought back", "mixed", "left uncleaned", "killed alive"):
        print(f"  {name:15} {counts[name]:5}")


if __name__ == "__main__":
    main()
