"""A checkpoint in, a tuned one out, over learning rates and seeds; resumed where it was stopped."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel

from mlpfusion.checkpoint.open import Checkpoint, open_for_training
from mlpfusion.checkpoint.read import display_name
from mlpfusion.checkpoint.save import save_model
from mlpfusion.checkpoint.stage import finish_job, run_stage
from mlpfusion.checks import check_given, user_path
from mlpfusion.data.chosen import chosen_data, split_train
from mlpfusion.data.encode import EncodedTask
from mlpfusion.data.generation.encode import with_decoding
from mlpfusion.data.labelled.glue import LabelledTask
from mlpfusion.data.task import Task
from mlpfusion.data.task_model import empty_for_task, encode_for, load_for_task, load_in_own_class
from mlpfusion.data.tasks import check_metric, kind_of_task, merit, new_tokens
from mlpfusion.dsee.record import SPARSITY_RECORD_FILE
from mlpfusion.errors import InputError
from mlpfusion.options.fields import bound
from mlpfusion.options.training import Finetune
from mlpfusion.options.tune import TuneOptions
from mlpfusion.progress import Progress
from mlpfusion.record import model_size, versions
from mlpfusion.storage.output import Occupant, check_output
from mlpfusion.storage.processes import join_processes
from mlpfusion.storage.unfinished import check_flags, normalised, opened_work, work_folder
from mlpfusion.tune.adapter import add_adapter, read_saved
from mlpfusion.tune.distill import check_pair, distill, split_examples
from mlpfusion.tune.finetune import RunContext, finetune
from mlpfusion.tune.frozen import frozen_routers
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

# (record, its source) -> name -> text of the files that tell people of the result: the model card, ..
About = Callable[[TuneRecord, Checkpoint], Mapping[str, str]]


def tune_checkpoint(options: TuneOptions, about: About, progress: Progress) -> TuneRecord:
    """Tunes the checkpoint `options.model` into the new folder `options.out`; `about` makes the model card.

    The learning rate is chosen with the first seed, the other seeds run at that rate, and the model of the seed with
    the best selection score is saved (with `select_on="last"`, of the first seed). All that can be checked is checked
    before the first step; `out` appears complete or not at all. Raises `InputError`, and a `DivergenceError` if the
    loss became NaN or Inf at every learning rate.
    """
    configs, out, work = _check_options(options), user_path("out", options.out), options.run
    writes = (options.cache, work.log_dir)
    if not work.resume:
        check_output(out, overwrite=work.overwrite, reads=_reads(options), writes=writes)
    tokens = new_tokens(options.data.task)
    saved = None if options.adapter is None else read_saved(options.adapter)
    source = open_for_training(
        options.model,
        options.revision,
        new_head=options.data.new_head,
        new_tokens=tokens,
        with_adapter=saved is not None,
    )
    data = encode_for(source, chosen_data(options.data, options.validation), options.data.max_length, configs[0])
    data = with_decoding(data, options.decoding)
    empty = empty_for_task(source, data.task)
    routers = frozen_routers(empty, freeze=options.training.freeze_router)
    if (adapter := configs[0].adapter) is not None:
        add_adapter(empty, adapter, kind_of_task(data.task).names(empty.config).adapter, routers)
    if saved is not None:
        _check_saved(saved, source, data.task, empty, options.seeds[0])
    check_metric(data.task, options.training.metric_for_best_model)
    train, _ = split_train(data, configs[0])
    pair = _layerwise_pair(options, source)
    if pair is not None:
        split_examples(train, options.layerwise_config())
    settings = _settings(options, source, data)
    join_processes(options.training.device)
    with opened_work(
        out,
        settings,
        TUNE_RECORD_FILE,
        resume=work.resume,
        overwrite=work.overwrite,
        reads=_reads(options),
        writes=writes,
    ) as opened:
        if opened.done is not None:
            return tune_record_from_dict(opened.done)
        return _carried_out(_Runner(options, source, source.folder, data, progress), pair, about, opened.replaced)


def _check_saved(saved: Any, source: Checkpoint, task: Task, empty: PreTrainedModel, seed: int) -> None:
    """Raises `InputError` unless an adapter fits the task and the weights of `source`; changes `empty`."""
    from mlpfusion.dsee.adapter.saved import check_fits, check_not_merged, put_on

    wanted, found = kind_of_task(task).names(empty.config).adapter, saved.config.task_type
    if found != wanted:
        raise InputError(f"`adapter` must have the task_type {wanted} for {task.name}, got {found}")
    check_not_merged(source, saved)
    check_fits(saved, empty)
    put_on(load_for_task(source, task, seed), saved, is_trainable=False)


def _carried_out(
    runner: "_Runner",
    pair: tuple[PreTrainedModel, PreTrainedModel] | None,
    about: About,
    replaced: Occupant | None,
) -> TuneRecord:
    out = user_path("out", runner.options.out)
    layerwise = None if pair is None else runner.layerwise(*pair)
    if layerwise is not None:
        runner = replace(runner, start=layerwise[0])
    record, result = _run_all(runner, None if layerwise is None else layerwise[1])
    text = record.to_json()
    finish_job(result, out, text, {**about(record, runner.source), TUNE_RECORD_FILE: text}, replaced)
    return record


def _reads(options: TuneOptions) -> tuple[str | None, ...]:
    """What `out` must not be and not hold."""
    return (options.model, options.adapter, options.teacher, options.data.train, options.validation)


@dataclass(frozen=True)
class _Runner:
    """Carries out the stages of a run, each in a folder of its own; one that is finished is read instead."""

    options: TuneOptions
    source: Checkpoint
    start: Path  # the weights that fine-tuning begins with: of `source`, or of its layer-wise tuning
    data: EncodedTask
    progress: Progress

    def layerwise(self, student: PreTrainedModel, teacher: PreTrainedModel) -> tuple[Path, DistillRun]:
        folder = work_folder(user_path("out", self.options.out)) / "layerwise"
        options = self.options
        config, cache = options.layerwise_config(), options.cache
        train, _ = split_train(self.data, options.finetune(options.learning_rate[0], options.seeds[0]))

        def stage(states: Path) -> tuple[PreTrainedModel, DistillRun]:
            where = RunContext(states, self.progress, log_callbacks(options.run.log_dir, states.name))
            cached = None if cache is None else user_path("cache", cache)
            return student, distill(student, teacher, train, self.data.collate, config, where, cached)

        return run_stage(folder, self.source.folder, stage, distill_run_from_dict)

    def run(self, rate: float, seed: int) -> tuple[Path, RunRecord]:
        name = f"learning-rate-{rate:g}-seed-{seed}"

        def stage(states: Path) -> tuple[PreTrainedModel, RunRecord]:
            model = load_for_task(self.source.at(self.start), self.data.task, seed)
            where = RunContext(states, self.progress, log_callbacks(self.options.run.log_dir, name))
            return finetune(model, self.data, self.options.finetune(rate, seed), where)

        folder = work_folder(user_path("out", self.options.out)) / name
        return run_stage(folder, self.start, stage, run_from_dict, self.save)

    def save(self, model: PreTrainedModel, source: Path, folder: Path) -> None:
        """Saves `model` with the small files of `source`, and the tokenizer with its new tokens."""
        save_model(model, source, folder)
        if self.options.merge:
            (folder / SPARSITY_RECORD_FILE).unlink(missing_ok=True)  # merging filled the zeros
        if self.source.new_tokens:
            self.source.tokenizer.save_pretrained(folder)


def _run_all(runner: _Runner, layerwise: DistillRun | None) -> tuple[TuneRecord, Path]:
    """The record, and the folder of the run whose model is to be kept."""
    options, first, diverged, errors = runner.options, [], [], []
    for rate in options.learning_rate:
        try:
            first.append(runner.run(rate, options.seeds[0]))
        except DivergenceError as error:
            diverged.append(rate)
            errors.append(error)
    if not first:
        raise errors[-1]
    best = max(first, key=_selection_score)
    chosen = [best, *(runner.run(best[1].learning_rate, seed) for seed in options.seeds[1:])]
    result, kept = max(chosen, key=_selection_score)
    before = [run.before for _, run in chosen]
    saved = load_for_task(runner.source.at(result), runner.data.task, kept.seed)
    record = TuneRecord(
        recipe={"model": display_name(options.model)} | _bound(options, runner.data),
        task=runner.data.task.name,
        names=kind_of_task(runner.data.task).names(saved.config),
        data=runner.data.source,
        note=_note(options, runner.data),
        model_sha256=runner.source.sha256,
        device=str(PartialState().device),
        versions=versions(),
        size=model_size(saved),
        learning_rate=kept.learning_rate,
        saved_seed=kept.seed,
        scores=summarise([run.scores for _, run in chosen]),
        diverged=tuple(diverged),
        layerwise=layerwise,
        runs=tuple(run for _, run in (*first, *chosen[1:])),
        f1_class=_f1_class(runner.data.task),
        before=None if any(one is None for one in before) else summarise([one for one in before if one is not None]),
    )
    return record, result


def _layerwise_pair(options: TuneOptions, source: Checkpoint) -> tuple[PreTrainedModel, PreTrainedModel] | None:
    """Student and teacher of the layer-wise stage, None if there is none. Raises `InputError` if they do not fit."""
    if not options.layerwise:
        for name, value in (
            ("teacher", options.teacher),
            ("cache", options.cache),
            ("layerwise_learning_rate", options.layerwise_learning_rate),
        ):
            if value is not None:
                raise InputError(f"`layerwise` must be given with `{name}`: for how many epochs?")
        return None
    if options.teacher is None:
        raise InputError("`teacher` must be given for `layerwise`: the model before compression")
    student, teacher = (
        load_in_own_class(source),
        load_in_own_class(open_for_training(options.teacher, new_tokens=source.new_tokens)),
    )
    check_pair(student, teacher, options.layerwise_config(), "teacher")
    return student, teacher


def _check_options(options: TuneOptions) -> list[Finetune]:
    """The configs of all runs that may be needed. Raises `InputError`."""
    rates, seeds, training = options.learning_rate, options.seeds, options.training
    for name, values in (("learning_rate", rates), ("seeds", seeds)):
        check_given(bool(values), name)
    if len(set(seeds)) < len(seeds) or len(set(rates)) < len(rates):
        raise InputError(f"`seeds` and `learning_rate` must not repeat, got {seeds} and {rates}")
    if training.select_on == "last" and len(rates) > 1:
        raise InputError("`select_on` must be holdout or validation to choose among several learning rates, got 'last'")
    configs = [options.finetune(rate, seed) for rate in rates for seed in seeds]
    if options.layerwise:
        options.layerwise_config()
        if options.adapter is not None:
            raise InputError("`layerwise` must be left out with `adapter`: it moves the weights under it")
    if options.merge and options.adapter is None:
        raise InputError("`merge` must be left out without `adapter`: a new adapter is always merged")
    training_arguments(Path(options.out), device=training.device, precision=training.precision)
    log_callbacks(options.run.log_dir, "")
    check_flags(resume=options.run.resume, overwrite=options.run.overwrite)
    return configs


def _bound(options: TuneOptions, data: EncodedTask) -> dict[str, Any]:
    """What a resumed run must have too, with the length that was taken where none was given."""
    told = bound(options) | {"max_length": data.max_length}
    return told if options.adapter is None else told | {"adapter": read_saved(options.adapter).sha256}


def _settings(options: TuneOptions, source: Checkpoint, data: EncodedTask) -> dict[str, Any]:
    """All that the bytes of the result depend on."""
    hashes = {"model": source.sha256, "train": data.train.sha256()}
    hashes |= {name: examples.sha256() for name, examples in data.evaluation.items()}
    return normalised(_bound(options, data) | hashes | {"versions": versions()})


def _f1_class(task: Task) -> str | None:
    return task.label_names[task.positive] if isinstance(task, LabelledTask) and "f1" in task.metrics else None


def _selection_score(run: tuple[Path, RunRecord]) -> float:
    score = run[1].selection_score
    return 0.0 if score is None else merit(run[1].selection_metric, score)


def _note(options: TuneOptions, data: EncodedTask) -> str:
    """What a reader of the scores must know about how they were chosen."""
    if options.training.select_on == "validation":
        split = next(iter(data.evaluation))
        return f"epoch and learning rate were chosen on {split}, which is reported too (the paper's habit): optimistic"
    if options.training.select_on == "last":
        return "nothing was chosen: the last epoch"
    share = f"{100 * options.training.holdout:g} % of train"
    return f"epoch and learning rate were chosen on {share}, held out; the reported splits were not used"
