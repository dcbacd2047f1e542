"""`mlpfusion compare`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlpfusion.checks import check_range
from mlpfusion.commands.command import Command
from mlpfusion.errors import InputError, printable
from mlpfusion.options.calibration import CALIBRATION_SAMPLES
from mlpfusion.options.fields import argument, changed, leaves, option, part
from mlpfusion.options.mlps import MLPOptions
from mlpfusion.options.selection import Selection
from mlpfusion.options.task import TaskOptions
from mlpfusion.progress import Progress

if TYPE_CHECKING:
    from mlpfusion.checkpoint.open import Checkpoint
    from mlpfusion.data.measured import Measured
    from mlpfusion.data.unlabelled.calibration_texts import CalibrationSource

# What says that the texts are those of a task; a length is for both.
_OF_TASK = ("validation", *(leaf.name for leaf in leaves(TaskOptions) if leaf.name != "max_length"))


@dataclass(frozen=True)
class CompareOptions:
    """Table 1 of the paper on MODEL: output error and kernel error of every method, one layer cut at a time.

    The texts are those of `data`, or of `task`, by the flags that tune has: its first reported split, without labels.
    Where texts are to be written, a source is read with its text.
    """

    model: str = argument("MODEL")
    data: str | None = option(None, "Texts, one a line, or a table with --column.", metavar="FILE")
    column: str | None = option(None, "Column of a table that holds the text.", metavar="NAME")
    of_task: TaskOptions = part(TaskOptions)
    validation: str | None = option(None, "Data of your own to measure on, of a task.", metavar="FILE")
    max_samples: int = option(256, "Texts to measure on.")
    methods: str = option("all", "all, or names like fusion,fusion:refine=false.", metavar="A[,B..]")
    mlps: MLPOptions = part(MLPOptions)
    layers: str = option("0", "Layers, each of which is cut alone.")
    keep_ratio: float = option(0.25, "Share of the neurons to keep.")
    seeds: str = option("0,1,2", "Each drives the random head and the compression.", metavar="N[,N..]")
    scalar: str = option("logit", "f of the kernel: logit or prob0 (the authors').")
    calibration: str | None = option(
        None, "Texts for calibrated methods: a file, or hub:owner/name[[:config]:split].", metavar="FILE"
    )
    calibration_samples: int = option(CALIBRATION_SAMPLES, "Texts of --calibration to use.")
    authors_quirks: bool = option(False, "Also the numbers of the authors' code, in fields of their own.")
    out: str | None = option(None, "New folder for comparison.json, .md and .png.", metavar="DIR")
    overwrite: bool = option(False, "Replace --out, if a former run wrote all that it holds.")


def run(options: CompareOptions, progress: Progress) -> dict[str, Any]:
    """Returns the record of the comparison, also written to `out`."""
    from mlpfusion.checks import user_path
    from mlpfusion.report.comparison_chart import write_comparison
    from mlpfusion.storage.output import check_output

    if options.out is None:
        return run_comparison(options, progress)
    folder = user_path("out", options.out)
    reads = (options.model, options.data, options.of_task.train, options.validation, options.calibration)
    replaced = check_output(folder, overwrite=options.overwrite, reads=reads)
    record = run_comparison(options, progress)
    write_comparison(record, folder, replaced)
    return record


def run_comparison(options: CompareOptions, progress: Progress) -> dict[str, Any]:
    """Returns the record of `compare_methods` on a checkpoint.

    Everything is checked before the weights are read. Raises `InputError`.
    """
    import torch

    from mlpfusion.checkpoint.open import open_checkpoint
    from mlpfusion.compression.checks import check_cut
    from mlpfusion.data.files.rows import has_columns
    from mlpfusion.measure.approximation import Probe
    from mlpfusion.measure.comparison import compare_methods
    from mlpfusion.measure.method_list import parse_methods, parse_seeds
    from mlpfusion.measure.paper_numbers import last_batch
    from mlpfusion.methods.needs import needs_batches
    from mlpfusion.record import versions
    from mlpfusion.report.comparison import comparison_record

    _check_data(options)
    methods, seeds = parse_methods(options.methods), parse_seeds(options.seeds)
    is_calibrated = any(needs_batches(method) for method in methods)
    if not is_calibrated:
        _check_no_calibration(options)
    tables = [file for file in (options.data, options.calibration) if file is not None and has_columns(file)]
    source = _calibration_source(options, options.column if options.calibration in tables else None)
    Probe(options.scalar)
    column = options.column if options.data in tables or not tables else None
    texts = None if options.data is None else _own_texts(options, column)
    checkpoint = open_checkpoint(options.model, mlps=options.mlps)
    measured = _measured(options, checkpoint, texts)
    empty, seen = checkpoint.empty(), seeds if is_calibrated else []
    check_cut(empty, checkpoint.row, Selection(options.layers, options.keep_ratio))
    prepared = {seed: source.prepare(checkpoint.folder, empty, seed) for seed in seen}
    folder, model = checkpoint.folder, checkpoint.load()
    rows = compare_methods(
        model,
        methods,
        measured.batches,
        layers=options.layers,
        keep_ratio=options.keep_ratio,
        seeds=seeds,
        scalar=options.scalar,
        calibration={seed: one.batches(model, progress) for seed, one in prepared.items()},
        authors_batch=last_batch(folder, texts, model.config) if options.authors_quirks and texts else None,
        architecture=checkpoint.row,
        progress=progress,
    )
    measured_on: dict[str, Any] = {
        "model": Path(options.model).name,
        "data": measured.source,
        "samples": measured.num_texts,
        "layers": options.layers,
        "keep_ratio": options.keep_ratio,
        "scalar": options.scalar,
        "seeds": seeds,
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    if prepared:
        measured_on["calibration"] = prepared[seeds[0]].origin | {"samples": source.num_samples}
    return comparison_record(rows, measured_on)


def _check_data(options: CompareOptions) -> None:
    """Raises `InputError` unless either texts or a task are named, with what belongs to them."""
    told = {name: value for name, value in changed(options).items() if name in _OF_TASK}
    if (options.data is None) == (not told):
        raise InputError("exactly one of `data` and `task` must be given")
    for name in ("new_head", "authors_quirks"):
        if told and changed(options).get(name):
            raise InputError(f"`{name}` must be left out with `task`, got True")
    if told and options.column is not None and options.calibration is None:
        raise InputError(f"`column` must be left out with `task`, got {options.column!r}: a task has its own")
    check_range("max_samples", options.max_samples, 1)


def _own_texts(options: CompareOptions, column: str | None) -> list[str]:
    from mlpfusion.data.files.text import read_texts

    assert options.data is not None
    return read_texts(options.data, column=column, max_samples=options.max_samples)


def _measured(options: CompareOptions, checkpoint: "Checkpoint", texts: list[str] | None) -> "Measured":
    """What is measured on: `texts`, or the texts of the task."""
    from mlpfusion.batch import with_decoder_inputs
    from mlpfusion.checkpoint.tokenizer import token_batches
    from mlpfusion.data.files.rows import short_name
    from mlpfusion.data.measured import Measured, task_texts

    if texts is None or options.data is None:
        return task_texts(checkpoint, options.of_task, options.validation, options.max_samples)
    config, length = checkpoint.config, options.of_task.max_length
    batches = with_decoder_inputs(token_batches(checkpoint.folder, texts, config, max_length=length), config)
    return Measured(batches, short_name(options.data), len(texts))


def _check_no_calibration(options: CompareOptions) -> None:
    """Raises `InputError` for what says how to calibrate."""
    for name, is_given in (
        ("calibration", options.calibration is not None),
        ("calibration_samples", options.calibration_samples != CALIBRATION_SAMPLES),
    ):
        if is_given:
            raise InputError(f"`{name}` must be left out where no method is calibrated, got {options.methods}")


def _calibration_source(options: CompareOptions, column: str | None) -> "CalibrationSource":
    """The file, or without one what `DataFree` makes."""
    from mlpfusion.data.unlabelled.calibration_texts import CalibrationTexts
    from mlpfusion.data.unlabelled.data_free import DataFree

    if options.calibration is None:
        return DataFree(options.calibration_samples)
    return CalibrationTexts.read(options.calibration, column, options.calibration_samples)


def show(record: dict[str, Any], options: CompareOptions) -> None:
    """Prints the tables, and which files there are."""
    from mlpfusion.checks import user_path
    from mlpfusion.report.comparison_chart import COMPARISON_FILES, chart_note
    from mlpfusion.report.terminal.results import print_comparison

    print_comparison(record)
    if options.out is None:
        return
    for file in (user_path("out", options.out) / name for name in COMPARISON_FILES):
        if file.is_file():
            click.echo(f"written: {printable(str(file))}")
    click.echo(chart_note(COMPARISON_FILES[-1]), nl=False)


SUMMARY = "Output and kernel error of every method on MODEL (Table 1)."
COMMAND = Command(
    "compare",
    SUMMARY,
    CompareOptions,
    run,
    show,
    title="Comparing",
    usage="--data FILE | --task NAME [OPTIONS]",
)
