"""One run of an experiment: it leaves a file, and one whose file is there is not run again."""

import hashlib
import json
import platform
import re
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from filelock import FileLock
from transformers import PreTrainedModel

from mlpfusion.checkpoint.read import display_name
from mlpfusion.checks import user_path
from mlpfusion.compression.compress import check_not_compressed
from mlpfusion.compression.on_task import compress_on_task
from mlpfusion.compression.plan import make_plan
from mlpfusion.data.encode import EncodedExamples, EncodedTask
from mlpfusion.data.load import load_task
from mlpfusion.data.task_model import Source, empty_for_task, encode_for, load_for_task, open_source
from mlpfusion.data.unlabelled import calibration_batches
from mlpfusion.errors import DivergenceError, InputError, one_line
from mlpfusion.methods import method_name, takes_no_data
from mlpfusion.methods.on_task import TASK_METHODS
from mlpfusion.options.selection import Selection
from mlpfusion.progress import Progress
from mlpfusion.record import versions
from mlpfusion.reproduce.experiment import Cell, Experiment
from mlpfusion.sites.row_check import check_visited
from mlpfusion.sites.sites import find_sites
from mlpfusion.sites.table import Architecture, architecture_to_dict, find_architecture
from mlpfusion.storage.atomic import write_file
from mlpfusion.storage.manifest import read_sealed_json, sealed_json
from mlpfusion.storage.processes import of_first
from mlpfusion.storage.unfinished import give_back, take_lock
from mlpfusion.tune.distill import distill, split_examples
from mlpfusion.tune.finetune import Where, finetune, split_train
from mlpfusion.tune.lora import add_lora
from mlpfusion.tune.start import compressed_start, trained_parameters

Row = dict[str, Any]
# Fields of an experiment that change no number of a run, or are told by the run itself.
_FREE = ("name", "title", "description", "model", "out", "references", "tasks", "methods", "layers", "keep_ratio")
_FREE += ("seeds", "learning_rate", "lora_learning_rate", "device", "chart", "architecture")
_NAMES = ("model", "label")  # of a run: they change nothing, and experiments that share its file may have others


