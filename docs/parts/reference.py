"""What is read off the code: methods, their options, architectures, commands."""

import textwrap
from typing import Any

from click.testing import CliRunner

from mlpfusion.cli import main as cli
from mlpfusion.report.methods import method_entries, option_entries
from mlpfusion.sites.table import ARCHITECTURES
from parts.census import reach, reach_of_experts, went_through
from parts.page import markdown, read_result

_LINE = 120  # characters of a line of the README


def methods() -> str:
    """The table of methods, each with the first line of its config's docstring."""
    suffixes = {"nothing": "", "a task": ", on the task"}
    rows = []
    for entry in method_entries():
        kind, summary = entry.kind + suffixes.get(entry.needs, ", calibrated"), entry.summary.replace("|", "\\|")
        rows.append([f"`{entry.name}`", f"`{entry.config.__name__}`", kind, summary])
    return markdown(["`--method`", "Python", "kind", "what it does"], rows)


def method_options() -> str:
    """The options of every method that has some, those that one sentence explains in one row."""
    parts = []
    for entry in method_entries():
        sentences: dict[str, list[Any]] = {}
        for option in option_entries(entry.config):
            sentences.setdefault(option.sentence, []).append(option)
        rows = [
            [", ".join(f"`{one.name}`" for one in options), ", ".join(f"`{one.default}`" for one in options), sentence]
            for sentence, options in sentences.items()
        ]
        rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
        if rows:
            parts.append(f"### `{entry.name}`\n\n{markdown(['option', 'default', 'what it does'], rows)}")
    return "\n\n".join(parts)


def architectures() -> str:
    """The model types of the table, and how many others are found."""
    names = ", ".join(f"`{model_type}`" for model_type in ARCHITECTURES)
    census = read_result("census")
    found, dense = reach(census)
    mixed, mixtures = reach_of_experts(census)
    done, tried = went_through(read_result("round_trips"))
    others = (
        f"In others MLPs are found by their shapes: {found} of {dense}, and the [experts](docs/concepts/experts.md) of "
        f"{mixed} of {mixtures}; {done} of {tried} tiny models were cut and loaded ([list](docs/architectures.md))."
    )
    return textwrap.fill(f"{names}. {others}", _LINE, break_on_hyphens=False)


def command_help() -> str:
    """What `--help` prints, for every command."""
    parts = []
    for command in ([], *([name] for name in cli.commands)):
        text = CliRunner().invoke(cli, [*command, "--help"], prog_name="mlpfusion", terminal_width=100).output
        parts.append(f"## {' '.join(['mlpfusion', *command])}\n\n```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts)
