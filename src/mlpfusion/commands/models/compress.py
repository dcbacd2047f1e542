"""`mlpfusion compress`."""

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mlpfusion.commands.command import Command
from mlpfusion.errors import InputError, shown
from mlpfusion.options.calibration import CalibrationOptions
from mlpfusion.options.fields import argument, changed, option, part
from mlpfusion.options.flags import command_line
from mlpfusion.options.mlps import MLPOptions
from mlpfusion.options.selection import Selection
from mlpfusion.options.task import TaskOptions
from mlpfusion.progress import Progress

if TYPE_CHECKING:
    from mlpfusion.checkpoint.open import Checkpoint
    from mlpfusion.compression.checkpoint import Work
    from mlpfusion.compression.preview.dry_run import DryRun
    from mlpfusion.data.encode import EncodedTask
    from mlpfusion.data.unlabelled.calibration_texts import CalibrationSource
    from mlpfusion.record import Record


@dataclass(frozen=True)
class CompressOptions:
    """Compresses MODEL (a folder, a Hub id or a GGUF file) into the new folder OUT.

    One size must be given: --keep-ratio, --width or --budget. All of it can stand in the file of --config.

    OUT appears complete or not at all. It holds all tensors of MODEL but for the MLPs that were cut, byte for byte, its
    tokenizer, a record of the run, a model card with a chart, and report.html. So do the methods that learn on a task:
    OUT is of MODEL's class, without a head for the task.
    """

    model: str = argument("MODEL")
    out: str = argument("OUT")
    method: str = option("fusion", "Name of a method: `mlpfusion methods` lists them.", metavar="NAME")
    options: dict[str, Any] = option(
        {}, "Of the method: see `mlpfusion methods NAME`.", metavar="NAME=VALUE", flag="--option"
    )
    selection: Selection = part(Selection)
    seed: int = option(0, "Of all random steps.")
    device: str = option("cpu", "cpu or cuda: where the arithmetic is done.")
    revision: str | None = option(None, "Branch, tag or commit of a Hub id.")
    mlps: MLPOptions = part(MLPOptions)
    overwrite: bool = option(False, "Replace OUT, if a former run wrote all that it holds.")
    no_report: bool = option(False, "Write no report.html beside the model.")
    stream: bool = option(False, "Hold one block at a time in memory, not the whole of MODEL.")
    resume: bool = option(False, "With --stream: go on with the unfinished run beside OUT.")
    dry_run: bool = option(False, "Check everything and say what would be written; read no weights, write nothing.")
    texts: CalibrationOptions = part(CalibrationOptions)
    calibration_window: int | None = option(None, "Tokens of a window of a language model, 128 if not given.")
    data_free: bool = option(False, "Calibrate on text that MODEL writes; on random tokens if it is no language model.")
    data: TaskOptions = part(TaskOptions)
    max_train_samples: int | None = option(None, "Random part of train, the same that tune takes.")


def typed_command(options: CompressOptions, model: str) -> str:
    """Returns what one would type, with `model` for the name of the checkpoint."""
    values = {"method": options.method} | changed(options)
    told = {name: value for name, value in values.items() if name not in ("model", "out", "options")}
    return command_line(["mlpfusion", "compress", model, options.out], told | {"option": options.options})


def run(options: CompressOptions, progress: Progress) -> "Record | DryRun | None":
    """Compresses the checkpoint and returns the record, None in a process that another one speaks for (torchrun).

    Of a dry run it returns what would be written. All that can be checked without the weights is checked before they
    are read. Raises `InputError`.
    """
    from mlpfusion.checkpoint.open import open_checkpoint
    from mlpfusion.checks import seed_number, user_path
    from mlpfusion.compression.checkpoint import (
        Work,
        check_device,
        check_source,
        compress_checkpoint,
        learn_checkpoint,
        write_checkpoint,
    )
    from mlpfusion.compression.streaming.run import Unfinished, check_streamed, stream_checkpoint
    from mlpfusion.methods.table import ON_TASK
    from mlpfusion.report.html.beside import about_compressed
    from mlpfusion.storage.output import check_output
    from mlpfusion.storage.unfinished import check_flags

    out = user_path("out", options.out)
    reads = (options.model, options.texts.calibration, options.data.train, options.mlps.architecture)
    check_flags(resume=options.resume, overwrite=options.overwrite)
    if options.resume and not options.stream:
        raise InputError("`resume` must be left out without `stream`")
    if options.resume and options.dry_run:
        raise InputError("`resume` must be left out with `dry_run`")
    replaced = None if options.resume else check_output(out, overwrite=options.overwrite, reads=reads)
    method = _method(options)
    seed_number("seed", options.seed)
    if options.stream:
        check_streamed(method, options.selection, data_free=options.data_free)
    texts = None
    if type(method) in ON_TASK:
        _check_learning(options)
    else:
        options.selection.check_size_given()
        texts = _calibration_source(options, method)
    check_device(options.device)
    about = partial(about_compressed, with_report=not options.no_report)
    source = open_checkpoint(options.model, options.revision, mlps=options.mlps, new_head=options.data.new_head)
    check_source(source, method, options.selection)
    work = Work(method, options.selection, options.seed, options.device, progress, options.texts.sequential)
    if options.dry_run:
        return _dry_run(options, source, work, texts)
    if options.stream:
        unfinished = Unfinished(options.resume, options.overwrite, reads)
        return stream_checkpoint(source, work, texts, out, unfinished, about)
    if type(method) in ON_TASK:
        source.read_for_training()
        model, record = learn_checkpoint(source, work, _training_part(options, source))
    else:
        model, record = compress_checkpoint(source, work, texts)
    return write_checkpoint(source, model, record, out, replaced, about)