@dataclass(frozen=True)
class Grid:
    """An experiment with its models and tasks, read once each.

    A run is a JSON file in `OUT/runs`, whose name ends in a hash of all that its numbers depend on but for machine and
    versions. `OUT/unfinished` holds the states of the runs that are on their way: after a kill they go on from there.
    A run that is on its way is locked by its process, so that several may share a folder.
    """

    experiment: Experiment
    sources: dict[str, Source] = field(default_factory=dict)
    tasks: dict[tuple[str, str], tuple[EncodedTask, dict[str, str]]] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        """The folder of the experiment."""
        return user_path("out", self.experiment.out)

    def source(self, model: str) -> Source:
        """The checkpoint `model`. Raises `InputError` as `open_source` does."""
        if model not in self.sources:
            self.sources[model] = open_source(model, new_head=self.experiment.new_head)
        return self.sources[model]

    def row(self, cell: Cell) -> Architecture:
        """Where the MLPs of the cell's model are. Raises `InputError` as `find_architecture` does."""
        return find_architecture(self.source(cell.entry.model).config.model_type, self.experiment.architecture)

    def data(self, cell: Cell) -> tuple[EncodedTask, dict[str, str]]:
        """The task of `cell` as token ids of its model, and the hashes of its splits. Raises as the loaders do."""
        key = (cell.task, cell.entry.model)
        if key not in self.tasks:
            source = self.source(cell.entry.model)
            # All training texts, also with `max_train_samples`: the hashes name the files of finished runs.
            data = encode_for(source, load_task(cell.task), self.experiment.max_length)
            hashes = {name: examples.sha256() for name, examples in {"train": data.train, **data.evaluation}.items()}
            self.tasks[key] = (data, hashes)
        return self.tasks[key]

    def check(self, cell: Cell) -> None:
        """Raises `InputError` if the cell cannot be run: no such head, layers or data, or broken files of its runs.

        No weight is read.
        """
        entry, source, (data, _) = cell.entry, self.source(cell.entry.model), self.data(cell)
        empty = empty_for_task(source, data.task)
        config = self.experiment.finetune(self.experiment.rates(entry)[0], self.experiment.seeds[0], entry.lora)
        train, _ = split_train(data, config)
        if entry.layerwise:
            split_examples(train, self.experiment.distill(config.learning_rate, config.seed, entry.layerwise))
        if entry.method is not None:
            check_not_compressed(source.config)
            sites = find_sites(empty, self.row(cell))
            check_visited(empty, make_plan(sites, Selection(cell.layers, cell.keep_ratio)).sites)
        if entry.lora is not None:
            add_lora(empty, entry.lora)
        for rate in self.experiment.rates(entry):
            for seed in self.experiment.seeds:
                file = self._file(self.identity(cell, rate, seed))
                if file.exists():
                    read_run(file, self.identity(cell, rate, seed))

    def _file(self, identity: Row) -> Path:
        return self.out / "runs" / f"{run_name(identity)}.json"

    def identity(self, cell: Cell, rate: float, seed: int) -> Row:
        """All that the numbers of a run depend on, but for the machine and the versions."""
        entry, experiment = cell.entry, self.experiment
        unused = {"calibration_samples"} if entry.method is None or takes_no_data(entry.method) else set()
        unused |= set() if entry.layerwise else {"layerwise_learning_rate"}
        unused |= set() if experiment.new_head else {"new_head"}
        told = {name: value for name, value in asdict(experiment).items() if name not in {*_FREE, *unused}}
        told["max_length"] = self.data(cell)[0].max_length
        own = {
            "model": display_name(entry.model),
            "model_sha256": self.source(entry.model).sha256,
            "data_sha256": self.data(cell)[1],
            "label": entry.label if entry.model == experiment.model else display_name(entry.model),
            "method": None if entry.method is None else method_name(type(entry.method)),
            "options": {} if entry.method is None else asdict(entry.method),
            "layerwise": entry.layerwise,
            "lora": None if entry.lora is None else asdict(entry.lora),
        }
        if entry.method is not None and experiment.architecture is not None:
            own["architecture"] = architecture_to_dict(self.row(cell))
        place = {"task": cell.task, "layers": cell.layers, "keep_ratio": cell.keep_ratio}
        return told | own | place | {"learning_rate": rate, "seed": seed}

    def run(self, cell: Cell, rate: float, seed: int, progress: Progress) -> Row | None:
        """The row of one run: read, if it was made before. One that diverged is one too.

        None if another process is at it; the processes of one `accelerate launch` make it together. Raises `InputError`
        if its file holds something else than that run.
        """
        identity = self.identity(cell, rate, seed)
        file, states = self._file(identity), self.out / "unfinished" / run_name(identity)
        lock = FileLock(states.with_name(f"{states.name}.lock"))
        if not of_first(file.is_file):
            if not of_first(lambda: take_lock(lock)):
                return None
            try:
                if not of_first(file.is_file):  # else it was finished in between
                    row = identity | self._outcome(cell, rate, seed, states, progress)
                    if PartialState().is_main_process:
                        write_file(file, sealed_json(row))
                        shutil.rmtree(states, ignore_errors=True)
            finally:
                give_back(lock)  # who gets it from now on finds the file
            PartialState().wait_for_everyone()
        return read_run(file, identity)

    def _outcome(self, cell: Cell, rate: float, seed: int, states: Path, progress: Progress) -> Row:
        row = {"versions": versions(), "threads": torch.get_num_threads(), "machine": platform.machine()}
        try:
            return row | self._train(cell, rate, seed, states, progress)
        except DivergenceError as error:
            return row | {"diverged": str(error)}

    def _train(self, cell: Cell, rate: float, seed: int, states: Path, progress: Progress) -> Row:
        entry, (data, _) = cell.entry, self.data(cell)
        config = self.experiment.finetune(rate, seed, entry.lora)
        train, _ = split_train(data, config)
        model, row = self._start(cell, seed, train, progress)
        if entry.layerwise:
            teacher = load_for_task(self.source(entry.model), data.task, seed)
            tuning = self.experiment.distill(rate, seed, entry.layerwise)
            stage = distill(model, teacher, train, data.collate, tuning, _where(states / "layerwise", progress))
            row |= {"distill": asdict(stage)}
        _, run = finetune(model, data, config, _where(states / "tuning", progress))
        return row | {"run": asdict(run), "device": str(PartialState().device)}

    def _start(self, cell: Cell, seed: int, train: EncodedExamples, progress: Progress) -> tuple[PreTrainedModel, Row]:
        """The model that is tuned, and its numbers of parameters. What a method learns from is `train`."""
        method, source, (data, _) = cell.entry.method, self.source(cell.entry.model), self.data(cell)
        selection: dict[str, Any] = {"layers": cell.layers, "keep_ratio": cell.keep_ratio}
        if method is None or type(method) in TASK_METHODS:
            model = load_for_task(source, data.task, seed)
            if method is None:
                return model, {"parameters": model.num_parameters(), "nonzero_parameters": model.num_parameters()}
            seen = replace(data, train=train)
            selection["architecture"] = self.row(cell)
            record = compress_on_task(model, method, seen, **selection, seed=seed, progress=progress)
        else:
            calibration, count = None, self.experiment.calibration_samples
            selection["architecture"] = self.row(cell)
            if not takes_no_data(method):
                calibration = calibration_batches(train, data.collate, source.config, count, seed)
            model, record = compressed_start(source, data.task, method, seed, selection, calibration)
        sizes = {"parameters": record.compressed.parameters, "nonzero_parameters": trained_parameters(record)}
        return model, sizes | {"compress_seconds": record.seconds}


