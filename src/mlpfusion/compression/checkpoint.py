"""From checkpoint to checkpoint: opened and checked without weights, compressed, written whole or not at all."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from mlpfusion.batch import Batch
from mlpfusion.checkpoint.files import carried_files, left_files
from mlpfusion.checkpoint.open import Checkpoint
from mlpfusion.checkpoint.read import check_fit, read_config
from mlpfusion.checkpoint.save import save_compressed
from mlpfusion.compression.checks import check_cut, check_experts
from mlpfusion.compression.compress import compress
from mlpfusion.compression.loading import loading_class
from mlpfusion.compression.on_task import install_learned, learn
from mlpfusion.compression.predictions import NUM_TEXTS, divergence, predictions, short_texts, warn_if_lost
from mlpfusion.data.encode import EncodedTask
from mlpfusion.data.task_model import load_for_task
from mlpfusion.data.unlabelled.calibration_texts import CalibrationSource, PreparedCalibration
from mlpfusion.data.unlabelled.random_tokens import random_texts
from mlpfusion.data.unlabelled.windows import is_causal
from mlpfusion.errors import InputError, shown
from mlpfusion.kinds.key import model_key
from mlpfusion.kinds.stock.fold import form_after_fold
from mlpfusion.options.selection import Selection
from mlpfusion.progress import Progress
from mlpfusion.record import RECORD_FILE, Record
from mlpfusion.sites.sites import find_sites
from mlpfusion.storage.output import Occupant, staged_folder

# (record, folder of the source) -> name -> text of the files that tell people of the result: the model card, ..
About = Callable[[Record, Path], Mapping[str, str]]


@dataclass(frozen=True)
class Work:
    """How a checkpoint is compressed: method and size, and where the random steps and the arithmetic are done.

    With `sequential` each block is calibrated on what the compressed blocks before it leave.
    """

    method: object
    selection: Selection
    seed: int
    device: str
    progress: Progress
    sequential: bool = False


def check_source(source: Checkpoint, method: Any, selection: Selection) -> None:
    """Raises `InputError` for a bad layer or size, a row that does not fit, and a damaged checkpoint; reads no weight.

    Also for a method that cannot cut what the row names. Warns of files that are left out.
    """
    empty = source.empty()
    check_experts(empty, method, find_sites(empty, source.row))
    check_cut(empty, source.row, selection)
    check_fit(source.folder, source.config)
    carried_files(source.folder)
    if left := left_files(source.folder):
        some = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
        warnings.warn(f"files that belong to no model or tokenizer are left out: {some}", stacklevel=2)


def compress_checkpoint(
    source: Checkpoint, work: Work, texts: CalibrationSource | None
) -> tuple[PreTrainedModel, Record]:
    """Returns the compressed model and the record. Raises `InputError` as `compress` does.

    Warns of a language model whose predictions are lost.
    """
    prepared = None if texts is None else texts.prepare(source.folder, source.empty(), work.seed)
    model = source.load()
    batches = None if prepared is None else prepared.batches(model, work.progress)
    probe = _probe(source, model, batches, work.seed)
    before = predictions(model, probe)
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
        sequential=work.sequential,
        architecture=source.row,
        device=work.device,
        progress=work.progress,
    )
    if probe:
        moved = divergence(before, predictions(model, probe))
        warn_if_lost(moved, "random tokens" if prepared is None else prepared.origin["file"])
        record = replace(record, divergence=moved)
    if prepared is None:
        return model, record
    return model, with_origin(record, prepared, work.seed)


def with_origin(record: Record, texts: PreparedCalibration, seed: int) -> Record:
    """The record with where the calibration came from."""
    used = record.recipe["calibration"] | texts.origin | {"seed": seed}
    return replace(record, recipe=record.recipe | {"calibration": used})


def _probe(source: Checkpoint, model: PreTrainedModel, batches: Sequence[Batch] | None, seed: int) -> list[Batch]:
    """Short texts of the calibration, else of random tokens, for a language model to predict; none for another model.

    Also none without a tokenizer that can be read: a cut without texts needs none.
    """
    if not is_causal(model):
        return []
    if batches is None:
        try:
            batches = random_texts(source.tokenizer, source.config, NUM_TEXTS, seed)
        except InputError:
            return []
    return short_texts(batches)


def learn_checkpoint(source: Checkpoint, work: Work, data: EncodedTask) -> tuple[PreTrainedModel, Record]:
    """Returns the model, in the class that the checkpoint has, by a method that learns on `data`, and the record.

    The method learns on a copy with the head of the task, drawn from the seed where the checkpoint has none. That head
    is not saved. Raises `InputError` as `learn` does.
    """
    model = load_for_task(source, data.task, work.seed)
    learned = learn(
        model,
        work.method,
        data,
        work.selection,
        work.seed,
        architecture=source.row,
        device=work.device,
        progress=work.progress,
    )
    del model
    compressed = source.load()
    return compressed, install_learned(compressed, learned)


def write_checkpoint(
    source: Checkpoint,
    model: PreTrainedModel,
    record: Record,
    out: Path,
    replaced: Occupant | None,
    about: About,
) -> Record:
    """Writes model, tokenizer, record and what is told of them into the new folder `out`, complete or not at all.

    Returns the record as written, with the origin of the model and the sizes of the files.
    """
    with staged_folder(out, replaced) as folder:
        record = save_compressed(model, source.folder, read_config(source.folder), record, folder)
        record = replace(record, model=source.origin, no_stock_form=no_stock_form(source, model.config))
        record = replace(record, load_as=loading_class(source.folder, model))
        write_about(folder, source, record, about)
    return record


def no_stock_form(source: Checkpoint, config: PreTrainedConfig) -> str | None:
    """Why the compressed model of `config`, once folded, is not one of plain transformers; None if it is."""
    key = model_key(config)
    assert key is not None
    return form_after_fold(source.empty(), key).reason


def write_about(folder: Path, source: Checkpoint, record: Record, about: About) -> None:
    """Writes the record and the files of `about` beside the weights."""
    for name, text in {**about(record, source.folder), RECORD_FILE: record.to_json()}.items():
        (folder / name).write_text(text, encoding="utf-8")


def check_device(device: str) -> None:
    """Raises `InputError` unless this machine has the device called `device`."""
    if device not in ("cpu", "cuda"):
        raise InputError(f"`device` must be cpu or cuda, got {shown(device)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("`device` must be cpu on this machine, got 'cuda', but torch sees no CUDA device")
