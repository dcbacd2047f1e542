"""The work behind `mlpfusion dynamics`: the full model and compressed ones, trained alike; resumed run by run."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from mlpfusion.batch import Batch
from mlpfusion.checkpoint.read import display_name
from mlpfusion.checkpoint.stage import is_whole
from mlpfusion.checks import user_path
from mlpfusion.commands.compare import parse_methods
from mlpfusion.compression.checks import check_not_compressed, known_method
from mlpfusion.compression.plan import make_plan
from mlpfusion.data.calibration_texts import CalibrationTexts, check_samples
from mlpfusion.data.chosen import custom_task, task_data
from mlpfusion.data.encode import EncodedExamples, EncodedTask
from mlpfusion.data.task_model import Source, empty_for_task, encode_for, load_for_task, open_source
from mlpfusion.data.unlabelled import calibration_batches
from mlpfusion.errors import InputError
from mlpfusion.measure.dynamics import Dynamics, TrainingPath, distances, lengths, train_path
from mlpfusion.methods.names import method_label, method_name
from mlpfusion.methods.needs import needs_batches
from mlpfusion.options.selection import Selection
from mlpfusion.progress import Progress
from mlpfusion.record import versions
from mlpfusion.report.dynamics import dynamics_markdown, write_dynamics_chart
from mlpfusion.report.numbers import FULL
from mlpfusion.sites.row_check import check_visited
from mlpfusion.sites.sites import find_sites
from mlpfusion.sites.table import Architecture, architecture_to_dict, find_architecture
from mlpfusion.storage.manifest import seal
from mlpfusion.storage.output import check_output, staged_folder
from mlpfusion.storage.processes import join_processes
from mlpfusion.storage.unfinished import expect_record, normalised, opened_work, remove_work, work_folder
from mlpfusion.tune.start import compressed_start, trained_parameters
from mlpfusion.tune.trainer import training_arguments

RECORD_FILE = "dynamics.json"
_RUN_FILE, _PATH_FILE = "run.json", "path.safetensors"
# What may differ between a job and its resumption; model and data are compared by their hashes.
_FREE = ("model", "out", "revision", "train", "validation", "calibration", "architecture", "overwrite")


@dataclass(frozen=True)
class DynamicsJob:
    """What to train, on what, how, and where to put the report: the same fields as the flags of `mlpfusion dynamics`.

    `methods` are names with options as in `parse_methods`. A seed draws the head, the order of the data, the random
    steps of the compression, and the `calibration_samples`: texts of the file `calibration`, or unlabelled examples of
    the training split; with `sequential` each block is calibrated on what the compressed blocks before it leave. The
    distance is measured on `eval_samples` of the first reported split, the same for all seeds. `architecture` is the
    path of a row file for a model type that has no row of its own.
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
    methods: tuple[str, ...] = ("fusion", "folded-fusion", "clustering", "svd", "neuron-pruning", "ntk-match")
    layers: str = "all"
    keep_ratio: float = 0.25
    steps: int = 100
    learning_rate: float = 5e-5
    batch_size: int = 32
    every: int = 25
    seeds: tuple[int, ...] = (0, 1, 2)
    eval_samples: int = 256
    calibration: str | None = None
    column: str | None = None
    calibration_samples: int = 256
    sequential: bool = False
    device: str = "auto"
    revision: str | None = None
    architecture: str | None = None
    overwrite: bool = False

    def dynamics(self, seed: int) -> Dynamics:
        """The config of the runs of one seed. Raises `InputError` for a value out of range."""
        return Dynamics(self.steps, self.learning_rate, self.batch_size, self.every, seed)


def run_dynamics(job: DynamicsJob, progress: Progress = lambda done, total, what: None) -> dict[str, Any]:
    """The record of the job; with tables and, where matplotlib is installed, a chart it stands in the new folder `out`.

    All that can be checked is checked before the first step. A job that was killed goes on where it was when it is
    started again: `OUT.unfinished` holds the runs that are complete. Raises `InputError`, and a `DivergenceError` if a
    loss is not finite.
    """
    methods, out = _check_job(job), user_path("out", job.out)
    resume = work_folder(out).exists() and not job.overwrite
    if not resume:
        check_output(out, overwrite=job.overwrite, reads=_reads(job))
    source = open_source(job.model, job.revision, new_head=job.new_head)
    columns = custom_task(job.text_column, job.label_column, regression=job.regression, task=job.task)
    found = task_data(job.task, job.train, job.validation, columns)
    data = encode_for(source, found, job.max_length)
    _check_plan(job, source, data)
    texts = None
    if job.calibration is not None:
        texts = CalibrationTexts.read(job.calibration, job.column, job.calibration_samples)
    runner = Runner(job, source, data, texts, training_arguments(Path(job.out), device=job.device, precision="fp32"))
    settings = runner.settings()
    with opened_work(out, settings, RECORD_FILE, resume=resume, overwrite=job.overwrite, reads=_reads(job)) as opened:
        if opened.done is not None:
            return opened.done
        record = _record(runner, _run_all(runner, methods, progress))
        text = json.dumps(record, indent=1) + "\n"
        expect_record(out, text)
        with staged_folder(out, opened.replaced) as folder:
            (folder / RECORD_FILE).write_text(text, encoding="utf-8")
            (folder / "dynamics.md").write_text(dynamics_markdown(record), encoding="utf-8")
            write_dynamics_chart(record, folder / "dynamics.png")
        remove_work(out)
        return record


