"""`mlpfusion compare`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlpfusion.checks import check_given, check_range
from mlpfusion.commands.command import SAME_OUT, Command
from mlpfusion.errors import InputError, printable
from mlpfusion.options.calibration import CALIBRATION_SAMPLES
from mlpfusion.options.fields import argument, bound, changed, leaves, option, part
from mlpfusion.options.mlps import MLPOptions
from mlpfusion.options.selection import Selection
from mlpfusion.options.task import TaskOptions
from mlpfusion.progress import Progress

if TYPE_CHECKING:
    from mlpfusion.batch import Batch
    from mlpfusion.checkpoint.open import Checkpoint
    from mlpfusion.data.measured import Measured
    from mlpfusion.data.unlabelled.calibration_texts import CalibrationSource, PreparedCalibration
    from mlpfusion.measure.comparison import Keeping

# What says that the texts are those of a task; a length is for both.
_OF_TASK = ("validation", *(leaf.name for leaf in leaves(TaskOptions) if leaf.name != "max_length"))


@dataclass(frozen=True)
class CompareOptions:
    """Table 1 of the paper on MODEL: output error and kernel error of every method, one layer cut at a time.

    The texts are those of `data`, or of `task`, by the flags that tune has: its first reported split, without labels.
    Where texts are to be written, a source is read with its text. Killed, and started again with the same --out, it
    repeats no layer that was complete with a seed.
    """

    model: str = argument("MODEL", free=True)
    data: str | None = option(None, "Texts, one a line, or a table with --column.", metavar="FILE", free=True)
    column: str | None = option(None, "Column of a table that holds the text.", metavar="NAME")
    of_task: TaskOptions = part(TaskOptions)
    validation: str | None = option(None, "Data of your own to measure on, of a task.", metavar="FILE", free=True)
    max_samples: int = option(256, "Texts to measure on.")
    methods: tuple[str, ...] = option(("all",), "all, or names like fusion,fusion:refine=false.", metavar="A[,B..]")
    mlps: MLPOptions = part(MLPOptions)
    layers: str = option("0", "Layers, each of which is cut alone.")
    keep_ratio: float = option(0.25, "Share of the neurons to keep.")
    seeds: tuple[int, ...] = option((0, 1, 2), "Each drives the random head and the compression.", metavar="N[,N..]")
    scalar: str = option("logit", "f of the kernel: logit or prob0 (the authors').")
    calibration: str | None = option(
        None,
        "Texts for calibrated methods: a file, or hub:owner/name[[:config]:split].",
        metavar="FILE",
        free=True,
    )
    calibrate_on_train: bool = option(False, "Calibrate on the training split of --task, without its labels.")
    calibration_samples: int = option(CALIBRATION_SAMPLES, "Texts to calibrate on.")
    authors_quirks: bool = option(False, "Also the numbers of the authors' code, in fields of their own.")
    out: str | None = option(None, "New folder for comparison.json, .md and .png.", metavar="DIR", free=True)
    overwrite: bool = option(
        False, "Replace --out (only what a former run wrote), drop an unfinished comparison.", free=True
    )


def run(options: CompareOptions, progress: Progress) -> dict[str, Any]:
    """Returns the record of the comparison, also written to `out`, beside which finished parts are kept."""
    from mlpfusion.checks import user_path
    from mlpfusion.measure.comparison import kept_below, not_kept
    from mlpfusion.report.comparison_chart import COMPARISON_FILES, write_comparison
    from mlpfusion.storage.record_job import RecordJob

    if options.out is None:
        return prepared(options).record(not_kept, progress)
    reads = (options.model, options.data, options.of_task.train, options.validation, options.calibration)
    job = RecordJob(user_path("out", options.out), COMPARISON_FILES[0], options.overwrite, reads)
    job.check()
    comparison, keeping = prepared(options), kept_below(job.folder)
    return job.record(comparison.settings(), lambda: comparison.record(keeping, progress), write_comparison)


@dataclass(frozen=True)
class PreparedComparison:
    """A comparison of which all is checked that can be without the weights."""

    options: CompareOptions
    methods: Sequence[Any]
    checkpoint: "Checkpoint"
    measured: "Measured"
    calibration: Mapping[int, "PreparedCalibration"]
    authors_batch: "Batch | None"

    def settings(self) -> dict[str, Any]:
        """All that the numbers depend on."""
        import torch

        from mlpfusion.batch import batches_sha256
        from mlpfusion.record import versions
        from mlpfusion.storage.unfinished import normalised

        told = bound(self.options) | {"model": self.checkpoint.sha256}
        told |= {"data": batches_sha256(self.measured.batches)}
        told |= {} if self.authors_batch is None else {"last_texts": batches_sha256([self.authors_batch])}
        told |= {"calibration": next((one.origin for one in self.calibration.values()), None)}  # that of every seed
        told |= {"threads": torch.get_num_threads(), "versions": versions()}
        return normalised(told | self.checkpoint.row_for_identity())

    def record(self, keeping: "Keeping", progress: Progress) -> dict[str, Any]:
        """The record of `compare_methods`, with the weights."""
        import torch

        from mlpfusion.measure.comparison import compare_methods
        from mlpfusion.record import versions
        from mlpfusion.report.comparison import comparison_record

        options, model = self.options, self.checkpoint.load()
        rows = compare_methods(
            model,
            self.methods,
            self.measured.batches,
            layers=options.layers,
            keep_ratio=options.keep_ratio,
            seeds=options.seeds,
            scalar=options.scalar,
            calibration={seed: one.batches(model, progress) for seed, one in self.calibration.items()},
            authors_batch=self.authors_batch,
            architecture=self.checkpoint.row,
            keeping=keeping,
            progress=progress,
        )
        measured_on: dict[str, Any] = {
            "model": Path(options.model).name,
            "data": self.measured.source,
            "samples": self.measured.num_texts,
            "layers": options.layers,
            "keep_ratio": options.keep_ratio,
            "scalar": options.scalar,
            "seeds": list(options.seeds),
            "device": str(model.device),
            "threads": torch.get_num_threads(),
            "versions": versions(),
        }
        if self.calibration:
            first = self.calibration[options.seeds[0]]
            measured_on["calibration"] = first.origin | {"samples": options.calibration_samples}
        return comparison_record(rows, measured_on)


def prepared(options: CompareOptions) -> PreparedComparison:
    """The comparison, its weights not yet read. Raises `InputError`."""
    from mlpfusion.checkpoint.open import open_checkpoint
    from mlpfusion.checks import seed_number
    from mlpfusion.compression.checks import check_cut
    from mlpfusion.data.files.rows import has_columns
    from mlpfusion.data.measured import calibration_examples
    from mlpfusion.measure.approximation import Probe
    from mlpfusion.measure.method_list import parse_methods
    from mlpfusion.measure.paper_numbers import last_batch
    from mlpfusion.methods.needs import needs_batches

    _check_data(options)
    for name, given in (("methods", options.methods), ("seeds", options.seeds)):
        check_given(bool(given), name)
    methods = parse_methods(",".join(options.methods))
    seeds = [seed_number("seeds", seed) for seed in options.seeds]
    is_calibrated = any(needs_batches(method) for method in methods)
    if not is_calibrated:
        _check_no_calibration(options)
    Probe(options.scalar)
    tables = [file for file in (options.data, options.calibration) if file is not None and has_columns(file)]
    column = options.column if options.data in tables or not tables else None
    texts = None if options.data is None else _own_texts(options, column)
    of_calibration = _calibration_texts(options, options.column if options.calibration in tables else None)
    checkpoint = open_checkpoint(options.model, mlps=options.mlps)
    measured, empty = _measured(options, checkpoint, texts), checkpoint.empty()
    check_cut(empty, checkpoint.row, Selection(options.layers, options.keep_ratio))
    calibration: dict[int, PreparedCalibration] = {}
    if is_calibrated:
        source = of_calibration or calibration_examples(checkpoint, options.of_task, options.calibration_samples)
        calibration = {seed: source.prepare(checkpoint.folder, empty, seed) for seed in seeds}
    authors_batch = None
    if options.authors_quirks and texts:
        authors_batch = last_batch(checkpoint.folder, texts, checkpoint.config)
    return PreparedComparison(options, methods, checkpoint, measured, calibration, authors_batch)


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
    for name, is_there in (("data", options.data is not None), ("calibration", options.calibration is not None)):
        if options.calibrate_on_train and is_there:
            raise InputError(f"`calibrate_on_train` must be left out with `{name}`, got True")


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
    methods = ",".join(options.methods)
    for name, is_given in (
        ("calibration", options.calibration is not None),
        ("calibration_samples", options.calibration_samples != CALIBRATION_SAMPLES),
    ):
        if is_given:
            raise InputError(f"`{name}` must be left out where no method is calibrated, got {methods}")


def _calibration_texts(options: CompareOptions, column: str | None) -> "CalibrationSource | None":
    """The file, or without one what `DataFree` makes; None for texts of the task."""
    from mlpfusion.data.unlabelled.calibration_texts import CalibrationTexts, check_samples
    from mlpfusion.data.unlabelled.data_free import DataFree

    check_samples(options.calibration_samples)
    if options.calibrate_on_train:
        return None
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
    go_on=SAME_OUT,
)
