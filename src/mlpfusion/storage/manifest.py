"""Manifest of a folder: its files with sizes and hashes, written last and checked before use."""

import hashlib
import json
import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlpfusion.errors import InputError
from mlpfusion.storage.atomic import sync, write_file

MANIFEST = "complete"


@dataclass(frozen=True)
class _File:
    size: int
    sha256: str


def seal(folder: Path) -> None:
    """Writes `complete` into `folder`: name, size and SHA-256 of every file, all flushed to disk.

    >>> write_file(folder / "state.json", "{}")
    >>> seal(folder)
    >>> damage(folder) is None
    True
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        sync(path)
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = asdict(_measured(path))
    sync(folder)
    write_file(folder / MANIFEST, json.dumps({"files": files}, indent=1) + "\n")
    sync(folder)


def unseal(folder: Path) -> None:
    """Removes the manifest, before any other change in `folder`.

    >>> seal(folder)
    >>> unseal(folder)
    >>> is_sealed(folder)
    False
    """
    (folder / MANIFEST).unlink(missing_ok=True)


def is_sealed(folder: Path) -> bool:
    """Whether `folder` was written to its end. The files are not checked.

    >>> is_sealed(folder)
    False
    """
    return folder.is_dir() and not folder.is_symlink() and (folder / MANIFEST).is_file()


def damage(folder: Path) -> str | None:
    """Describes the first difference from the sealed folder, or returns None.

    >>> damage(folder)
    'it holds no complete'
    """
    if not is_sealed(folder):
        return f"it holds no {MANIFEST}"
    try:
        listed = json.loads((folder / MANIFEST).read_bytes())["files"]
        expected = {name: _File(size=entry["size"], sha256=entry["sha256"]) for name, entry in listed.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError):
        return f"its {MANIFEST} cannot be read"
    present = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not _is_folder(path)}
    for name in (MANIFEST, "mlp_fusion_files.json"):  # both are written after the manifest's entries
        present.pop(name, None)
    for name in sorted(expected.keys() | present.keys()):
        if name not in present:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} was added"
        if not stat.S_ISREG(present[name].lstat().st_mode):
            return f"{name} is no file any more"
        # the size first: no need to read a file of another size
        if os.path.getsize(present[name]) != expected[name].size or _measured(present[name]) != expected[name]:
            return f"{name} has other bytes"
    return None


def sealed_json(data: dict[str, Any]) -> str:
    """Formats `data` as indented JSON, with a hash of the rest at the end.

    >>> write_file(folder / "a.json", sealed_json({"step": 3}))
    >>> read_sealed_json(folder / "a.json")
    {'step': 3}
    """
    return json.dumps(data | {"sha256": _digest(data)}, indent=1) + "\n"


def read_sealed_json(file: Path) -> dict[str, Any]:
    """Reads a file made by `sealed_json`. Raises `InputError` if it was changed."""
    try:
        data = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} must hold what was written, but it is no JSON") from error
    if not isinstance(data, dict) or data.pop("sha256", None) != _digest(data):
        raise InputError(f"{file} must hold what was written, but it was changed, or made by something else")
    return data


def _measured(path: Path) -> _File:
    with path.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        return _File(size=opened.tell(), sha256=digest)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _digest(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
