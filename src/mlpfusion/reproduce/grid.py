"""Runs of an experiment: each leaves a file and is never repeated."""

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

from mlpfusion.checkpoint.open import Checkpoint, open_for_training
from mlpfusion.checkpoint.read import display_name
from mlpfusion.checkpoint.stage import GENERATED
from mlpfusion.checks import user_path
from mlpfusion.compression.checks import check_cut, check_experts
from mlpfusion.compression.compress import compress
from mlpfusion.data.chosen import split_train
from mlpfusion.data.encode import EncodedExamples, EncodedTask
from mlpfusion.data.generation.encode import EncodedGeneration
from mlpfusion.data.task_model import empty_for_task, encode_for, load_for_task
from mlpfusion.data.tasks import find_task, kind_of_task, load_task, new_tokens
from mlpfusion.data.unlabelled.examples import calibration_batches
from mlpfusion.errors import DivergenceError, InputError, one_line
from mlpfusion.methods.names import method_name
from mlpfusion.methods.needs import needs_batches
from mlpfusion.methods.table import ON_TASK
from mlpfusion.options.adapters.dsee import Dsee
from mlpfusion.options.adapters.lora import Lora
from mlpfusion.options.decoding import Decoding
from mlpfusion.options.fields import bound, leaves
from mlpfusion.options.selection import Selection
from mlpfusion.progress import Progress
from mlpfusion.record import versions
from mlpfusion.reproduce.experiment import Experiment, GridCell
from mlpfusion.sites.sites import find_sites
from mlpfusion.storage.atomic import write_file
from mlpfusion.storage.manifest import read_sealed_json, sealed_json
from mlpfusion.storage.processes import of_first
from mlpfusion.storage.unfinished import give_back, take_lock
from mlpfusion.tune.adapter import add_adapter
from mlpfusion.tune.distill import distill, split_examples
from mlpfusion.tune.finetune import RunContext, finetune
from mlpfusion.tune.frozen import frozen_routers
from mlpfusion.tune.start import compressed_start, trained_parameters

Row = dict[str, Any]
_TUNING = "tuning"  # folder of the states of a run that are fine-tuning's
_NAMES = ("model", "label")  # of a run: experiments that share its file may call model and method by other names


