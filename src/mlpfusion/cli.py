"""The command line: every command of `COMMANDS` as one of click, its errors and its output."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import click

from mlpfusion.commands.command import Command, not_told
from mlpfusion.commands.models import compress, distill, export, slice_heads, sparsify, tune
from mlpfusion.commands.results import compare, dynamics, evaluate, inspect, measure, methods, report, reproduce
from mlpfusion.commands.tools import autoload
from mlpfusion.commands.tools import run as run_tool
from mlpfusion.demo import command as demo
from mlpfusion.errors import InputError
from mlpfusion.options.fields import from_plain, read_values
from mlpfusion.options.flags import given_values, merged, parameters
from mlpfusion.progress import Progress
from mlpfusion.report.errors import reported_errors

COMMANDS = (
    inspect.COMMAND,
    compress.COMMAND,
    compare.COMMAND,
    measure.COMMAND,
    evaluate.COMMAND,
    methods.COMMAND,
    demo.COMMAND,
    tune.COMMAND,
    sparsify.COMMAND,
    slice_heads.COMMAND,
    distill.COMMAND,
    export.COMMAND,
    dynamics.COMMAND,
    reproduce.COMMAND,
    report.COMMAND,
    run_tool.COMMAND,
    autoload.COMMAND,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mlpfusion")
@click.option("--debug", is_flag=True, envvar="MLPFUSION_DEBUG", help="Show where in the program an error came up.")
@click.option("-v", "--verbose", count=True, help="Say on stderr what is done; twice: every step of it.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress; warnings and results stay.")
def main(debug: bool, verbose: int, quiet: bool) -> None:
    """Makes the MLPs of language models narrower in one shot, without data, and keeps how they fine-tune.

    \b
    Start with:  mlpfusion demo
    Then:        mlpfusion inspect MODEL
                 mlpfusion compress MODEL OUT --layers last:8 --keep-ratio 0.25
    """


def click_command(command: Command) -> click.Command:
    """Returns the command with its flags; called, it runs the work and prints the result."""
    flags = parameters(command.options, in_file=command.takes_file)
    if command.takes_file:
        flags.append(click.Option(["--config"], metavar="FILE", help="YAML with the same fields; flags win over it."))
        flags.append(click.Option(["--recipe"], metavar="FILE", hidden=True, help="The same: its older name."))
    if command.has_json:
        flags.append(click.Option(["as_json", "--json"], is_flag=True, help="Print the result as JSON."))
    return click.Command(
        command.name,
        params=flags,
        callback=click.pass_context(lambda context, /, **_: _run(command, context)),
        help=command.options.__doc__,
        short_help=command.summary,
        options_metavar=command.usage,
    )


def _run(command: Command, context: click.Context) -> None:
    with reported_errors(command.go_on):
        options = _options(command, context)
        with _told(command, context) as progress:
            result = command.run(options, progress)
        if result is None:
            return
        if context.params.get("as_json"):
            click.echo(_json(result))
        else:
            command.show(result, options)


def _options(command: Command, context: click.Context) -> Any:
    """The options that were typed, over those in a file."""
    typed = given_values(command.options, context)
    in_file: dict[str, Any] = {}
    for name in ("recipe", "config"):
        if context.params.get(name) is not None:
            in_file |= read_values(Path(context.params[name]), name)
    return from_plain(command.options, merged(in_file, typed))


@contextmanager
def _told(command: Command, context: click.Context) -> Iterator[Progress]:
    """The progress of a command: a bar; with --verbose lines of the logger instead; with --quiet nothing."""
    asked = context.find_root().params
    if asked.get("quiet") and asked.get("verbose"):
        raise InputError("`quiet` and `verbose` must not be given together")
    if asked.get("verbose"):
        from mlpfusion.progress import shown_progress
        from mlpfusion.report.terminal.console import logged_lines

        with logged_lines(logging.INFO if asked["verbose"] == 1 else logging.DEBUG):
            yield shown_progress(None)
    elif command.title and not asked.get("quiet"):
        from mlpfusion.report.terminal.console import progress_bar

        with progress_bar(command.title) as progress:
            yield progress
    else:
        yield not_told


def _json(result: Any) -> str:
    """A record, or several, as JSON."""
    if isinstance(result, list):
        return json.dumps([asdict(one) for one in result], indent=2)
    return json.dumps(asdict(result) if is_dataclass(result) and not isinstance(result, type) else result, indent=2)


for _command in COMMANDS:
    main.add_command(click_command(_command))
