"""`mlpfusion methods`."""

from dataclasses import dataclass

from mlpfusion.commands.command import Command
from mlpfusion.options.fields import argument
from mlpfusion.progress import Progress


@dataclass(frozen=True)
class MethodsOptions:
    """Lists the methods, what each makes of a block and what it needs; of NAME the options and their defaults."""

    name: str | None = argument("NAME", required=False)


def run(options: MethodsOptions, _progress: Progress) -> MethodsOptions:
    """Returns what is asked for: the tables of the methods hold the rest."""
    return options


def show(_result: MethodsOptions, options: MethodsOptions) -> None:
    """Prints it for people."""
    from mlpfusion.report.methods import print_method, print_methods

    print_methods() if options.name is None else print_method(options.name)


COMMAND = Command("methods", "Lists the methods, or the options of one.", MethodsOptions, run, show, has_json=False)
