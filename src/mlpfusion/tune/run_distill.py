"""A compressed checkpoint in, one that learned from the original out; resumed where it stopped."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from accelerate import PartialState
from transformers import DataCollatorWithPadding, PreTrainedModel

from mlpfusion.checkpoint.lengths import longest_text
from mlpfusion.checkpoint.open import Checkpoint, open_for_training
from mlpfusion.checkpoint.read import display_name
from mlpfusion.checkpoint.save import save_trained
from mlpfusion.checkpoint.stage import finish_job, run_stage
from mlpfusion.checks import user_path
from mlpfusion.data.chosen import chosen_data
from mlpfusion.data.encode import Collate, EncodedExamples, encode_texts, without_labels
from mlpfusion.data.files.rows import short_name
from mlpfusion.data.files.text import read_texts
from mlpfusion.data.generation.encode import EncodedGeneration
from mlpfusion.data.language.kind import packed, training_window
from mlpfusion.data.language.labels import PadRight
from mlpfusion.data.task import TRAIN
from mlpfusion.data.task_model import load_in_own_class, load_like
from mlpfusion.data.tasks import check_new_tokens, encode_task, kind_of_task
from mlpfusion.data.unlabelled.windows import is_causal
from mlpfusion.errors import InputError
from mlpfusion.options.distill import DistillOptions
from mlpfusion.options.fields import bound, changed
from mlpfusion.progress import Progress
from mlpfusion.record import model_size, versions
from mlpfusion.storage.output import check_output
from mlpfusion.storage.processes import join_processes
from mlpfusion.storage.unfinished import check_flags, normalised, opened_work, work_folder
from mlpfusion.tune.distill import check_pair, distill, split_examples
from mlpfusion.tune.finetune import RunContext
from mlpfusion.tune.record import (
    DISTILL_RECORD_FILE,
    DistillRecord,
    DistillRun,
    distill_record_from_dict,
    distill_run_from_dict,
)
from mlpfusion.tune.trainer import log_callbacks, training_arguments


def distill_checkpoint(
    options: DistillOptions, about: Callable[[DistillRecord, Checkpoint], Mapping[str, str]], progress: Progress
) -> DistillRecord:
    """Trains `options.compressed` on what `options.original` predicts, into the new folder `options.out`.

    All that can be checked is checked before the first step; `about` makes the model card and what else tells people
    of the result; `out` appears complete or not at all. Raises `InputError`,
    and a `DivergenceError` if the loss became NaN or Inf.
    """
    _check_options(options)
    config, work, out = options.training, options.run, user_path("out", options.out)
    reads = (options.original, options.compressed, options.data, options.of_task.train)
    writes = (options.cache, work.log_dir)
    if not work.resume:
        check_output(out, overwrite=work.overwrite, reads=reads, writes=writes)
    original, compressed = open_for_training(options.original), open_for_training(options.compressed)
    examples, collate, source_of_data = _examples(options, compressed, original)
    split_examples(examples, config)
    student, teacher = _pair(options, compressed, original)
    check_pair(student, teacher, config)
    told = bound(options)
    hashes = {"original": original.sha256, "compressed": compressed.sha256, "data": examples.sha256()}
    settings = normalised(told | hashes | {"versions": versions()})
    with opened_work(
        out,
        settings,
        DISTILL_RECORD_FILE,
        resume=work.resume,
        overwrite=work.overwrite,
        reads=reads,
        writes=writes,
    ) as opened:
        if opened.done is not None:
            return distill_record_from_dict(opened.done)

        def stage(states: Path) -> tuple[PreTrainedModel, DistillRun]:
            where = RunContext(states, progress, log_callbacks(work.log_dir, "distill"))
            cache = None if options.cache is None else user_path("cache", options.cache)
            return student, distill(student, teacher, examples, collate, config, where, cache)

        folder = work_folder(out) / "distill"
        result, run = run_stage(folder, compressed.folder, stage, distill_run_from_dict, _saver(options))
        record = DistillRecord(
            recipe={
                "original": display_name(options.original),
                "compressed": display_name(options.compressed),
                **told,
            },
            data=source_of_data,
            original_sha256=original.sha256,
            compressed_sha256=compressed.sha256,
            device=str(PartialState().device),
            versions=versions(),
            size=model_size(student),
            run=run,
        )
        text = record.to_json()
        finish_job(result, out, text, {**about(record, compressed), DISTILL_RECORD_FILE: text}, opened.replaced)
        return record


def _check_options(options: DistillOptions) -> None:
    training, work = options.training, options.run
    join_processes(training.device)
    told = {name: value for name, value in changed(options.of_task).items() if name != "max_length"}
    if (options.data is None) != bool(told):
        raise InputError("exactly one of `data` and `task` must be given")
    if told and options.column is not None:
        raise InputError(f"`column` must be left out with `task`, got {options.column!r}: a task has its own")
    if "new_head" in told:
        raise InputError("`new_head` must be left out: COMPRESSED gets the head of ORIGINAL, got True")
    if options.max_samples is not None and options.max_samples < 1:
        raise InputError(f"`max_samples` must be at least 1, got {options.max_samples}")
    if options.cache is not None and training.objective.startswith("logits"):
        raise InputError(
            f"`cache` must be left out for the objective {training.objective}: only hidden states are kept"
        )
    training_arguments(Path(options.out), device=training.device, precision=training.precision)
    log_callbacks(work.log_dir, "")
    check_flags(resume=work.resume, overwrite=work.overwrite)


def _saver(options: DistillOptions) -> Callable[[PreTrainedModel, Path, Path], None]:
    """How the student is written: with the head that it got for logits, else with nothing that it did not have."""
    return partial(save_trained, new_head=options.training.objective.startswith("logits"))


def _pair(
    options: DistillOptions, compressed: Checkpoint, original: Checkpoint
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Student and teacher; for logits the student gets the teacher's head."""
    teacher = load_in_own_class(original)
    if options.training.objective.startswith("logits"):
        return load_like(compressed, teacher, options.training.seed), teacher
    return load_in_own_class(compressed), teacher


