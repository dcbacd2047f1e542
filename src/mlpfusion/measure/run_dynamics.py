"""The full model and compressed ones, trained alike; resumed run by run."""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from mlpfusion.batch import Batch
from mlpfusion.checkpoint.open import Checkpoint, open_for_training
from mlpfusion.checkpoint.read import display_name
from mlpfusion.checkpoint.stage import is_whole
from mlpfusion.checks import check_given, user_path
from mlpfusion.compression.calibration.checks import check_sequential
from mlpfusion.compression.checks import check_cut, known_method
from mlpfusion.data.chosen import chosen_data
from mlpfusion.data.encode import EncodedExamples, EncodedTask
from mlpfusion.data.task_model import empty_for_task, encode_for, load_for_task
from mlpfusion.data.tasks import kind_of_task, new_tokens
from mlpfusion.data.unlabelled.calibration_texts import CalibrationTexts, check_samples
from mlpfusion.data.unlabelled.examples import calibration_batches
from mlpfusion.errors import InputError
from mlpfusion.measure.dynamics import TrainingPath, distances, lengths, train_path
from mlpfusion.measure.method_list import FULL, parse_methods
from mlpfusion.methods.names import method_label, method_name
from mlpfusion.methods.needs import needs_batches
from mlpfusion.options.calibration import CalibrationOptions
from mlpfusion.options.dynamics import DynamicsOptions
from mlpfusion.options.fields import bound
from mlpfusion.progress import Progress
from mlpfusion.record import versions
from mlpfusion.storage.manifest import seal
from mlpfusion.storage.output import staged_folder
from mlpfusion.storage.processes import join_processes
from mlpfusion.storage.record_job import RecordJob
from mlpfusion.storage.unfinished import normalised
from mlpfusion.tune.start import compressed_start, trained_parameters
from mlpfusion.tune.trainer import training_arguments

RECORD_FILE = "dynamics.json"
_RUN_FILE, _PATH_FILE = "run.json", "path.safetensors"


def run_dynamics(
    options: DynamicsOptions, write_report: Callable[[dict[str, Any], Path], None], progress: Progress
) -> dict[str, Any]:
    """Returns the record, also written into the new folder `out`; `write_report` adds tables and chart.

    All that can be checked is checked before the first step. A run that was killed goes on where it was when it is
    started again: `OUT.unfinished` holds the runs that are complete. Raises `InputError`, and a `DivergenceError` if a
    loss is not finite.
    """
    methods, job = _check_options(options), _job(options)
    job.check()
    tokens = new_tokens(options.data.task)
    source = open_for_training(
        options.model, options.revision, mlps=options.mlps, new_head=options.data.new_head, new_tokens=tokens
    )
    data = encode_for(source, chosen_data(options.data, options.validation), options.data.max_length)
    check_cut(empty_for_task(source, data.task), source.row, options.selection())
    told, texts = options.texts, None
    if told.calibration is not None:
        texts = CalibrationTexts.read(told.calibration, told.column, told.calibration_samples)
    arguments = training_arguments(Path(options.out), device=options.device, precision="fp32")
    runner = Runner(options, source, data, texts, arguments)
    return job.record(runner.settings(), lambda: _record(runner, _run_all(runner, methods, progress)), write_report)


def _job(options: DynamicsOptions) -> RecordJob:
    reads = (options.model, options.data.train, options.validation, options.texts.calibration)
    return RecordJob(user_path("out", options.out), RECORD_FILE, options.overwrite, reads)


