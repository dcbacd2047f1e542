"""`mlpfusion autoload`."""

from dataclasses import dataclass
from pathlib import Path

import click

from mlpfusion.commands.command import Command
from mlpfusion.errors import InputError, shown
from mlpfusion.options.fields import argument
from mlpfusion.progress import Progress


@dataclass(frozen=True)
class AutoloadOptions:
    """Has every Python process of this environment load compressed checkpoints, by any tool; STATE is on or off.

    on writes the file mlpfusion-autoload.pth beside the installed packages, off removes it. Python reads it at its
    start and imports mlpfusion, which waits until transformers is imported: some milliseconds. Where it is not wanted
    in all processes, mlpfusion run does the same for one.
    """

    state: str = argument("STATE")


def run(options: AutoloadOptions, _progress: Progress) -> dict[str, str]:
    """Returns the state and the file. Raises `InputError` for another word."""
    from mlpfusion.launch.autoload import switch_off, switch_on

    if options.state not in ("on", "off"):
        raise InputError(f"`state` must be on or off, got {shown(options.state)}")
    file: Path = switch_on() if options.state == "on" else switch_off()
    return {"state": options.state, "file": str(file)}


def show(result: dict[str, str], options: AutoloadOptions) -> None:
    """Prints what is there now."""
    if result["state"] == "on":
        click.echo(f"{result['file']} is written: every Python of this environment loads compressed checkpoints.")
    else:
        click.echo(f"{result['file']} is not there: a process loads compressed checkpoints after `import mlpfusion`.")


COMMAND = Command("autoload", "Lets every tool of the environment load them, or not.", AutoloadOptions, run, show)
