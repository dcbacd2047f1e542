"""From checkpoint to checkpoint: opened and checked without weights, compressed, written whole or not at all."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from mlpfusion.checkpoint.files import carried_files, left_files
from mlpfusion.checkpoint.read import check_fit, empty_model, load_model, origin, read_config, resolve
from mlpfusion.checkpoint.save import save_compressed
from mlpfusion.compression.budget import check_budget
from mlpfusion.compression.checks import check_not_compressed
from mlpfusion.compression.compress import compress
from mlpfusion.compression.on_task import install_learned, learn
from mlpfusion.compression.plan import choose_sites, make_plan
from mlpfusion.data.calibration_texts import CalibrationTexts
from mlpfusion.data.encode import EncodedTask
from mlpfusion.data.random_tokens import RandomTokens
from mlpfusion.data.task_model import Source, load_for_task
from mlpfusion.errors import InputError, shown
from mlpfusion.options.selection import Selection
from mlpfusion.progress import Progress
from mlpfusion.record import RECORD_FILE, Record
from mlpfusion.sites.row_check import check_visited
from mlpfusion.sites.sites import find_sites
from mlpfusion.sites.table import Architecture, find_architecture
from mlpfusion.storage.output import Occupant, staged_folder


@dataclass(frozen=True)
class OpenCheckpoint:
    """A checkpoint in `folder` that fits the cut asked for; no weight is read yet."""

    name: str
    revision: str | None
    folder: Path
    config: PreTrainedConfig
    architecture: Architecture


@dataclass(frozen=True)
class Work:
    """How a checkpoint is compressed: method and size, and where the random steps and the arithmetic are done."""

    method: object
    selection: Selection
    seed: int
    device: str
    progress: Progress


def open_checkpoint(
    model: str, revision: str | None, architecture: str | None, selection: Selection, device: str
) -> OpenCheckpoint:
    """Opens the checkpoint `model`; `architecture` is the path of a row file.

    Warns of files that are left out. Raises `InputError` for a bad layer or width, a row that does not fit, and a
    damaged checkpoint, by shapes only.
    """
    check_device(device)
    folder = resolve(model, revision)
    config = read_config(folder)
    row = find_architecture(config.model_type, architecture)
    _check_plan(config, row, selection)
    check_fit(folder, config)
    carried_files(folder)
    if left := left_files(folder):
        some = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
        warnings.warn(f"files that belong to no model or tokenizer are left out: {some}", stacklevel=2)
    return OpenCheckpoint(model, revision, folder, config, row)


def compress_checkpoint(
    source: OpenCheckpoint, work: Work, texts: CalibrationTexts | RandomTokens | None, *, sequential: bool
) -> tuple[PreTrainedModel, Record]:
    """Returns the compressed model and the record. Raises `InputError` as `compress` does."""
    batches = None if texts is None else texts.batches(source.folder, source.config, work.seed)
    model = load_model(source.folder, source.config)
    record = compress(
        model,
        work.method,
        layers=work.selection.layers,
        keep_ratio=work.selection.keep_ratio,
        width=work.selection.width,
        budget=work.selection.budget,
        round_to=work.selection.round_to,
        seed=work.seed,
        calibration=batches,
        sequential=sequential,
        architecture=source.architecture,
        device=work.device,
        progress=work.progress,
    )
    if texts is None:
        return model, record
    used = record.recipe["calibration"] | texts.record() | {"seed": work.seed}
    return model, replace(record, recipe=record.recipe | {"calibration": used})


def learn_checkpoint(
    source: OpenCheckpoint, work: Work, task_source: Source, data: EncodedTask
) -> tuple[PreTrainedModel, Record]:
    """Returns the model, in the class that the checkpoint has, by a method that learns on `data`, and the record.

    The method learns on a copy with the head of the task, drawn from the seed where the checkpoint has none. That head
    is not saved. Raises `InputError` as `learn` does.
    """
    model = load_for_task(task_source, data.task, work.seed)
    learned = learn(
        model,
        work.method,
        data,
        work.selection,
        work.seed,
        architecture=source.architecture,
        device=work.device,
        progress=work.progress,
    )
    del model
    compressed = load_model(source.folder, source.config)
    return compressed, install_learned(compressed, learned)


def write_checkpoint(
    source: OpenCheckpoint,
    model: PreTrainedModel,
    record: Record,
    out: Path,
    replaced: Occupant | None,
    card: Callable[[Record, Path, PreTrainedModel], str],
) -> Record:
    """Writes model, tokenizer, record and model card into the new folder `out`, complete or not at all.

    Returns the record as written, with the origin of the model and the sizes of the files. `card` makes the text of the
    model card.
    """
    config, came_from = read_config(source.folder), origin(source.name, source.revision, source.folder)
    with staged_folder(out, replaced) as folder:
        record = replace(save_compressed(model, source.folder, config, record, folder), model=came_from)
        (folder / "README.md").write_text(card(record, source.folder, model), encoding="utf-8")
        (folder / RECORD_FILE).write_text(record.to_json(), encoding="utf-8")
    return record


def check_device(device: str) -> None:
    """Raises `InputError` unless this machine has the device called `device`."""
    if device not in ("cpu", "cuda"):
        raise InputError(f"`device` must be cpu or cuda, got {shown(device)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("`device` must be cpu on this machine, got 'cuda', but torch sees no CUDA device")


def _check_plan(config: PreTrainedConfig, architecture: Architecture, selection: Selection) -> None:
    """Raises `InputError` for a bad layer or width, or a row that does not fit, with shapes only: no weight is read."""
    check_not_compressed(config)
    model = empty_model(config)
    sites = find_sites(model, architecture)
    if selection.budget is None:
        make_plan(sites, selection)
    else:
        check_budget(model, sites, selection)
    check_visited(model, choose_sites(sites, selection.layers))