def _reads(job: DynamicsJob) -> tuple[str | None, ...]:
    """What `out` must not be and not hold."""
    return (job.model, job.train, job.validation, job.calibration)


@dataclass(frozen=True)
class Runner:
    """Carries out the runs of a job, each kept in a folder of its own; one that is there is read instead."""

    job: DynamicsJob
    source: Source
    data: EncodedTask
    texts: CalibrationTexts | None
    arguments: Any

    def held_out(self) -> EncodedExamples:
        """The examples that the distance is measured on: drawn once, the same for all seeds."""
        examples = next(iter(self.data.evaluation.values()))
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0)).tolist()
        return examples.subset(order[: self.job.eval_samples])

    def calibration(self, seed: int) -> list[Batch]:
        """Batches of unlabelled texts for the calibrated methods."""
        config = self.source.config
        if self.texts is not None:
            return self.texts.batches(self.source.folder, config, seed)
        return calibration_batches(self.data.train, self.data.collate, config, self.job.calibration_samples, seed)

    def start(self, method: Any, seed: int) -> tuple[PreTrainedModel, dict[str, int]]:
        """The model that is trained, on the CPU, and its numbers of parameters; `method` None is the full model.

        The head that the checkpoint lacks is drawn from `seed` before the model is compressed: it is the same for all.
        """
        if method is None:
            model = load_for_task(self.source, self.data.task, seed)
            parameters = model.num_parameters()
            return model.eval(), {"parameters": parameters, "trained_parameters": parameters}
        calibrated = needs_batches(method)
        calibration = self.calibration(seed) if calibrated else None
        selection = {name: getattr(self.job, name) for name in ("layers", "keep_ratio")}
        selection["architecture"] = self.row()
        selection["sequential"] = calibrated and self.job.sequential
        model, record = compressed_start(self.source, self.data.task, method, seed, selection, calibration)
        return model, {
            "parameters": record.compressed.parameters,
            "trained_parameters": trained_parameters(record),
        }

    def run(self, name: str, method: Any, seed: int, progress: Progress) -> tuple[dict[str, Any], TrainingPath]:
        """What one run was, and its path."""
        folder = work_folder(user_path("out", self.job.out)) / name
        if not is_whole(folder):
            config = self.job.dynamics(seed)
            model, sizes = self.start(method, seed)
            model.to(self.arguments.device)
            path = train_path(model, self.data.train, self.held_out(), self.data.collate, config, progress)
            run = sizes | {"seconds_per_step": path.seconds_per_step}
            with staged_folder(folder, listed=False) as staged:
                save_file({"logits": path.logits, "losses": path.losses}, staged / _PATH_FILE)
                (staged / _RUN_FILE).write_text(json.dumps(run) + "\n", encoding="utf-8")
                seal(staged)
        run, tensors = json.loads((folder / _RUN_FILE).read_text(encoding="utf-8")), load_file(folder / _PATH_FILE)
        return run, TrainingPath(**tensors, seconds_per_step=run["seconds_per_step"])

    def row(self) -> Architecture:
        """Where the MLPs are. Raises as `find_architecture` does."""
        return find_architecture(self.source.config.model_type, self.job.architecture)

    def settings(self) -> dict[str, Any]:
        """All that the numbers depend on."""
        hashes = {"model": self.source.sha256, "train": self.data.train.sha256(), "held_out": self.held_out().sha256()}
        where = {"device": str(self.arguments.device), "threads": torch.get_num_threads(), "versions": versions()}
        texts = None if self.texts is None else self.texts.record()["texts_sha256"]
        row = {} if self.job.architecture is None else {"architecture": architecture_to_dict(self.row())}
        return normalised(_told(self.job) | hashes | where | {"calibration": texts} | row)