@dataclass(frozen=True)
class Grid:
    """An experiment with its models and tasks, each read once.

    A finished run is a JSON file in `OUT/runs`; its name ends in a hash of everything its numbers
    depend on, except machine and versions. `OUT/texts` has what models wrote. `OUT/unfinished` holds
    the training states of runs under way, to resume after a kill, and a lock per run, so that
    several processes can share a folder.
    """

    experiment: Experiment
    sources: dict[tuple[str, tuple[str, ...]], Checkpoint] = field(default_factory=dict)
    tasks: dict[tuple[str, str], tuple[EncodedTask, dict[str, str]]] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        """Folder of the experiment."""
        return user_path("out", self.experiment.out)

    def source(self, cell: GridCell) -> Checkpoint:
        """Opens the checkpoint of a cell once, with the tokens of its task. Raises `InputError` if it cannot."""
        tokens, model, experiment = new_tokens(cell.task), cell.row.model, self.experiment
        if (model, tokens) not in self.sources:
            self.sources[model, tokens] = open_for_training(
                model, mlps=experiment.mlps, new_head=experiment.new_head, new_tokens=tokens
            )
        return self.sources[model, tokens]

    def data(self, cell: GridCell) -> tuple[EncodedTask, dict[str, str]]:
        """Tokenizes the task of `cell` once: (task, SHA-256 of its splits)."""
        key = (cell.task, cell.row.model)
        if key not in self.tasks:
            source = self.source(cell)
            # All training texts, even with `max_train_samples`: the hashes name the files of finished runs.
            data = encode_for(source, load_task(cell.task), self.experiment.max_length)
            if isinstance(data, EncodedGeneration):
                data = replace(data, decoding=self.experiment.decoding)
            hashes = {name: examples.sha256() for name, examples in {"train": data.train, **data.evaluation}.items()}
            self.tasks[key] = (data, hashes)
        return self.tasks[key]

    def check(self, cell: GridCell) -> None:
        """Raises `InputError` if the cell cannot run; reads no weights.

        Reasons: wrong head, layers or data, or a broken file of a finished run.
        """
        row, source, (data, _) = cell.row, self.source(cell), self.data(cell)
        empty = empty_for_task(source, data.task)
        config = self.experiment.finetune(self.experiment.rates(row)[0], self.experiment.seeds[0], row.adapter)
        train, _ = split_train(data, config)
        if row.layerwise:
            split_examples(train, self.experiment.distill(config.learning_rate, config.seed, row.layerwise))
        if row.method is not None:
            selection = Selection(cell.layers, cell.keep_ratio)
            check_experts(empty, row.method, find_sites(empty, source.row))
            check_cut(empty, source.row, selection)
        routers = frozen_routers(empty, freeze=config.freeze_router)
        if row.adapter is not None:
            add_adapter(empty, row.adapter, kind_of_task(data.task).names(empty.config).adapter, routers)
        for rate in self.experiment.rates(row):
            for seed in self.experiment.seeds:
                file = self._file(self.identity(cell, rate, seed))
                if file.exists():
                    read_run(file, self.identity(cell, rate, seed))

    def _file(self, identity: Row) -> Path:
        return self.out / "runs" / f"{run_name(identity)}.json"

    def identity(self, cell: GridCell, rate: float, seed: int) -> Row:
        """Everything the numbers of a run depend on, except machine and versions."""
        row, experiment = cell.row, self.experiment
        unused = {"calibration_samples"} if row.method is None or not needs_batches(row.method) else set()
        unused |= set() if row.layerwise else {"layerwise_learning_rate"}
        # Options younger than recorded runs count when they are given only: the runs keep their names.
        unused |= {name for name in ("new_head", "freeze_router") if not getattr(experiment, name)}
        if find_task(cell.task).kind != "generation":
            unused |= {leaf.name for leaf in leaves(Decoding)}
        settings = {name: value for name, value in bound(experiment).items() if name not in unused}
        settings["max_length"] = self.data(cell)[0].max_length
        own = {
            "model": display_name(row.model),
            "model_sha256": self.source(cell).sha256,
            "data_sha256": self.data(cell)[1],
            "label": row.label if row.model == experiment.model else display_name(row.model),
            "method": None if row.method is None else method_name(type(row.method)),
            "options": {} if row.method is None else asdict(row.method),
            "layerwise": row.layerwise,
            "lora": asdict(row.adapter) if isinstance(row.adapter, Lora) else None,
        }
        if isinstance(row.adapter, Dsee):  # younger than recorded runs, which keep their names
            own |= {"dsee": asdict(row.adapter)}
        if row.method is not None:
            own |= self.source(cell).row_for_identity()
        place = {"task": cell.task, "layers": cell.layers, "keep_ratio": cell.keep_ratio}
        return settings | own | place | {"learning_rate": rate, "seed": seed}

    def run(self, cell: GridCell, rate: float, seed: int, progress: Progress) -> Row | None:
        """Returns the result of one run, from its file if there.

        Otherwise runs it. Divergence is a result too. Returns None while another process holds the
        run's lock; the processes of one `accelerate launch` run it together. Raises `InputError` if
        the file holds another run.
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
                    PartialState().wait_for_everyone()  # until then they may read their states
                    if PartialState().is_main_process:
                        self._keep_texts(states / _TUNING / GENERATED, file.stem)
                        write_file(file, sealed_json(row))
                        shutil.rmtree(states, ignore_errors=True)
            finally:
                give_back(lock)  # who gets it from now on finds the file
            PartialState().wait_for_everyone()
        return read_run(file, identity)

    def _keep_texts(self, written: Path, name: str) -> None:
        """Copies the texts that a run wrote to `OUT/texts/NAME`."""
        if written.is_dir():
            shutil.copytree(written, self.out / "texts" / name, dirs_exist_ok=True)

    def _outcome(self, cell: GridCell, rate: float, seed: int, states: Path, progress: Progress) -> Row:
        row = {"versions": versions(), "threads": torch.get_num_threads(), "machine": platform.machine()}
        try:
            return row | self._train(cell, rate, seed, states, progress)
        except DivergenceError as error:
            return row | {"diverged": str(error)}

    def _train(self, cell: GridCell, rate: float, seed: int, states: Path, progress: Progress) -> Row:
        table_row, (data, _) = cell.row, self.data(cell)
        config = self.experiment.finetune(rate, seed, table_row.adapter)
        train, _ = split_train(data, config)
        model, row = self._start(cell, seed, train, progress)
        if table_row.layerwise:
            teacher = load_for_task(self.source(cell), data.task, seed)
            tuning = self.experiment.distill(rate, seed, table_row.layerwise)
            stage = distill(model, teacher, train, data.collate, tuning, _context(states / "layerwise", progress))
            row |= {"distill": asdict(stage)}
        _, run = finetune(model, data, config, _context(states / _TUNING, progress))
        return row | {"run": asdict(run), "device": str(PartialState().device)}

    def _start(
        self, cell: GridCell, seed: int, train: EncodedExamples, progress: Progress
    ) -> tuple[PreTrainedModel, Row]:
        """Model to fine-tune, and its counts of parameters; methods learn from `train`."""
        method, source, (data, _) = cell.row.method, self.source(cell), self.data(cell)
        if method is None or type(method) in ON_TASK:
            model = load_for_task(source, data.task, seed)
            if method is None:
                return model, {"parameters": model.num_parameters(), "nonzero_parameters": model.num_parameters()}
            seen = replace(data, train=train)
            record = compress(
                model,
                method,
                data=seen,
                layers=cell.layers,
                keep_ratio=cell.keep_ratio,
                seed=seed,
                architecture=self.source(cell).row,
                progress=progress,
            )
        else:
            calibration, count = None, self.experiment.calibration_samples
            if needs_batches(method):
                calibration = calibration_batches(train, data.collate, source.training_config, count, seed)
            model, record = compressed_start(
                source,
                data.task,
                method,
                Selection(cell.layers, cell.keep_ratio),
                seed=seed,
                architecture=self.source(cell).row,
                calibration=calibration,
            )
        sizes = {"parameters": record.compressed.parameters, "nonzero_parameters": trained_parameters(record)}
        return model, sizes | {"compress_seconds": record.seconds}


def run_name(identity: Row) -> str:
    """Name of a run's file: task, label, layers, ratio, seed, hash.

    The hash covers everything but the names of model and method: the model counts by the hash of
    its bytes, the method by its options.
    """
    words = f"{identity['task']} {identity['label']} {identity['layers']} {identity['keep_ratio']:g}"
    slug = re.sub("[^a-z0-9.]+", "-", words.lower()).strip("-")
    counted = {name: value for name, value in identity.items() if name not in _NAMES}
    digest = hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:12]
    return f"{slug}-seed-{identity['seed']}-{digest}"


def _context(folder: Path, progress: Progress) -> RunContext:
    folder.mkdir(parents=True, exist_ok=True)
    return RunContext(folder, progress)


def read_run(file: Path, identity: Row) -> Row:
    """Reads the row in `file`, with the names of `identity`.

    Raises `InputError` if the file was changed, or any entry of `identity` differs.
    """
    cure = "delete it, and the run is made again"
    try:
        row = read_sealed_json(file)
    except (InputError, OSError) as error:
        raise InputError(f"{one_line(error)}: {cure}") from error
    expected = json.loads(json.dumps(identity))
    wrong = [name for name in expected if name not in _NAMES and (name not in row or row[name] != expected[name])]
    if wrong:
        name = wrong[0]
        raise InputError(f"{file} must have `{name}` {expected[name]!r}, got {row.get(name)!r}, another run's: {cure}")
    return row | {name: expected[name] for name in _NAMES}


def sweep(out: Path) -> None:
    """Removes states and locks of finished runs, left by killed processes."""
    for name in {path.name.removesuffix(".lock") for path in (out / "unfinished").glob("*")}:
        lock = FileLock(out / "unfinished" / f"{name}.lock")
        if (out / "runs" / f"{name}.json").is_file() and take_lock(lock):
            shutil.rmtree(out / "unfinished" / name, ignore_errors=True)
            give_back(lock)
    with suppress(OSError):  # not empty: another experiment's runs
        (out / "unfinished").rmdir()
