"""The console of all commands, and progress with or without a terminal."""

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from mlpfusion.errors import printable
from mlpfusion.progress import Progress as ProgressCallback

HALF_A_MINUTE = 30.0  # seconds between lines of progress in a log file
_TABLE_WIDTH = 100  # characters of the widest table (`compare`)


class PlainConsole(Console):
    """Console without markup: brackets stay, control characters get backslashes."""

    def __init__(self, *, stderr: bool = False, soft_wrap: bool = True, width: int | None = None):
        super().__init__(stderr=stderr, soft_wrap=soft_wrap, width=width, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Text to print for a str, also in tables."""
        return super().render_str(printable(text, keep="\n"), **options)


def wide_console() -> PlainConsole:
    """Console at least as wide as any table.

    So a narrow terminal breaks lines, and hides no number.
    """
    return PlainConsole(soft_wrap=False, width=max(_TABLE_WIDTH, PlainConsole().width))


def bold(text: str) -> Text:
    """Bold text, control characters with backslashes."""
    return Text(printable(text), style="bold")


@contextmanager
def logged_lines(level: int) -> Iterator[None]:
    """Prints what the logger `mlpfusion` says at `level` and above on stderr, a line each with the time."""
    logger, handler = logging.getLogger("mlpfusion"), _Lines(level)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        click.echo(printable(self.format(record)), err=True)


@contextmanager
def progress_bar(title: str, every: float = HALF_A_MINUTE) -> Iterator[ProgressCallback]:
    """Yields a callback (done, total, what) to move a bar on stderr.

    Without a terminal a line is printed `every` so many seconds. Of several processes only the
    first prints.
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

    def print_lines() -> None:
        console = PlainConsole(stderr=True)
        while not stopped.wait(every):
            elapsed = timedelta(seconds=round(time.monotonic() - started))
            console.print(f"{title}: {state.words()}, {elapsed}", highlight=False)

    def move(done: int, total: int, what: str) -> None:
        state.done, state.total, state.what = done, total, what

    thread = threading.Thread(target=print_lines, daemon=True)
    thread.start()
    try:
        yield move
    finally:
        stopped.set()
        thread.join()
