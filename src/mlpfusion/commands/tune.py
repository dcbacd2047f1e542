"""`mlpfusion tune`: a checkpoint in, a tuned one out, over learning rates and seeds; resumed where it was stopped."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel

from mlpfusion.checkpoint.read import display_name
from mlpfusion.checkpoint.stage import put_in_place, run_stage
from mlpfusion.checks import user_path
from mlpfusion.data.chosen import custom_task, split_train, task_data
from mlpfusion.data.encode import EncodedTask
from mlpfusion.data.glue import Task
from mlpfusion.data.metrics import check_metric
from mlpfusion.data.task_model import Source, empty_for_task, encode_for, load_for_task, load_source, open_source
from mlpfusion.errors import InputError
from mlpfusion.options.training import Finetune, parse_lora
from mlpfusion.progress import Progress
from mlpfusion.record import model_size, versions
from mlpfusion.report.tune_card import tune_card
from mlpfusion.storage.output import Occupant, check_output
from mlpfusion.storage.processes import join_processes
from mlpfusion.storage.unfinished import check_flags, expect_record, normalised, opened_work, remove_work, work_folder
from mlpfusion.tune.distill import Distill, check_pair, distill, split_examples
from mlpfusion.tune.finetune import RunContext, finetune
from mlpfusion.tune.lora import add_lora
from mlpfusion.tune.record import (
    TUNE_RECORD_FILE,
    DistillRun,
    RunRecord,
    TuneRecord,
    distill_run_from_dict,
    run_from_dict,
    summarise,
    tune_record_from_dict,
)
from mlpfusion.tune.trainer import DivergenceError, log_callbacks, training_arguments

# What may differ between a run and its resumption; model and data files are compared by their hashes.
_FREE = ("model", "out", "revision", "train", "validation", "log_dir", "resume", "overwrite", "teacher", "cache")


@dataclass(frozen=True)
class TuneJob:
    """What to tune, on what, how, and where to put it: the same fields as the flags of `mlpfusion tune`.

    `layerwise` epochs of layer-wise tuning (Eq. 6) come first if asked for, once for all runs, with the first seed, by
    `teacher`, at `layerwise_learning_rate` (the first `learning_rate` unless given), `cache` keeping its states.

    Either `task`, or `train` and `validation` with `text_column` (two for pairs) and `label_column`; with both, the
    files take the place of the task's own. A trained head keeps its classes, matched to those of the data by name;
    `new_head` draws another from the seed instead. Without `max_length` texts are cut at 128 tokens, or at what the
    model takes if that is less. The fields after `seeds` are those of `Finetune`.
    """

    model: str = ""
    out: str = ""
    task: str | None = None
    train: str | None = None
    validation: str | None = None
    text_column: tuple[str, ...] = ()
    label_column: str | None = None
    regression: bool = False
    new_head: bool = False
    max_length: int | None = None
    learning_rate: tuple[float, ...] = (2e-5,)
    seeds: tuple[int, ...] = (0,)
    epochs: int = 3
    batch_size: int = 32
    warmup_ratio: float = 0.06
    weight_decay: float = 0.1
    adam_beta1: float = 0.9
    adam_beta2: float = 0.98
    adam_epsilon: float = 1e-6
    split_seed: int = 0
    holdout: float = 0.1
    select_on: str = "holdout"
    metric_for_best_model: str | None = None
    patience: int | None = None
    max_train_samples: int | None = None
    lora: str | None = None
    precision: str = "fp32"
    device: str = "auto"
    save_steps: int | None = None
    layerwise: int = 0
    layerwise_learning_rate: float | None = None
    teacher: str | None = None
    cache: str | None = None
    revision: str | None = None
    log_dir: str | None = None
    resume: bool = False
    overwrite: bool = False

    def finetune(self, learning_rate: float, seed: int) -> Finetune:
        """The config of one run. Raises `InputError` for a value out of range."""
        shared = {item.name for item in fields(Finetune)} & {item.name for item in fields(TuneJob)}
        values = {name: getattr(self, name) for name in shared - {"learning_rate", "lora"}}
        lora = None if self.lora is None else parse_lora(self.lora)
        return Finetune(learning_rate=learning_rate, seed=seed, lora=lora, **values)

    def layerwise_config(self) -> Distill:
        """The config of the layer-wise stage. Raises `InputError` for a value out of range."""
        return Distill(
            epochs=self.layerwise,
            learning_rate=self.layerwise_learning_rate or self.learning_rate[0],
            batch_size=self.batch_size,
            seed=self.seeds[0],
            precision=self.precision,
            device=self.device,
            save_steps=self.save_steps,
        )


def run_tuning(job: TuneJob, progress: Progress = lambda done, total, what: None) -> TuneRecord:
    """Tunes the checkpoint `job.model` into the new folder `job.out`.

    The learning rate is chosen with the first seed, the other seeds run at that rate, and the model of the seed with
    the best selection score is saved (with `select_on="last"`, of the first seed). All that can be checked is checked
    before the first step; `out` appears complete or not at all. Raises `InputError`, and a `DivergenceError` if the
    loss became NaN or Inf at every learning rate.
    """
    configs, out = _check_job(job), user_path("out", job.out)
    if not job.resume:
        check_output(out, overwrite=job.overwrite, reads=_reads(job), writes=(job.cache, job.log_dir))
    source = open_source(job.model, job.revision, new_head=job.new_head)
    columns = custom_task(job.text_column, job.label_column, regression=job.regression, task=job.task)
    found = task_data(job.task, job.train, job.validation, columns)
    data = encode_for(source, found, job.max_length, configs[0])
    empty = empty_for_task(source, data.task)
    if configs[0].lora is not None:
        add_lora(empty, configs[0].lora)
    check_metric(data.task, job.metric_for_best_model)
    train, _ = split_train(data, configs[0])
    pair = _layerwise_pair(job, source)
    if pair is not None:
        split_examples(train, job.layerwise_config())
    settings = _settings(job, source, data)
    join_processes(job.device)
    with opened_work(
        out,
        settings,
        TUNE_RECORD_FILE,
        resume=job.resume,
        overwrite=job.overwrite,
        reads=_reads(job),
        writes=(job.cache, job.log_dir),
    ) as opened:
        if opened.done is not None:
            return tune_record_from_dict(opened.done)
        return _carried_out(_Runner(job, source, data, progress), pair, opened.replaced)


def _carried_out(
    runner: "_Runner", pair: tuple[PreTrainedModel, PreTrainedModel] | None, replaced: Occupant | None
) -> TuneRecord:
    out = user_path("out", runner.job.out)
    layerwise = None if pair is None else runner.layerwise(*pair)
    if layerwise is not None:
        runner = replace(runner, source=replace(runner.source, folder=layerwise[0]))
    record, result = _run_all(runner, None if layerwise is None else layerwise[1])
    if PartialState().is_main_process:
        expect_record(out, record.to_json())
        put_in_place(result, out, {"README.md": tune_card(record), TUNE_RECORD_FILE: record.to_json()}, replaced)
        remove_work(out)
    PartialState().wait_for_everyone()
    return record


def _reads(job: TuneJob) -> tuple[str | None, ...]:
    """What `out` must not be and not hold."""
    return (job.model, job.teacher, job.train, job.validation)


@dataclass(frozen=True)
class _Runner:
    """Carries out the stages of a job, each in a folder of its own; one that is finished is read instead."""

    job: TuneJob
    source: Source
    data: EncodedTask
    progress: Progress

    def layerwise(self, student: PreTrainedModel, teacher: PreTrainedModel) -> tuple[Path, DistillRun]:
        folder = work_folder(user_path("out", self.job.out)) / "layerwise"
        config, cache = self.job.layerwise_config(), self.job.cache
        train, _ = split_train(self.data, self.job.finetune(self.job.learning_rate[0], self.job.seeds[0]))

        def stage(states: Path) -> tuple[PreTrainedModel, DistillRun]:
            where = RunContext(states, self.progress, log_callbacks(self.job.log_dir, states.name))
            cached = None if cache is None else user_path("cache", cache)
            return student, distill(student, teacher, train, self.data.collate, config, where, cached)

        return run_stage(folder, self.source.folder, stage, distill_run_from_dict)

    def run(self, rate: float, seed: int) -> tuple[Path, RunRecord]:
        name = f"learning-rate-{rate:g}-seed-{seed}"

        def stage(states: Path) -> tuple[PreTrainedModel, RunRecord]:
            model = load_for_task(self.source, self.data.task, seed)
            where = RunContext(states, self.progress, log_callbacks(self.job.log_dir, name))
            return finetune(model, self.data, self.job.finetune(rate, seed), where)

        folder = work_folder(user_path("out", self.job.out)) / name
        return run_stage(folder, self.source.folder, stage, run_from_dict)


def _run_all(runner: _Runner, layerwise: DistillRun | None) -> tuple[TuneRecord, Path]:
    """The record, and the folder of the run whose model is to be kept."""
    job, first, diverged, errors = runner.job, [], [], []
    for rate in job.learning_rate:
        try:
            first.append(runner.run(rate, job.seeds[0]))
        except DivergenceError as error:
            diverged.append(rate)
            errors.append(error)
    if not first:
        raise errors[-1]
    best = max(first, key=_selection_score)
    chosen = [best, *(runner.run(best[1].learning_rate, seed) for seed in job.seeds[1:])]
    result, kept = max(chosen, key=_selection_score)
    saved = load_for_task(replace(runner.source, folder=result), runner.data.task, kept.seed)
    told = _told(job, runner.data)
    record = TuneRecord(
        recipe={"model": display_name(job.model)} | told,
        task=runner.data.task.name,
        data=runner.data.source,
        note=_note(job, runner.data),
        model_sha256=runner.source.sha256,
        device=str(PartialState().device),
        versions=versions(),
        size=model_size(saved),
        learning_rate=kept.learning_rate,
        saved_seed=kept.seed,
        scores=summarise([run for _, run in chosen]),
        diverged=tuple(diverged),
        layerwise=layerwise,
        runs=tuple(run for _, run in (*first, *chosen[1:])),
        f1_class=_f1_class(runner.data.task),
    )
    return record, result


def _layerwise_pair(job: TuneJob, source: Source) -> tuple[PreTrainedModel, PreTrainedModel] | None:
    """Student and teacher of the layer-wise stage, None if there is none. Raises `InputError` if they do not fit."""
    if not job.layerwise:
        for name in ("teacher", "cache", "layerwise_learning_rate"):
            if getattr(job, name) is not None:
                raise InputError(f"`layerwise` must be given with `{name}`: for how many epochs?")
        return None
    if job.teacher is None:
        raise InputError("`teacher` must be given for `layerwise`: the model before compression")
    student, teacher = load_source(source), load_source(open_source(job.teacher))
    check_pair(student, teacher, job.layerwise_config(), "teacher")
    return student, teacher


def _check_job(job: TuneJob) -> list[Finetune]:
    """The configs of all runs that may be needed. Raises `InputError`."""
    for name in ("model", "out", "learning_rate", "seeds"):
        if not getattr(job, name):
            raise InputError(f"`{name}` must be given, on the command line or in the recipe")
    if len(set(job.seeds)) < len(job.seeds) or len(set(job.learning_rate)) < len(job.learning_rate):
        raise InputError(f"`seeds` and `learning_rate` must not repeat, got {job.seeds} and {job.learning_rate}")
    if job.select_on == "last" and len(job.learning_rate) > 1:
        raise InputError("`select_on` must be holdout or validation to choose among several learning rates, got 'last'")
    configs = [job.finetune(rate, seed) for rate in job.learning_rate for seed in job.seeds]
    if job.layerwise:
        job.layerwise_config()
    training_arguments(Path(job.out), device=job.device, precision=job.precision)
    log_callbacks(job.log_dir, "")
    check_flags(resume=job.resume, overwrite=job.overwrite)
    return configs


def _told(job: TuneJob, data: EncodedTask) -> dict[str, Any]:
    """The fields that a resumed run must have too, with the length that was taken where none was given."""
    told = {name: value for name, value in asdict(job).items() if name not in _FREE}
    return told | {"max_length": data.max_length}


def _settings(job: TuneJob, source: Source, data: EncodedTask) -> dict[str, Any]:
    """All that the bytes of the result depend on."""
    told = _told(job, data)
    hashes = {"model": source.sha256, "train": data.train.sha256()}
    hashes |= {name: examples.sha256() for name, examples in data.evaluation.items()}
    return normalised(told | hashes | {"versions": versions()})


def _f1_class(task: Task) -> str | None:
    return task.label_names[task.positive] if "f1" in task.metrics else None


def _selection_score(run: tuple[Path, RunRecord]) -> float:
    score = run[1].selection_score
    return 0.0 if score is None else score


def _note(job: TuneJob, data: EncodedTask) -> str:
    """What a reader of the scores must know about how they were chosen."""
    if job.select_on == "validation":
        split = next(iter(data.evaluation))
        return f"epoch and learning rate were chosen on {split}, which is reported too (the paper's habit): optimistic"
    if job.select_on == "last":
        return "nothing was chosen: the last epoch"
    share = f"{100 * job.holdout:g} % of train"
    return f"epoch and learning rate were chosen on {share}, held out; the reported splits were not used"
