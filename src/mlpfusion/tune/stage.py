"""A stage of a job in a folder of its own: its result appears whole, and is read instead if it is there already."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel

from mlpfusion.checkpoint.save import save_model
from mlpfusion.checkpoint.write import staged_folder

STAGE_FILE = "stage.json"


def run_stage(
    folder: Path,
    source: Path,
    train: Callable[[Path], tuple[PreTrainedModel, Any]],
    read: Callable[[Any], Any],
    save: Callable[[PreTrainedModel, Path, Path], None] = save_model,
) -> tuple[Path, Any]:
    """The folder with the checkpoint of a stage, and its record.

    `train` gets `folder`, to keep its states in, and hands back model and record; `read` makes the record of its JSON
    data. `save` writes the model, with the small files of the checkpoint `source`. The states go when the result is
    there.
    """
    result = folder / "result"
    if (result / STAGE_FILE).is_file():
        return result, read(json.loads((result / STAGE_FILE).read_text(encoding="utf-8")))
    folder.mkdir(exist_ok=True)
    model, record = train(folder)
    if PartialState().is_main_process:
        with staged_folder(result) as staged:
            save(model, source, staged)
            if (folder / "adapter").is_dir():
                shutil.copytree(folder / "adapter", staged / "adapter")
            (staged / STAGE_FILE).write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
        for state in folder.glob("checkpoint-*"):
            shutil.rmtree(state)
    PartialState().wait_for_everyone()
    return result, record


def put_in_place(result: Path, out: Path, files: dict[str, str]) -> None:
    """Copies the checkpoint of a stage to `out`, with `files` (name -> text) beside it; complete or not at all."""
    with staged_folder(out) as folder:
        shutil.copytree(result, folder, dirs_exist_ok=True)
        (folder / STAGE_FILE).unlink()
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