def _examples(
    options: DistillOptions, source: Checkpoint, original: Checkpoint
) -> tuple[EncodedExamples, Collate, str]:
    """The texts as examples, what makes batches of them, and where they are from.

    The length is that of the model that takes the shorter texts.
    """
    limits = [(longest_text(source.tokenizer, one.config) or sys.maxsize, one.config) for one in (source, original)]
    _, config = min(limits, key=lambda pair: pair[0])
    number, tokenizer = options.max_samples, source.tokenizer
    told = options.of_task
    if options.data is None:
        check_new_tokens(tokenizer, told.task)
        data = chosen_data(told, None, TRAIN)
        if kind_of_task(data.task).row_is_example:
            data = replace(data, train=data.train.subset(range(len(data.train))[:number]))
        encoded = encode_task(data, tokenizer, config, max_length=told.max_length)
        taken = encoded.train.subset(range(len(encoded.train))[:number])
        # of a pair the logits are matched at the text alone, of plain texts at every token
        marked = taken if isinstance(encoded, EncodedGeneration) else without_labels(taken)
        return marked, encoded.collate, data.source
    name = short_name(options.data)
    if is_causal(original.empty()):
        texts = read_texts(options.data, column=options.column)
        windows = packed(texts, tokenizer, config, training_window(told.max_length, tokenizer, config), field="data")
        return without_labels(windows.subset(range(len(windows))[:number])), PadRight(tokenizer), name
    texts = read_texts(options.data, column=options.column, max_samples=number)
    examples = encode_texts([(text,) for text in texts], tokenizer, config, max_length=told.max_length)
    return examples, DataCollatorWithPadding(tokenizer), name
