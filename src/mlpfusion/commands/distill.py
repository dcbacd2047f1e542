"""`mlpfusion distill`: a compressed checkpoint in, one that learned from the original out; resumed where it stopped."""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

from accelerate import PartialState
from transformers import DataCollatorWithPadding, PreTrainedModel

from mlpfusion.checkpoint.lengths import longest_text
from mlpfusion.checkpoint.read import display_name
from mlpfusion.checkpoint.save import save_trained
from mlpfusion.checkpoint.stage import put_in_place, run_stage
from mlpfusion.checks import user_path
from mlpfusion.data.encode import EncodedExamples, encode_texts
from mlpfusion.data.files.rows import short_name
from mlpfusion.data.files.text import read_texts
from mlpfusion.data.load import load_task
from mlpfusion.data.task_model import Source, load_like, load_source, open_source
from mlpfusion.errors import InputError
from mlpfusion.progress import Progress
from mlpfusion.record import model_size, versions
from mlpfusion.report.tune_card import distill_card
from mlpfusion.storage.output import check_output
from mlpfusion.storage.processes import join_processes
from mlpfusion.storage.unfinished import check_flags, expect_record, normalised, opened_work, remove_work, work_folder
from mlpfusion.tune.distill import Distill, check_pair, distill, split_examples
from mlpfusion.tune.finetune import RunContext
from mlpfusion.tune.record import (
    DISTILL_RECORD_FILE,
    DistillRecord,
    DistillRun,
    distill_record_from_dict,
    distill_run_from_dict,
)
from mlpfusion.tune.trainer import log_callbacks, training_arguments

_FREE = ("original", "compressed", "out", "data", "cache", "log_dir", "resume", "overwrite")


@dataclass(frozen=True)
class DistillJob:
    """Who learns from whom, from what, and where to put it: the same fields as the flags of `mlpfusion distill`.

    Either `data`, a file of texts (with the `column` of a table), or `task`, whose training texts are taken. The fields
    from `objective` on are those of `Distill`.
    """

    original: str = ""
    compressed: str = ""
    out: str = ""
    data: str | None = None
    column: str | None = None
    task: str | None = None
    max_samples: int | None = None
    max_length: int | None = None
    objective: str = "layerwise"
    learning_rate: float = 2e-5
    epochs: int = 1
    batch_size: int = 32
    temperature: float = 2.0
    seed: int = 0
    holdout: float = 0.1
    precision: str = "fp32"
    device: str = "auto"
    save_steps: int | None = None
    cache: str | None = None
    log_dir: str | None = None
    resume: bool = False
    overwrite: bool = False

    def distill(self) -> Distill:
        """The config of the training. Raises `InputError` for a value out of range."""
        return Distill(**{item.name: getattr(self, item.name) for item in fields(Distill)})


def run_distillation(job: DistillJob, progress: Progress = lambda done, total, what: None) -> DistillRecord:
    """Trains the checkpoint `job.compressed` on what `job.original` says, into the new folder `job.out`.

    All that can be checked is checked before the first step; `out` appears complete or not at all. Raises `InputError`,
    and a `DivergenceError` if the loss became NaN or Inf.
    """
    config = _check_job(job)
    out, reads, writes = user_path("out", job.out), (job.original, job.compressed, job.data), (job.cache, job.log_dir)
    if not job.resume:
        check_output(out, overwrite=job.overwrite, reads=reads, writes=writes)
    original, compressed = open_source(job.original), open_source(job.compressed)
    examples, source_of_data = _examples(job, compressed, original)
    split_examples(examples, config)
    student, teacher = _pair(job, compressed, original)
    check_pair(student, teacher, config)
    told = {name: value for name, value in asdict(job).items() if name not in _FREE}
    hashes = {"original": original.sha256, "compressed": compressed.sha256, "data": examples.sha256()}
    settings = normalised(told | hashes | {"versions": versions()})
    with opened_work(
        out,
        settings,
        DISTILL_RECORD_FILE,
        resume=job.resume,
        overwrite=job.overwrite,
        reads=reads,
        writes=writes,
    ) as opened:
        if opened.done is not None:
            return distill_record_from_dict(opened.done)

        def stage(states: Path) -> tuple[PreTrainedModel, DistillRun]:
            collate = DataCollatorWithPadding(compressed.tokenizer)
            where = RunContext(states, progress, log_callbacks(job.log_dir, "distill"))
            cache = None if job.cache is None else user_path("cache", job.cache)
            return student, distill(student, teacher, examples, collate, config, where, cache)

        folder = work_folder(out) / "distill"
        result, run = run_stage(folder, compressed.folder, stage, distill_run_from_dict, _saver(job))
        record = DistillRecord(
            recipe={name: display_name(getattr(job, name)) for name in ("original", "compressed")} | told,
            data=source_of_data,
            original_sha256=original.sha256,
            compressed_sha256=compressed.sha256,
            device=str(PartialState().device),
            versions=versions(),
            size=model_size(student),
            run=run,
        )
        if PartialState().is_main_process:
            expect_record(out, record.to_json())
            files = {"README.md": distill_card(record), DISTILL_RECORD_FILE: record.to_json()}
            put_in_place(result, out, files, opened.replaced)
            remove_work(out)
        PartialState().wait_for_everyone()
        return record


def _check_job(job: DistillJob) -> Distill:
    join_processes(job.device)
    for name in ("original", "compressed", "out"):
        if not getattr(job, name):
            raise InputError(f"`{name}` must be given, on the command line or in the recipe")
    if (job.data is None) == (job.task is None):
        raise InputError(f"exactly one of `data` and `task` must be given, got {job.data} and {job.task}")
    if job.task is not None and job.column is not None:
        raise InputError(f"`column` must be left out with `task`, got {job.column!r}: {job.task} has its own")
    if job.max_samples is not None and job.max_samples < 1:
        raise InputError(f"`max_samples` must be at least 1, got {job.max_samples}")
    if job.cache is not None and job.objective.startswith("logits"):
        raise InputError(f"`cache` must be left out for the objective {job.objective}: only hidden states are kept")
    training_arguments(Path(job.out), device=job.device, precision=job.precision)
    log_callbacks(job.log_dir, "")
    check_flags(resume=job.resume, overwrite=job.overwrite)
    return job.distill()


def _saver(job: DistillJob) -> Callable[[PreTrainedModel, Path, Path], None]:
    """How the student is written: with the head that it got for logits, else with nothing that it did not have."""
    return partial(save_trained, new_head=job.objective.startswith("logits"))


def _pair(job: DistillJob, compressed: Source, original: Source) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Student and teacher; for logits the student gets the teacher's head."""
    teacher = load_source(original)
    if job.objective.startswith("logits"):
        return load_like(compressed, teacher, job.seed), teacher
    return load_source(compressed), teacher


def _examples(job: DistillJob, source: Source, original: Source) -> tuple[EncodedExamples, str]:
    if job.task is not None:
        data = load_task(job.task)
        texts, name = data.train.texts[: job.max_samples], data.source.partition(",")[0]
    else:
        assert job.data is not None
        lines = read_texts(job.data, column=job.column, max_samples=job.max_samples)
        texts, name = [(line,) for line in lines], short_name(job.data)
    limits = [(longest_text(source.tokenizer, one.config) or sys.maxsize, one.config) for one in (source, original)]
    _, shortest = min(limits, key=lambda pair: pair[0])
    return encode_texts(texts, source.tokenizer, shortest, max_length=job.max_length), name
