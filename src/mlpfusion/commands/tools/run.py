"""`mlpfusion run`."""

from dataclasses import dataclass
from typing import NoReturn

from mlpfusion.commands.command import Command
from mlpfusion.options.fields import argument
from mlpfusion.progress import Progress


@dataclass(frozen=True)
class RunOptions:
    """Runs TOOL with its arguments in a process in which transformers loads compressed checkpoints.

    TOOL is a script, or a command or module that is installed, as in `mlpfusion run -- lm_eval --model hf`. Its exit
    code is that of this command, signals reach it. Processes that it starts itself are not covered: see autoload.
    """

    tool: str = argument("TOOL")
    arguments: tuple[str, ...] = argument("ARGUMENTS", required=False, default=())


def run(options: RunOptions, _progress: Progress) -> NoReturn:
    """Becomes the tool. Raises `InputError` for one that is not there."""
    from mlpfusion.launch.tool import run_tool

    run_tool(options.tool, options.arguments)


def show(result: None, options: RunOptions) -> None:
    """Prints nothing: the tool has this process."""


COMMAND = Command(
    "run", "Runs another tool that loads compressed checkpoints.", RunOptions, run, show, usage="--", has_json=False
)
