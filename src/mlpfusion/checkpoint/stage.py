"""Stages of training, each with a folder for states and result."""

import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel

from mlpfusion.checkpoint.files import ADAPTER
from mlpfusion.checkpoint.padding import save_padding
from mlpfusion.checkpoint.save import save_model
from mlpfusion.errors import DamageWarning, InputError
from mlpfusion.storage.manifest import damage, seal, unseal
from mlpfusion.storage.output import Occupant, staged_folder
from mlpfusion.storage.processes import of_first
from mlpfusion.storage.states import keep_states, remove_state
from mlpfusion.storage.unfinished import expect_record, remove_work

STAGE_FILE = "stage.json"
GENERATED = "generated"  # the folder of the texts that a stage wrote, beside its model


def run_stage(
    folder: Path,
    source: Path,
    train: Callable[[Path], tuple[PreTrainedModel, Any]],
    read: Callable[[Any], Any],
    save: Callable[[PreTrainedModel, Path, Path], None] = save_model,
) -> tuple[Path, Any]:
    """Runs a stage, or reads its finished result.

    Returns (folder of the checkpoint, record). `train(folder)` keeps its states in `folder` and
    returns model and record. `read` makes a record from JSON data. `save` writes the model with the
    small files of `source`; the tokenizer gets a padding token if it has none. The states are
    removed once the result is there.
    """
    result = folder / "result"
    if of_first(lambda: is_whole(result)):
        return result, read(json.loads((result / STAGE_FILE).read_text(encoding="utf-8")))
    folder.mkdir(exist_ok=True)
    model, record = train(folder)
    PartialState().wait_for_everyone()  # until then they may read their states
    if PartialState().is_main_process:
        with staged_folder(result, listed=False) as staged:
            save(model, source, staged)
            save_padding(model, staged)
            for name in (ADAPTER, GENERATED):
                if (folder / name).is_dir():
                    shutil.copytree(folder / name, staged / name)
            (staged / STAGE_FILE).write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
            seal(staged)
        keep_states(folder, set())
    PartialState().wait_for_everyone()
    return result, record


def is_whole(result: Path) -> bool:
    """True if `result` is there as written.

    A damaged result is removed, with a `DamageWarning`.
    """
    if not os.path.lexists(result):
        return False
    reason = damage(result)
    if reason is not None:
        warnings.warn(f"{result} is not what was written ({reason}): it is made again", DamageWarning, stacklevel=2)
        remove_state(result)
    return reason is None


def finish_job(result: Path, out: Path, record: str, files: dict[str, str], replacing: Occupant | None) -> None:
    """Puts the checkpoint of a job's last stage and `files` in place and removes the job's folder.

    `record` is the text by which `finished_job` knows the job. Of several processes only the first does, once none
    reads the job's folder any more. Raises `InputError` as `put_in_place` does.
    """
    PartialState().wait_for_everyone()
    if PartialState().is_main_process:
        expect_record(out, record)
        put_in_place(result, out, files, replacing)
        remove_work(out)
    PartialState().wait_for_everyone()


def put_in_place(result: Path, out: Path, files: dict[str, str], replacing: Occupant | None) -> None:
    """Copies the checkpoint of a stage and `files` (name -> text) to `out`.

    `out` appears complete or not at all. Raises `InputError` if the result was damaged in between.
    """
    with staged_folder(out, replacing) as folder:
        shutil.copytree(result, folder, dirs_exist_ok=True)
        reason = damage(folder)
        if reason is not None:
            raise InputError(f"{result} must be what was written, but {reason}: --resume makes it again")
        (folder / STAGE_FILE).unlink()
        unseal(folder)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