@dataclass(frozen=True)
class Runner:
    """Carries out the runs, each kept in a folder of its own; one that is there is read instead."""

    options: DynamicsOptions
    source: Checkpoint
    data: EncodedTask
    texts: CalibrationTexts | None
    arguments: Any

    def held_out(self) -> EncodedExamples:
        """The examples that the distance is measured on: drawn once, the same for all seeds."""
        examples = next(iter(self.data.evaluation.values()))
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0)).tolist()
        return examples.subset(order[: math.ceil(self.options.eval_samples / self.answers)])

    @property
    def answers(self) -> int:
        """Predictions of a held-out example that are compared."""
        return kind_of_task(self.data.task).answers

    def calibration(self, seed: int) -> list[Batch]:
        """Batches of unlabelled texts for the calibrated methods."""
        if self.texts is not None:
            return self.texts.batches(self.source.folder, empty_for_task(self.source, self.data.task), seed)
        config, number = self.source.training_config, self.options.texts.calibration_samples
        return calibration_batches(self.data.train, self.data.collate, config, number, seed)

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
        model, record = compressed_start(
            self.source,
            self.data.task,
            method,
            self.options.selection(),
            seed=seed,
            architecture=self.source.row,
            calibration=calibration,
            sequential=calibrated and self.options.texts.sequential,
        )
        return model, {
            "parameters": record.compressed.parameters,
            "trained_parameters": trained_parameters(record),
        }

    def run(self, name: str, method: Any, seed: int, progress: Progress) -> tuple[dict[str, Any], TrainingPath]:
        """What one run was, and its path."""
        folder = _job(self.options).folder / name
        if not is_whole(folder):
            config = self.options.dynamics(seed)
            model, sizes = self.start(method, seed)
            model.to(self.arguments.device)
            path = train_path(model, self.data, self.held_out(), config, progress)
            run = sizes | {"seconds_per_step": path.seconds_per_step}
            with staged_folder(folder, listed=False) as staged:
                save_file({"logits": path.logits, "losses": path.losses}, staged / _PATH_FILE)
                (staged / _RUN_FILE).write_text(json.dumps(run) + "\n", encoding="utf-8")
                seal(staged)
        run, tensors = json.loads((folder / _RUN_FILE).read_text(encoding="utf-8")), load_file(folder / _PATH_FILE)
        return run, TrainingPath(**tensors, seconds_per_step=run["seconds_per_step"])

    def settings(self) -> dict[str, Any]:
        """All that the numbers depend on."""
        hashes = {"model": self.source.sha256, "train": self.data.train.sha256(), "held_out": self.held_out().sha256()}
        where = {"device": str(self.arguments.device), "threads": torch.get_num_threads(), "versions": versions()}
        texts = None if self.texts is None else self.texts.record()["texts_sha256"]
        told = bound(self.options) | hashes | where | {"calibration": texts}
        return normalised(told | self.source.row_for_identity())


def _run_all(runner: Runner, methods: Sequence[Any], progress: Progress) -> list[dict[str, Any]]:
    """One row a run, seed by seed, the full model first."""
    options, rows = runner.options, []
    steps = options.training.steps
    total = steps * (1 + len(methods)) * len(options.seeds)
    for seed in options.seeds:
        full = None
        for number, method in enumerate([None, *methods]):
            name = FULL if method is None else method_label(method)
            before = steps * len(rows)

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
    options, split = runner.options, next(iter(runner.data.evaluation))
    held_out = runner.held_out()
    calibration = {"samples": options.texts.calibration_samples, "source": "training split, unlabelled"}
    if runner.texts is not None:
        calibration = {"samples": options.texts.calibration_samples} | runner.texts.record()
    return {
        "model": display_name(options.model),
        "model_sha256": runner.source.sha256,
        "task": runner.data.task.name,
        "data": runner.data.source,
        "recipe": normalised(bound(options)),
        "optimizer": "AdamW, constant rate, betas and epsilon of Finetune, no decay, no clipping, no dropout, fp32",
        "calibration": calibration,
        "held_out": {
            "split": split,
            "samples": len(held_out),
            "answers": runner.answers,
            "sha256": held_out.sha256(),
        },
        "device": str(runner.arguments.device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "measured_at": list(options.training.measured_at()),
        "rows": rows,
    }


def _named(method: Any) -> dict[str, Any]:
    return {"method": method_name(type(method)), "options": asdict(method)}


def _check_options(options: DynamicsOptions) -> list[Any]:
    """The configs of the methods. Raises `InputError`."""
    for name, values in (("methods", options.methods), ("seeds", options.seeds)):
        check_given(bool(values), name)
    methods = parse_methods(",".join(options.methods))
    for method in methods:
        known_method(method)
    if len(set(options.seeds)) < len(options.seeds):
        raise InputError(f"`seeds` must not repeat, got {','.join(map(str, options.seeds))}")
    if len({repr(method) for method in methods}) < len(methods):
        raise InputError(f"`methods` must not repeat, got {','.join(options.methods)}")
    _check_calibration(options, methods)
    for seed in options.seeds:
        options.dynamics(seed)
    if options.eval_samples < 1:
        raise InputError(f"`eval_samples` must be at least 1, got {options.eval_samples}")
    check_samples(options.texts.calibration_samples)
    if options.device not in ("auto", "cpu", "cuda"):
        raise InputError(f"`device` must be auto, cpu or cuda, got {options.device!r}")
    join_processes(options.device)
    return methods


def _check_calibration(options: DynamicsOptions, methods: Sequence[Any]) -> None:
    """Raises `InputError` for what says how to calibrate where nothing is calibrated, and a column of no file."""
    texts, usual = options.texts, CalibrationOptions()
    for name, is_given in (
        ("sequential", texts.sequential),
        ("calibration", texts.calibration is not None),
        ("calibration_samples", texts.calibration_samples != usual.calibration_samples),
    ):
        if is_given and not any(needs_batches(method) for method in methods):
            raise InputError(
                f"`{name}` must be left out where no method is calibrated, got {','.join(options.methods)}"
            )
    for method in methods if texts.sequential else ():
        check_sequential(method)
    if options.texts.column is not None and options.texts.calibration is None:
        raise InputError(f"`column` must be left out without `calibration`, got {options.texts.column!r}")
