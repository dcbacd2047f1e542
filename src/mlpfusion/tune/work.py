"""The folder beside OUT in which an unfinished job keeps its states and its finished runs, and what it was told."""

import json
import secrets
import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState

from mlpfusion.checkpoint.write import staged_folder
from mlpfusion.errors import InputError

_SETTINGS = "settings.json"


def work_folder(out: Path) -> Path:
    """`OUT.unfinished`, beside `out`."""
    out = out.absolute()
    return out.with_name(f"{out.name}.unfinished")


def check_work(out: Path, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Raises `InputError` if an unfinished job is in the way, or, to be resumed, had other settings.

    `overwrite` drops it, `resume` goes on with it; where there is none, both start from the beginning.
    """
    folder = work_folder(out)
    if resume and overwrite:
        raise InputError("`resume` and `overwrite` must not be given together")
    if not folder.exists() or overwrite:
        return
    if not resume:
        raise InputError(f"`out` has an unfinished run in {folder}: --resume goes on with it, --overwrite drops it")
    old = _read_settings(folder)
    changed = [name for name in sorted(old.keys() | settings.keys()) if old.get(name) != settings.get(name)]
    if changed:
        name = changed[0]
        raise InputError(
            f"`{name}` must be {old.get(name)!r} to resume the run in {folder}, got {settings.get(name)!r}; "
            "--overwrite starts anew"
        )


def finished_job(out: Path, settings: dict[str, Any], record_file: str) -> dict[str, Any] | None:
    """The record in `out` of a job that was killed after its last step and is resumed, None if it is not over.

    What it left is removed. Raises `InputError` as `check_work` does.
    """
    if not work_folder(out).exists() or not (out / record_file).is_file():
        return None
    check_work(out, settings, resume=True, overwrite=False)
    remove_work(out)
    return json.loads((out / record_file).read_text(encoding="utf-8"))


def start_work(out: Path, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Makes the folder, or goes on with it; of several processes the first one does. Raises as `check_work` does."""
    check_work(out, settings, resume=resume, overwrite=overwrite)
    PartialState().wait_for_everyone()
    if PartialState().is_main_process:
        _open_work(out, settings, resume=resume)
    PartialState().wait_for_everyone()


def _open_work(out: Path, settings: dict[str, Any], *, resume: bool) -> None:
    folder = work_folder(out)
    if not resume:
        remove_work(out)
    if not folder.exists():
        with staged_folder(folder) as staged:
            (staged / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def remove_work(out: Path) -> None:
    """Removes the folder, if there is one; whoever looks sees it whole or not at all."""
    folder = work_folder(out)
    if folder.exists():
        going = folder.with_name(f".{folder.name}.removed-{secrets.token_hex(4)}")
        folder.rename(going)
        shutil.rmtree(going)


def normalised(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings as they come back from JSON."""
    return json.loads(json.dumps(settings))


def _read_settings(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} must hold the {_SETTINGS} of an unfinished run; --overwrite drops it") from error