def _dry_run(
    options: CompressOptions, source: "Checkpoint", work: "Work", texts: "CalibrationSource | None"
) -> "DryRun | None":
    """What would be written, after the checks that are left. None in all processes of a launch but the first."""
    from mlpfusion.checks import user_path
    from mlpfusion.compression.preview.dry_run import dry_run
    from mlpfusion.compression.streaming.run import checked_launch
    from mlpfusion.methods.table import ON_TASK
    from mlpfusion.storage.unfinished import check_work

    if options.stream:
        check_work(user_path("out", options.out), {}, resume=False, overwrite=options.overwrite)
        if not checked_launch(work).is_first:
            return None
    if type(work.method) in ON_TASK:
        _training_part(options, source)
    return dry_run(source, work, texts)


def _method(options: CompressOptions) -> Any:
    """The config of the method. Raises `InputError` for a bad option or size, and a `data_free` that it has not."""
    from mlpfusion.compression.checks import check_sizes
    from mlpfusion.methods.names import method_from_name, method_name
    from mlpfusion.methods.table import CALIBRATED, METHODS, ON_TASK

    method = method_from_name(options.method, options.options, METHODS)
    size = options.selection
    if type(method) in ON_TASK and size.keep_ratio is None and size.width is None and size.budget is None:
        raise InputError(f"`keep_ratio` must be given for {options.method}, got none")
    if options.data_free and type(method) not in (*CALIBRATED, *ON_TASK):
        able = ", ".join(method_name(one) for one in CALIBRATED)
        raise InputError(f"`data_free` must be left out but for {able}, got the method {options.method}")
    check_sizes(method, options.selection)
    return method


def _calibration_source(options: CompressOptions, method: Any) -> "CalibrationSource | None":
    """Where the calibration is from, None where there is none. Raises `InputError` where the method disagrees."""
    from mlpfusion.compression.calibration.checks import check_calibration
    from mlpfusion.data.unlabelled.calibration_texts import CalibrationTexts
    from mlpfusion.data.unlabelled.data_free import DataFree

    for name in (*changed(options.data), *(["max_train_samples"] if options.max_train_samples is not None else [])):
        raise InputError(f"`{name}` must be left out for {options.method}, which does not learn on a task")
    texts = options.texts
    given = texts.calibration is not None or options.data_free
    check_calibration(method, given=given, sequential=texts.sequential)
    if options.data_free and texts.calibration is not None:
        raise InputError(f"`calibration` must be left out with `data_free`, got {texts.calibration}")
    if texts.calibration is None and texts.column is not None:
        raise InputError(f"`column` must be left out without `calibration`, got {texts.column!r}")
    told = changed(options)
    for name in ("calibration_samples", "calibration_window"):
        if not given and name in told:
            got = f"got {shown(told[name])}"
            raise InputError(f"`{name}` must be left out without `calibration` or `data_free`, {got}")
    if options.data_free:
        return DataFree(texts.calibration_samples, options.calibration_window)
    if texts.calibration is None:
        return None
    return CalibrationTexts.read(texts.calibration, texts.column, texts.calibration_samples, options.calibration_window)


def _check_learning(options: CompressOptions) -> None:
    """Raises `InputError` for what a method that learns on a task does not take, and for a task that is missing."""
    from mlpfusion.data.labelled.glue import check_labelled
    from mlpfusion.data.tasks import TASKS
    from mlpfusion.extras import check_training_installed
    from mlpfusion.options.training import Finetune

    check_training_installed()
    alone = [name for name in ("calibration_window", "data_free") if name in changed(options)]
    for name in (*changed(options.texts), *alone):
        raise InputError(f"`{name}` must be left out for {options.method}, which learns on a task")
    data = options.data
    if data.task is None and not (data.train and data.text_column and data.label_column):
        known = f"`task` must be given for {options.method}, or `train` with `text_column` and `label_column`"
        raise InputError(known)
    if data.task in TASKS:  # before its texts are read
        check_labelled(TASKS[data.task])
    Finetune(max_train_samples=options.max_train_samples)


def _training_part(options: CompressOptions, source: "Checkpoint") -> "EncodedTask":
    """The training examples of `tune` with the same options, without those it holds out."""
    from mlpfusion.data.chosen import chosen_data, split_train
    from mlpfusion.data.labelled.glue import check_labelled
    from mlpfusion.data.task import TRAIN
    from mlpfusion.data.task_model import empty_for_task, encode_for
    from mlpfusion.options.training import Finetune

    told = options.data
    found = chosen_data(told, None, TRAIN)
    check_labelled(found.task)
    config = Finetune(max_train_samples=options.max_train_samples)
    data = encode_for(source, found, told.max_length, config)
    train, _ = split_train(data, config)
    empty_for_task(source, data.task)
    return replace(data, train=train)


def show(record: "Record | DryRun", options: CompressOptions) -> None:
    """Prints what was done, or would be, layer by layer, and what comes next."""
    from mlpfusion.record import Record
    from mlpfusion.report.terminal.dry_run import print_dry_run
    from mlpfusion.report.terminal.results import print_record

    if not isinstance(record, Record):
        return print_dry_run(record, options.out, is_streamed=options.stream)
    return print_record(record, options.model, options.out)


COMMAND = Command(
    "compress",
    "Compresses MODEL into the new folder OUT.",
    CompressOptions,
    run,
    show,
    title="Compressing",
    usage="--keep-ratio SHARE [OPTIONS]",
    takes_file=True,
    go_on="Nothing half-written is left. A run with --stream goes on by the same command with --resume.",
)
