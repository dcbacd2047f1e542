"""`mlpfusion report`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from mlpfusion.commands.command import Command
from mlpfusion.errors import InputError, printable
from mlpfusion.options.fields import argument, option
from mlpfusion.progress import Progress


@dataclass(frozen=True)
class ReportOptions:
    """Puts what was done into one HTML file: the records in every DIR, as tables and charts.

    DIR is what `compress`, `tune`, `distill`, `export` or `reproduce` wrote, what `compare`, `dynamics` or `evaluate`
    wrote by --out, or a record in it. The file loads nothing, neither
    script nor picture, so that it can be sent, kept and printed.
    """

    folders: tuple[str, ...] = argument("DIR...")
    out: str = option("", "The HTML file.", metavar="FILE", required=True)
    overwrite: bool = option(False, "Replace FILE, if it is a report.")


def run(options: ReportOptions, _progress: Progress) -> dict[str, Any]:
    """Writes the report, complete or not at all; returns where it is. Raises `InputError` for a bad record."""
    from mlpfusion.checks import user_path
    from mlpfusion.report.html.page import report
    from mlpfusion.report.html.records import read_records
    from mlpfusion.storage.atomic import new_folders, write_file

    out = user_path("out", options.out)
    _check_out(out, overwrite=options.overwrite)
    records = read_records(options.folders)
    with new_folders(out.parent):
        write_file(out, report(records))
    return {"out": options.out, "records": len(records)}


def _check_out(out: Path, *, overwrite: bool) -> None:
    """Raises `InputError` unless `out` is new, or a report that may be replaced."""
    from mlpfusion.report.html.page import HEAD

    if out.is_dir() or out.is_symlink() or (out.exists() and not out.is_file()):
        raise InputError(f"`out` must be a file, got {out}")
    if not out.exists():
        return
    if not overwrite:
        raise InputError(f"`out` must be new, got {out}; --overwrite replaces it")
    with out.open("rb") as opened:
        if opened.read(len(HEAD)) != HEAD.encode():
            raise InputError(f"`out` must be new or a report, got {out}, which this program did not write")


def show(result: dict[str, Any], options: ReportOptions) -> None:
    """Prints where the report is."""
    from mlpfusion.report.cells import counted

    click.echo(f"{printable(options.out)} shows {counted(result['records'], 'record')}. Open it in a browser.")


COMMAND = Command(
    "report", "One HTML file of what was done.", ReportOptions, run, show, usage="--out FILE.html [OPTIONS]"
)