def run_name(identity: Row) -> str:
    """The name of a run's file: what one looks for, and a hash of everything but the names of model and method.

    The model is known by the hash of its bytes, the method by its options.
    """
    words = f"{identity['task']} {identity['label']} {identity['layers']} {identity['keep_ratio']:g}"
    slug = re.sub("[^a-z0-9.]+", "-", words.lower()).strip("-")
    counted = {name: value for name, value in identity.items() if name not in _NAMES}
    digest = hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:12]
    return f"{slug}-seed-{identity['seed']}-{digest}"


def _where(folder: Path, progress: Progress) -> Where:
    folder.mkdir(parents=True, exist_ok=True)
    return Where(folder, progress)


def read_run(file: Path, identity: Row) -> Row:
    """The row in `file`, under the names of `identity`.

    Raises `InputError` if the file does not hold what was written, or another run: all that the numbers of a run depend
    on is compared.
    """
    cure = "delete it, and the run is made again"
    try:
        row = read_sealed_json(file)
    except (InputError, OSError) as error:
        raise InputError(f"{one_line(error)}: {cure}") from error
    told = json.loads(json.dumps(identity))
    wrong = [name for name in told if name not in _NAMES and (name not in row or row[name] != told[name])]
    if wrong:
        name = wrong[0]
        raise InputError(f"{file} must have `{name}` {told[name]!r}, got {row.get(name)!r}, another run's: {cure}")
    return row | {name: told[name] for name in _NAMES}


def sweep(out: Path) -> None:
    """Removes what killed processes left of runs that are finished: their states and locks, and files half written."""
    for name in {path.name.removesuffix(".lock") for path in (out / "unfinished").glob("*")}:
        lock = FileLock(out / "unfinished" / f"{name}.lock")
        if (out / "runs" / f"{name}.json").is_file() and take_lock(lock):
            shutil.rmtree(out / "unfinished" / name, ignore_errors=True)
            give_back(lock)
    with suppress(OSError):  # not empty: another experiment's runs
        (out / "unfinished").rmdir()
