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

from mlpfusion.checkpoint.open import Checkpoint, open_for_training
from mlpfusion.checkpoint.read import display_name
from mlpfusion.checkpoint.stage import GENERATED
from mlpfusion.checks import user_path
from mlpfusion.compression.checks import check_cut, check_experts
from mlpfusion.data.chosen import split_train
from mlpfusion.data.encode import EncodedTask
from mlpfusion.data.generation.encode import EncodedGeneration
from mlpfusion.data.task_model import empty_for_task, encode_for
from mlpfusion.data.tasks import find_task, kind_of_task, load_task, new_tokens
from mlpfusion.data.unlabelled.data_free import DataFree
from mlpfusion.dsee.structured.choice import HeadChoice
from mlpfusion.errors import DivergenceError, InputError, one_line
from mlpfusion.methods.names import method_name
from mlpfusion.methods.needs import needs_batches
from mlpfusion.options.adapters.dsee import Dsee
from mlpfusion.options.adapters.lora import Lora
from mlpfusion.options.decoding import Decoding
from mlpfusion.options.fields import bound, leaves
from mlpfusion.options.selection import Selection
from mlpfusion.progress import Progress
from mlpfusion.record import versions
from mlpfusion.reproduce.experiment import Experiment, GridCell, cells
from mlpfusion.reproduce.stages import (
    TUNING,
    Job,
    Row,
    alone,
    check_second,
    first_stage,
    one_stage,
    second_stage,
    smaller,
)
from mlpfusion.sites.sites import find_sites
from mlpfusion.storage.atomic import write_file
from mlpfusion.storage.manifest import read_sealed_json, sealed_json
from mlpfusion.storage.processes import of_first
from mlpfusion.storage.unfinished import give_back, take_lock
from mlpfusion.tune.adapter import add_adapter
from mlpfusion.tune.distill import split_examples
from mlpfusion.tune.frozen import frozen_routers

_NAMES = ("model", "label")  # of a run: experiments that share its file may call model and method by other names


