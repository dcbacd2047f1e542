"""The folder `OUT.unfinished` beside OUT: settings, states and results of an unfinished job."""

import glob
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from mlpfusion.errors import InputError, one_line
from mlpfusion.storage.atomic import UNFINISHED, write_file
from mlpfusion.storage.manifest import read_sealed_json, sealed_json
from mlpfusion.storage.output import Occupant, check_output, staged_folder
from mlpfusion.storage.processes import is_first, of_first

_SETTINGS, _RESULT = "settings.json", "result.json"


def work_folder(out: Path) -> Path:
    """Path of `OUT.unfinished`, beside `out`.

    >>> work_folder(Path("results/small")).name
    'small.unfinished'
    """
    out = out.absolute()
    return out.with_name(out.name + UNFINISHED)


@dataclass(frozen=True)
class OpenedJob:
    """An opened job: the record in `out` if it is finished, else the folder to replace."""

    done: dict[str, Any] | None
    replaced: Occupant | None


@contextmanager
def opened_work(
    out: Path,
    settings: dict[str, Any],
    record_file: str,
    *,
    resume: bool,
    overwrite: bool,
    reads: Iterable[str | None],
    writes: Iterable[str | None] = (),
) -> Iterator[OpenedJob]:
    """Opens the folder of a job, and locks `out` against other jobs during the block.

    Raises `InputError` as `check_output` and `check_work` do, and at once if another job runs.

    >>> out, settings = folder / "out", {"seed": 0}
    >>> with opened_work(out, settings, "a.json", resume=False, overwrite=False, reads=[]) as opened:
    ...     opened.done is None
    True
    """
    with _locked(out):
        done = finished_job(out, settings, record_file) if resume else None
        replaced = None
        if done is None:
            may_replace = overwrite or (resume and will_replace(out))
            replaced = check_output(out, overwrite=may_replace, reads=reads, writes=writes)
            start_work(out, settings, resume=resume, overwrite=overwrite)
        yield OpenedJob(done, replaced)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Locks `out`; a killed job's lock does not count, and its half removed folder is removed."""
    folder = work_folder(out)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    of_first(lambda: _take(lock, out))
    try:
        if is_first():
            for rest in folder.parent.glob(f".{glob.escape(folder.name)}.removed-*"):
                shutil.rmtree(rest, ignore_errors=True)
        yield
    finally:
        give_back(lock)


def _take(lock: BaseFileLock, out: Path) -> None:
    try:
        is_ours = take_lock(lock)
    except OSError as error:
        raise InputError(f"`out` must be in a folder that can be written to, got {out}: {one_line(error)}") from error
    if not is_ours:
        raise InputError(
            f"`out` must not be another running job's, got {out}: wait for its end, or name another folder"
        )


def take_lock(lock: BaseFileLock) -> bool:
    """Whether this process has the lock now. The system releases the lock of a killed process.

    >>> lock = FileLock(folder / "lock")
    >>> take_lock(lock)
    True
    >>> give_back(lock)
    """
    Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
    with suppress(Timeout):
        lock.acquire(blocking=False)
    return lock.is_locked


def give_back(lock: BaseFileLock) -> None:
    """Removes the lock's file and releases the lock, if this process has it."""
    if lock.is_locked:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def check_flags(*, resume: bool, overwrite: bool) -> None:
    """Raises `InputError` if both are given.

    >>> check_flags(resume=True, overwrite=False)
    """
    if resume and overwrite:
        raise InputError("`resume` and `overwrite` must not be given together")


def check_work(out: Path, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Raises `InputError` for an unfinished job in the way, or one with other settings to resume.

    `overwrite` drops an unfinished job and `resume` continues it; without one, both start from the
    beginning. A folder of another kind is in the way of both.

    >>> check_work(folder / "out", {"seed": 0}, resume=False, overwrite=False)
    """
    folder = work_folder(out)
    if not os.path.lexists(folder):
        return
    old = _read(folder)["settings"]
    if overwrite:
        return
    if not resume:
        raise InputError(f"`out` has an unfinished run in {folder}: --resume goes on with it, --overwrite drops it")
    changed = [name for name in sorted(old.keys() | settings.keys()) if old.get(name) != settings.get(name)]
    if changed:
        name = changed[0]
        raise InputError(
            f"`{name}` must be {old.get(name)!r} to resume the run in {folder}, got {settings.get(name)!r}; "
            "--overwrite starts anew"
        )


def will_replace(out: Path) -> bool:
    """Whether the unfinished job of `out` may replace it.

    Raises `InputError` for a broken folder.
    """
    return work_folder(out).exists() and bool(_read(work_folder(out))["overwrite"])


def expect_record(out: Path, text: str) -> None:
    """Stores the hash of the coming record: `finished_job` then knows a finished job by it."""
    write_file(work_folder(out) / _RESULT, sealed_json({"record": _sha256(text.encode())}))


def finished_job(out: Path, settings: dict[str, Any], record_file: str) -> dict[str, Any] | None:
    """Returns the record of a resumed job killed after its last step, or None if unfinished.

    Removes the folder of a finished job. Raises `InputError` as `check_work` does.
    """
    return of_first(lambda: _finished_job(out, settings, record_file))


def _finished_job(out: Path, settings: dict[str, Any], record_file: str) -> dict[str, Any] | None:
    expected, record = work_folder(out) / _RESULT, out / record_file
    if not expected.exists() or not record.is_file():
        return None
    check_work(out, settings, resume=True, overwrite=False)
    text = record.read_bytes()
    if read_sealed_json(expected)["record"] != _sha256(text):
        return None  # that of an older job, which this one is to replace
    remove_work(out)
    return json.loads(text)


def start_work(out: Path, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Makes the folder, or continues with it. Of several processes only the first does.

    Raises `InputError` as `check_work` does.

    >>> start_work(folder / "out", {"seed": 0}, resume=False, overwrite=False)
    >>> will_replace(folder / "out")
    False
    """
    of_first(lambda: _open_work(out, settings, resume=resume, overwrite=overwrite))


def _open_work(out: Path, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    check_work(out, settings, resume=resume, overwrite=overwrite)
    folder = work_folder(out)
    if not resume:
        remove_work(out)
    if not folder.exists():
        request = {"settings": settings, "overwrite": overwrite}
        with staged_folder(folder, listed=False) as staged:
            (staged / _SETTINGS).write_text(sealed_json(request), encoding="utf-8")


def remove_work(out: Path) -> None:
    """Removes the folder, if any. Other processes see it whole or not at all.

    >>> remove_work(folder / "out")
    """
    folder = work_folder(out)
    if folder.exists():
        going = folder.with_name(f".{folder.name}.removed-{secrets.token_hex(4)}")
        folder.rename(going)
        shutil.rmtree(going, ignore_errors=True)  # another process may sweep it


def normalised(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings as read back from JSON.

    >>> normalised({"layers": (1, 2)})
    {'layers': [1, 2]}
    """
    return json.loads(json.dumps(settings))


def _read(folder: Path) -> dict[str, Any]:
    """Reads the settings of a job. Raises `InputError` for a folder of another kind."""
    try:
        if folder.is_symlink():
            raise InputError(f"{folder} must be a folder, but it is a link")
        request = read_sealed_json(folder / _SETTINGS)
        if not (isinstance(request.get("settings"), dict) and isinstance(request.get("overwrite"), bool)):
            raise InputError(f"{folder / _SETTINGS} must be that of an unfinished run")
    except (OSError, InputError) as error:
        raise InputError(
            f"`out` must not have something else beside it, but {one_line(error)}: move it away"
        ) from error
    return request


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
