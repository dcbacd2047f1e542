"""The list of its files that every folder of this program holds: what may be replaced, and what was changed."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

LISTING = "mlp_fusion_files.json"


def write_listing(folder: Path) -> None:
    """Writes the names of all files in `folder` into `mlp_fusion_files.json` there, of weights with the SHA-256.

    Others have none: a record has times in it, and the list is the same for the same seed.
    """
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
    hashes = {name: file_sha256(path) if path.suffix == ".safetensors" else None for name, path in files.items()}
    hashes[LISTING] = None
    (folder / LISTING).write_text(json.dumps(dict(sorted(hashes.items())), indent=1) + "\n", encoding="utf-8")


def strange_file(folder: Path) -> str | None:
    """The name of a file or link in `folder` that is not in its list, None if all are; without a list, of any."""
    known = _listed(folder).keys()
    for place, folders, files in os.walk(folder):
        for name in [*files, *folders]:
            path = Path(place, name)
            if (path.is_symlink() or not path.is_dir()) and path.relative_to(folder).as_posix() not in known:
                return path.relative_to(folder).as_posix()
    return None


def is_complete(folder: Path) -> bool:
    """Whether `folder` has a list, and all files in it."""
    known = _listed(folder)
    return bool(known) and all((folder / name).is_file() for name in known)


def is_changed(folder: Path, name: str) -> bool:
    """Whether the file `name` in `folder` is listed there with another SHA-256."""
    expected = _listed(folder).get(name)
    return expected is not None and expected != file_sha256(folder / name)


def _listed(folder: Path) -> Mapping[str, object]:
    """Name -> SHA-256 of the files in the list of `folder`, None where it has the name alone."""
    file = folder / LISTING
    if file.is_symlink() or not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return {}
    if isinstance(found, list):
        return dict.fromkeys(name for name in found if isinstance(name, str))
    return found if isinstance(found, dict) else {}


def file_sha256(file: Path) -> str:
    """The SHA-256 of the bytes of `file`, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
