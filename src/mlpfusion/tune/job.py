"""`mlpfusion tune`: a checkpoint in, a tuned one out, over learning rates and seeds; resumed where it was stopped."""

import json
import shutil
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback

from mlpfusion.checkpoint.write import check_output, save_model, staged_folder
from mlpfusion.errors import InputError
from mlpfusion.outcomes import Progress
from mlpfusion.record import model_size, versions
from mlpfusion.tasks.encode import EncodedTask, encode_task
from mlpfusion.tasks.glue import CustomTask
from mlpfusion.tasks.load import TaskData, load_files, load_task
from mlpfusion.tasks.metrics import check_metric
from mlpfusion.tune.card import tune_card
from mlpfusion.tune.config import Finetune, parse_lora
from mlpfusion.tune.finetune import Where, finetune, split_train
from mlpfusion.tune.lora import add_lora
from mlpfusion.tune.record import (
    TUNE_RECORD_FILE,
    RunRecord,
    TuneRecord,
    run_from_dict,
    summarise,
    tune_record_from_dict,
)
from mlpfusion.tune.source import Source, empty_for_task, load_for_task, open_source
from mlpfusion.tune.trainer import DivergenceError, training_arguments
from mlpfusion.tune.work import check_work, normalised, open_work, remove_work, work_folder

_RUN_FILE = "run.json"
# What may differ between a run and its resumption; model and data files are compared by their hashes.
_FREE = ("model", "out", "revision", "train", "validation", "log_dir", "resume", "overwrite", "teacher", "cache")


@dataclass(frozen=True)
class TuneJob:
    """What to tune, on what, how, and where to put it: the same fields as the flags of `mlpfusion tune`.

    Either `task`, or `train` and `validation` with `text_column` (two for pairs) and `label_column`; with both, the
    files take the place of the task's own. The fields after `seeds` are those of `Finetune`.
    """

    model: str = ""
    out: str = ""
    task: str | None = None
    train: str | None = None
    validation: str | None = None
    text_column: tuple[str, ...] = ()
    label_column: str | None = None
    regression: bool = False
    max_length: int = 128
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


def run_tuning(job: TuneJob, progress: Progress = lambda done, total, what: None) -> TuneRecord:
    """Tunes the checkpoint `job.model` into the new folder `job.out`.

    The learning rate is chosen with the first seed, the other seeds run at that rate, and the model of the seed with
    the best selection score is saved (with `select_on="last"`, of the first seed). All that can be checked is checked
    before the first step; `out` appears complete or not at all. Raises `InputError`, and a `DivergenceError` if the
    loss became NaN or Inf at every learning rate.
    """
    configs = _check_job(job)
    source = open_source(job.model, job.revision)
    data = _load_data(job, source)
    empty = empty_for_task(source, data.task)
    if configs[0].lora is not None:
        add_lora(empty, configs[0].lora)
    check_metric(data.task, job.metric_for_best_model)
    split_train(data, configs[0])
    out = Path(job.out).expanduser()
    settings = _settings(job, source, data)
    check_work(out, settings, resume=job.resume, overwrite=job.overwrite)
    done = _finished(out) if job.resume else None
    if done is not None:
        return done
    check_output(out, overwrite=job.overwrite)
    processes = PartialState(cpu=True) if job.device == "cpu" else PartialState()
    processes.wait_for_everyone()
    if processes.is_main_process:
        open_work(out, settings, resume=job.resume)
    processes.wait_for_everyone()
    record, chosen = _run_all(job, source, data, _Runner(out, source, data, job.log_dir, progress))
    if processes.is_main_process:
        _put_in_place(out, chosen, record, source)
    processes.wait_for_everyone()
    return record


@dataclass(frozen=True)
class _Runner:
    """Carries out runs, each in a folder of its own; one that is finished is read instead."""

    out: Path
    source: Source
    data: EncodedTask
    log_dir: str | None
    progress: Progress

    def folder(self, config: Finetune) -> Path:
        return work_folder(self.out) / f"learning-rate-{config.learning_rate:g}-seed-{config.seed}"

    def run(self, config: Finetune) -> RunRecord:
        folder = self.folder(config)
        result = folder / "result"
        if (result / _RUN_FILE).is_file():
            return run_from_dict(json.loads((result / _RUN_FILE).read_text(encoding="utf-8")))
        folder.mkdir(exist_ok=True)
        model = load_for_task(self.source, self.data.task, config.seed)
        where = Where(folder, self.progress, _log_callbacks(self.log_dir, folder.name))
        model, record = finetune(model, self.data, config, where)
        if PartialState().is_main_process:
            with staged_folder(result) as staged:
                save_model(model, self.source.folder, staged)
                if config.lora is not None:
                    shutil.copytree(folder / "adapter", staged / "adapter")
                (staged / _RUN_FILE).write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
            for state in [*folder.glob("checkpoint-*")]:
                shutil.rmtree(state)
        PartialState().wait_for_everyone()
        return record