@dataclass(frozen=True)
class Grid:
    """An experiment with its models and tasks, each read once.

    A finished run is a JSON file in `OUT/runs`; its name ends in a hash of everything its numbers
    depend on, except machine and versions. `OUT/texts` has what models wrote. `OUT/unfinished` holds
    the training states of runs under way, to resume after a kill, and a lock per run, so that
    several processes can share a folder. `OUT/first` has what the first stage of runs with two left, as long as runs
    are to begin with it: it is trained once.
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
        if row.data_free:
            DataFree(self.experiment.calibration_samples).prepare(source.folder, empty, config.seed)
        routers = frozen_routers(empty, freeze=config.freeze_router)
        trained: Any = empty
        if row.adapter is not None:
            trained = add_adapter(empty, row.adapter, kind_of_task(data.task).names(empty.config).adapter, routers)
        if row.second is not None:
            check_second(trained, row.second)
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
        unused |= {name for name in ("new_head", "freeze_router", "eval_steps") if not getattr(experiment, name)}
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
        if row.data_free:  # the same
            own |= {"data_free": True}
        if row.second is not None:  # the same
            own |= {"heads" if isinstance(row.second, HeadChoice) else "zeros": asdict(row.second)}
        if row.method is not None:
            own |= self.source(cell).row_for_identity()
        place = {"task": cell.task, "layers": cell.layers, "keep_ratio": cell.keep_ratio}
        return settings | own | place | {"learning_rate": rate, "seed": seed}

    def run(self, cell: GridCell, rate: float, seed: int, progress: Progress) -> Row | None:
        """Returns the result of one run, from its file if there.

        Otherwise runs it. Divergence is a result too. Returns None while another process holds the
        lock of the run or of its first stage; the processes of one `accelerate launch` run it
        together. Raises `InputError` if the file holds another run.
        """
        identity = self.identity(cell, rate, seed)
        file, states = self._file(identity), self.out / "unfinished" / run_name(identity)
        lock = FileLock(states.with_name(f"{states.name}.lock"))
        if not of_first(file.is_file):
            if not of_first(lambda: take_lock(lock)):
                return None
            try:
                if not of_first(file.is_file):  # else it was finished in between
                    outcome = self._outcome(cell, rate, seed, states, progress)
                    if outcome is None:
                        return None
                    PartialState().wait_for_everyone()  # until then they may read their states
                    if PartialState().is_main_process:
                        self._keep_texts(states / TUNING / GENERATED, file.stem)
                        write_file(file, sealed_json(identity | outcome))
                        shutil.rmtree(states, ignore_errors=True)
                        self._drop_first(cell, rate, seed)
            finally:
                give_back(lock)  # who gets it from now on finds the file
            PartialState().wait_for_everyone()
        return read_run(file, identity)

    def _keep_texts(self, written: Path, name: str) -> None:
        """Copies the texts that a run wrote to `OUT/texts/NAME`."""
        if written.is_dir():
            shutil.copytree(written, self.out / "texts" / name, dirs_exist_ok=True)

    def _outcome(self, cell: GridCell, rate: float, seed: int, states: Path, progress: Progress) -> Row | None:
        row = {"versions": versions(), "threads": torch.get_num_threads(), "machine": platform.machine()}
        try:
            trained = self._train(cell, rate, seed, states, progress)
            return None if trained is None else row | trained
        except DivergenceError as error:
            return row | {"diverged": str(error)}

    def _train(self, cell: GridCell, rate: float, seed: int, states: Path, progress: Progress) -> Row | None:
        """The entries that a run adds to its row; None while another process has its first stage."""
        job = Job(self.experiment, cell, self.source(cell), self.data(cell)[0], rate, seed, progress)
        if not self._begins_another(cell.first):
            return one_stage(job, states)
        folder = self._first_folder(cell, rate, seed)
        lock = FileLock(folder.with_name(f"{folder.name}.lock"))
        if not of_first(lambda: take_lock(lock)):
            return None
        try:
            checkpoint, first = first_stage(job, folder)
            if cell.row.second is None:
                self._keep_texts(checkpoint / GENERATED, folder.name)
                return alone(job, checkpoint, first)
            model = smaller(job, checkpoint)
            PartialState().wait_for_everyone()  # until then they may read the checkpoint
        finally:
            give_back(lock)  # others may begin with it too
        return second_stage(job, model, first, states)

    def _begins_another(self, cell: GridCell) -> bool:
        """True if a run with a second stage in the grid begins as the runs of `cell` do."""
        return any(other.row.second is not None and other.first == cell for other in cells(self.experiment))

    def _first_folder(self, cell: GridCell, rate: float, seed: int) -> Path:
        return self.out / "first" / run_name(self.identity(cell.first, rate, seed))

    def _drop_first(self, cell: GridCell, rate: float, seed: int) -> None:
        """Removes the first stage of a run once every run of the grid that begins with it is there."""
        if not self._begins_another(cell.first):
            return
        begun = [other for other in cells(self.experiment) if other.first == cell.first]
        if all(self._file(self.identity(other, rate, seed)).is_file() for other in begun):
            _drop(self._first_folder(cell, rate, seed))


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
    """Removes states and locks of finished runs, and first stages, left by killed processes and other grids."""
    for folder in {path.with_name(path.name.removesuffix(".lock")) for path in (out / "first").glob("*")}:
        _drop(folder)
    for name in {path.name.removesuffix(".lock") for path in (out / "unfinished").glob("*")}:
        lock = FileLock(out / "unfinished" / f"{name}.lock")
        if (out / "runs" / f"{name}.json").is_file() and take_lock(lock):
            shutil.rmtree(out / "unfinished" / name, ignore_errors=True)
            give_back(lock)
    for name in ("unfinished", "first"):
        with suppress(OSError):  # not empty: another experiment's runs
            (out / name).rmdir()


def _drop(first: Path) -> None:
    """Removes the folder of a first stage unless a process is at it."""
    lock = FileLock(first.with_name(f"{first.name}.lock"))
    if take_lock(lock):
        shutil.rmtree(first, ignore_errors=True)
        give_back(lock)
