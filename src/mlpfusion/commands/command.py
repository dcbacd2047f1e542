"""What a command is: options, the work, and what is printed of its result."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlpfusion.progress import Progress

# How to go on with a run that trains after Ctrl-C.
RESUME = "Once it trains, the same command with --resume goes on where it was."
SAME_OUT = "The same command with the same --out goes on where it was."


@dataclass(frozen=True)
class Command:
    """One command of `mlpfusion`; the docstring of `options` is the help, its fields are the flags.

    `run` returns the result, None in a process that another one speaks for (torchrun). `show` prints the result for
    people. `summary` is the line of `mlpfusion --help`. With `title` a bar shows the progress. `usage` shows what is
    needed. `takes_file`: the options can stand in a YAML file. `go_on` says how to go on after Ctrl-C.
    """

    name: str
    summary: str
    options: type
    run: Callable[[Any, Progress], Any]
    show: Callable[[Any, Any], None]
    title: str = ""
    usage: str = "[OPTIONS]"
    takes_file: bool = False
    has_json: bool = True
    go_on: str = ""


def not_told(done: int, total: int, what: str) -> None:
    """The progress of work that is over at once."""
