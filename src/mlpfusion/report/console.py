"""The console of all commands, on which a name is printed as it is, and progress without a terminal."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from mlpfusion.errors import printable
from mlpfusion.progress import Progress as ProgressCallback

HALF_A_MINUTE = 30.0
_TABLE_WIDTH = 100


class PlainConsole(Console):
    """A console on which text is text: brackets are no markup, control characters get backslashes."""

    def __init__(self, *, stderr: bool = False, soft_wrap: bool = True, width: int | None = None):
        super().__init__(stderr=stderr, soft_wrap=soft_wrap, width=width, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """The text that is printed for a str, in tables too."""
        return super().render_str(printable(text, keep="\n"), **options)


def wide_console() -> PlainConsole:
    """At least as wide as the tables need, so that a narrow terminal breaks lines rather than hides numbers."""
    return PlainConsole(soft_wrap=False, width=max(_TABLE_WIDTH, PlainConsole().width))


def bold(text: str) -> Text:
    """`text` in bold face, control characters with backslashes."""
    return Text(printable(text), style="bold")


@contextmanager
def progress_bar(title: str, every: float = HALF_A_MINUTE) -> Iterator[ProgressCallback]:
    """A callback `(done, total, what)` that moves a bar on stderr.

    Where stderr is no terminal, a line is written there `every` so many seconds. Of several processes the first tells.
    """
    if os.environ.get("RANK", "0") != "0":
        yield lambda done, total, what: None
    elif sys.stderr.isatty():
        with _bar(title) as callback:
            yield callback
    else:
        with _lines(title, every) as callback:
            yield callback


@contextmanager
def _bar(title: str) -> Iterator[ProgressCallback]:
    columns = (
        TextColumn(title, markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=PlainConsole(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def move(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=printable(what))

        yield move


@dataclass
class _State:
    done: int = 0
    total: int = 0
    what: str = ""

    def words(self) -> str:
        number = f"{self.done:,} of {self.total:,}" if self.total else "starting"
        return number + (f", {self.what}" if self.what else "")


@contextmanager
def _lines(title: str, every: float) -> Iterator[ProgressCallback]:
    state, stopped, started = _State(), threading.Event(), time.monotonic()

    def tell() -> None:
        console = PlainConsole(stderr=True)
        while not stopped.wait(every):
            elapsed = timedelta(seconds=round(time.monotonic() - started))
            console.print(f"{title}: {state.words()}, {elapsed}", highlight=False)

    def move(done: int, total: int, what: str) -> None:
        state.done, state.total, state.what = done, total, what

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield move
    finally:
        stopped.set()
        thread.join()