def _run_all(runner: Runner, methods: Sequence[Any], progress: Progress) -> list[dict[str, Any]]:
    """One row a run, seed by seed, the full model first."""
    job, rows = runner.job, []
    total = job.steps * (1 + len(methods)) * len(job.seeds)
    for seed in job.seeds:
        full = None
        for number, method in enumerate([None, *methods]):
            name = FULL if method is None else method_label(method)
            before = job.steps * len(rows)

            def report(done: int, _total: int, what: str, before: int = before, name: str = name) -> None:
                progress(before + done, total, f"{name}, seed {seed}, {what}")  # noqa: B023

            folder = f"seed-{seed}-{number}-{re.sub('[^a-z0-9]+', '-', name.lower())}"
            run, path = runner.run(folder, method, seed, report)
            full = full or path
            told = {"method": None, "options": {}} if method is None else _named(method)
            measured = {"distance": distances(path, full), "length": lengths(path, full)}
            rows.append({"label": name, "seed": seed} | told | run | measured | {"training_loss": path.losses.tolist()})
    progress(total, total, "")
    return rows


def _record(runner: Runner, rows: list[dict[str, Any]]) -> dict[str, Any]:
    job, split = runner.job, next(iter(runner.data.evaluation))
    held_out = runner.held_out()
    calibration = {"samples": job.calibration_samples, "source": "training split, unlabelled"}
    if runner.texts is not None:
        calibration = {"samples": job.calibration_samples} | runner.texts.record()
    return {
        "model": display_name(job.model),
        "model_sha256": runner.source.sha256,
        "task": runner.data.task.name,
        "data": runner.data.source,
        "recipe": normalised(_told(job)),
        "optimizer": "AdamW, constant rate, betas and epsilon of Finetune, no decay, no clipping, no dropout, fp32",
        "calibration": calibration,
        "held_out": {"split": split, "samples": len(held_out), "sha256": held_out.sha256()},
        "device": str(runner.arguments.device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "measured_at": list(job.dynamics(job.seeds[0]).measured_at()),
        "rows": rows,
    }


def _named(method: Any) -> dict[str, Any]:
    return {"method": method_name(type(method)), "options": asdict(method)}


def _told(job: DynamicsJob) -> dict[str, Any]:
    return {name: value for name, value in asdict(job).items() if name not in _FREE}


def _check_job(job: DynamicsJob) -> list[Any]:
    """The configs of the methods. Raises `InputError`."""
    for name in ("model", "out", "methods", "seeds"):
        if not getattr(job, name):
            raise InputError(f"`{name}` must be given, on the command line or in the recipe")
    methods = parse_methods(",".join(job.methods))
    for method in methods:
        known_method(method)
    for name, values in (("seeds", job.seeds), ("methods", [repr(method) for method in methods])):
        if len(set(values)) < len(values):
            raise InputError(f"`{name}` must not repeat, got {','.join(map(str, getattr(job, name)))}")
    _check_calibration(job, methods)
    for seed in job.seeds:
        job.dynamics(seed)
    if job.eval_samples < 1:
        raise InputError(f"`eval_samples` must be at least 1, got {job.eval_samples}")
    check_samples(job.calibration_samples)
    if job.device not in ("auto", "cpu", "cuda"):
        raise InputError(f"`device` must be auto, cpu or cuda, got {job.device!r}")
    join_processes(job.device)
    return methods


def _check_calibration(job: DynamicsJob, methods: Sequence[Any]) -> None:
    """Raises `InputError` for what says how to calibrate where nothing is calibrated, and a column of no file."""
    given = {
        "sequential": job.sequential,
        "calibration": job.calibration is not None,
        "calibration_samples": job.calibration_samples != DynamicsJob.calibration_samples,
    }
    for name, is_given in given.items():
        if is_given and all(not needs_batches(method) for method in methods):
            raise InputError(f"`{name}` must be left out where no method is calibrated, got {','.join(job.methods)}")
    if job.column is not None and job.calibration is None:
        raise InputError(f"`column` must be left out without `calibration`, got {job.column!r}")


def _check_plan(job: DynamicsJob, source: Source, data: EncodedTask) -> None:
    """Raises `InputError` for a model without such a head or layers, with shapes only: no weight is read."""
    check_not_compressed(source.config)
    empty = empty_for_task(source, data.task)
    plan = make_plan(
        find_sites(empty, find_architecture(source.config.model_type, job.architecture)),
        Selection(job.layers, job.keep_ratio),
    )
    check_visited(empty, plan.sites)
