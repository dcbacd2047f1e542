"""The methods in words, from the tables and the configs' docstrings."""

import re
from dataclasses import dataclass, fields

from rich.table import Table

from mlpfusion.errors import InputError, shown
from mlpfusion.kinds.table import kind_of_outcome
from mlpfusion.methods.names import method_name
from mlpfusion.methods.table import METHODS
from mlpfusion.report.terminal.console import PlainConsole, bold


@dataclass(frozen=True)
class MethodEntry:
    """One method: name on the command line, config, kind of outcome, needed data."""

    name: str
    config: type
    kind: str
    needs: str

    @property
    def summary(self) -> str:
        """First line of the config's docstring."""
        return (self.config.__doc__ or "").strip().splitlines()[0]


@dataclass(frozen=True)
class OptionEntry:
    """One option of a method: type, default, and its sentence in the docstring."""

    name: str
    kind: str
    default: str
    sentence: str


def method_entries() -> list[MethodEntry]:
    """All methods, in the order of the tables."""
    needs = {"nothing": "nothing", "inputs": "texts, or --data-free", "labels": "a task"}
    return [
        MethodEntry(method_name(config), config, kind_of_outcome(method.makes).name, needs[method.sees])
        for config, method in METHODS.items()
    ]


def option_entries(config: type) -> list[OptionEntry]:
    """Options of a method, each with its sentence in the config's docstring."""
    docstrings = [(base.__doc__ or "").partition(">>>")[0] for base in config.__mro__ if base is not object]
    text = " ".join(" ".join(docstring.split()) for docstring in docstrings)
    sentences = re.split(r"(?<=[.:;])\s+(?=[A-Z`])", text)
    entries = []
    for item in fields(config):
        about = next((sentence for sentence in sentences if f"`{item.name}`" in sentence), "")
        entries.append(OptionEntry(item.name, type(item.default).__name__, str(item.default), about.rstrip(":;")))
    return entries


def print_methods() -> None:
    """Prints one line per method."""
    console = PlainConsole()
    table = Table(box=None, pad_edge=False)
    for column in ("method", "kind", "needs", "what it does"):
        table.add_column(column, no_wrap=column != "what it does")
    for entry in method_entries():
        table.add_row(entry.name, entry.kind, entry.needs, entry.summary)
    console.print(table, soft_wrap=False)
    console.print("\n`mlpfusion methods NAME` has the options of one, `mlpfusion compress --method NAME` runs it.")


def print_method(name: str) -> None:
    """Prints the summary and the options of one method. Raises `InputError` for an unknown name."""
    entries = {entry.name: entry for entry in method_entries()}
    if name not in entries:
        raise InputError(f"`name` must be one of {', '.join(entries)}, got {shown(name)}")
    entry, console = entries[name], PlainConsole()
    console.print(bold(entry.name), f"{entry.kind}, needs {entry.needs}; in Python {entry.config.__name__}", sep=": ")
    console.print(entry.summary, highlight=False)
    options = option_entries(entry.config)
    console.print("\nOptions, as in --option NAME=VALUE:" if options else "\nNo options.")
    for option in options:
        console.print(f"  {option.name} ({option.kind}, default {option.default}): {option.sentence}", highlight=False)
