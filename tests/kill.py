"""Processes that die at a chosen moment: a touch of a file below a folder (opening, renaming, making, removing it).

They are forked from a server that has imported everything, so that each takes a fraction of a second.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

WATCHED = {"open", "os.rename", "os.mkdir", "os.chmod", "os.remove", "os.rmdir", "shutil.copyfile", "shutil.rmtree"}


def fork_server(*modules: str) -> Any:
    """A server with `modules` imported; one that runs already stays as it is."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    return context


def start(
    server: Any, work: Callable[..., object], arguments: tuple[Any, ...], folder: Path, moment: int = 0, **options: Any
) -> tuple[Any, Any]:
    """Runs `work(*arguments)`, killed (by `signum`) at its touch number `moment` of `folder`, if that is not 0.

    Gives the process and the shared number of its touches so far.
    """
    touches = server.Value("i", 0)
    given = (work, arguments, str(folder), moment, touches)
    process = server.Process(target=_run, args=given, kwargs=options)
    process.start()
    return process, touches


def run(
    server: Any, work: Callable[..., object], arguments: tuple[Any, ...], folder: Path, moment: int = 0, **options: Any
) -> tuple[int, int]:
    """Exit code and number of touches of the same, after its end."""
    process, touches = start(server, work, arguments, folder, moment, **options)
    process.join()
    return process.exitcode, touches.value


def _run(
    work: Callable[..., object],
    arguments: tuple[Any, ...],
    folder: str,
    moment: int,
    touches: Any,
    signum: int = signal.SIGKILL,
) -> None:
    def touch(event: str, args: tuple[Any, ...]) -> None:
        if event in WATCHED and any(str(arg).startswith(folder) for arg in args[:2]):
            touches.value += 1
            if touches.value == moment:
                os.kill(os.getpid(), signum)

    sys.addaudithook(touch)
    work(*arguments)