def _run_all(job: TuneJob, source: Source, data: EncodedTask, runner: _Runner) -> tuple[TuneRecord, Path]:
    """The record, and the folder of the run whose model is to be kept."""
    first, diverged, errors = [], [], []
    for rate in job.learning_rate:
        try:
            first.append(runner.run(job.finetune(rate, job.seeds[0])))
        except DivergenceError as error:
            diverged.append(rate)
            errors.append(error)
    if not first:
        raise errors[-1]
    rate = max(first, key=_selection_score).learning_rate
    chosen = [run for run in first if run.learning_rate == rate]
    chosen += [runner.run(job.finetune(rate, seed)) for seed in job.seeds[1:]]
    best = max(chosen, key=_selection_score)
    folder = runner.folder(job.finetune(rate, best.seed)) / "result"
    model = load_for_task(replace(source, folder=folder), data.task, best.seed)
    record = TuneRecord(
        recipe={name: value for name, value in asdict(job).items() if name not in _FREE or name == "model"}
        | {"model": _name(job.model)},
        task=data.task.name,
        data=data.source,
        note=_note(job, data),
        model_sha256=source.sha256,
        device=str(PartialState().device),
        versions=versions(),
        size=model_size(model),
        learning_rate=rate,
        saved_seed=best.seed,
        scores=summarise(chosen),
        diverged=tuple(diverged),
        runs=(*first, *chosen[1:]),
    )
    return record, folder


def _put_in_place(out: Path, chosen: Path, record: TuneRecord, source: Source) -> None:
    with staged_folder(out) as folder:
        shutil.copytree(chosen, folder, dirs_exist_ok=True)
        (folder / _RUN_FILE).unlink()
        (folder / "README.md").write_text(tune_card(record), encoding="utf-8")
        (folder / TUNE_RECORD_FILE).write_text(record.to_json(), encoding="utf-8")
    remove_work(out)


def _finished(out: Path) -> TuneRecord | None:
    """The record of a job that was killed after `out` was complete, None if it was not; its work folder goes."""
    if not work_folder(out).exists() or not (out / TUNE_RECORD_FILE).is_file():
        return None
    remove_work(out)
    return tune_record_from_dict(json.loads((out / TUNE_RECORD_FILE).read_text(encoding="utf-8")))


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
    training_arguments(Path(job.out), device=job.device, precision=job.precision)
    _log_callbacks(job.log_dir, "")
    return configs


def _load_data(job: TuneJob, source: Source) -> EncodedTask:
    return encode_task(_task_data(job), source.tokenizer, max_length=job.max_length)


def _task_data(job: TuneJob) -> TaskData:
    files = {name: None if getattr(job, name) is None else Path(getattr(job, name)) for name in ("train", "validation")}
    if job.task is not None:
        return load_task(job.task, **files)
    if not (files["train"] and files["validation"] and job.text_column and job.label_column):
        raise InputError("`task` must be given, or `train`, `validation`, `text_column` and `label_column`")
    if len(job.text_column) > 2:
        raise InputError(f"`text_column` must name one column or two, got {', '.join(job.text_column)}")
    return load_files(
        files["train"], files["validation"], CustomTask(job.text_column, job.label_column, job.regression)
    )


def _settings(job: TuneJob, source: Source, data: EncodedTask) -> dict[str, Any]:
    """All that the bytes of the result depend on."""
    told = {name: value for name, value in asdict(job).items() if name not in _FREE}
    hashes = {"model": source.sha256, "train": data.train.sha256()}
    hashes |= {name: examples.sha256() for name, examples in data.evaluation.items()}
    return normalised(told | hashes | {"versions": versions()})


def _log_callbacks(log_dir: str | None, name: str) -> list[TrainerCallback]:
    """A writer for TensorBoard, if one is asked for. Raises `InputError` if TensorBoard is not installed."""
    if log_dir is None:
        return []
    from transformers.integrations.integration_utils import TensorBoardCallback, is_tensorboard_available

    if not is_tensorboard_available():
        raise InputError("`log_dir` needs TensorBoard: pip install tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    return [TensorBoardCallback(SummaryWriter(str(Path(log_dir) / name)))] if name else []


def _selection_score(run: RunRecord) -> float:
    return 0.0 if run.selection_score is None else run.selection_score


def _name(model: str) -> str:
    folder = Path(model).expanduser()
    return folder.resolve().name if folder.is_dir() else model


def _note(job: TuneJob, data: EncodedTask) -> str:
    """What a reader of the scores must know about how they were chosen."""
    if job.select_on == "validation":
        split = next(iter(data.evaluation))
        return f"epoch and learning rate were chosen on {split}, which is reported too (the paper's habit): optimistic"
    if job.select_on == "last":
        return "nothing was chosen: the last epoch"
    share = f"{100 * job.holdout:g} % of train"
    return f"epoch and learning rate were chosen on {share}, held out; the reported splits were not used"
