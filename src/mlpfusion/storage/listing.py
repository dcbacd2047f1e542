"""The list of files in every folder of this program: proof of origin, and hashes of weights."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

LISTING = "mlp_fusion_files.json"


def write_listing(folder: Path) -> None:
    """Writes `mlp_fusion_files.json`: the names of all files in `folder`, with SHA-256 of weights.

    Other files get no hash: records hold times, and the list must be the same for the same seed.

    >>> (folder / "config.json").touch()
    >>> write_listing(folder)
    >>> is_complete(folder)
    True
    """
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
    hashes = {name: file_sha256(path) if path.suffix == ".safetensors" else None for name, path in files.items()}
    hashes[LISTING] = None
    (folder / LISTING).write_text(json.dumps(dict(sorted(hashes.items())), indent=1) + "\n", encoding="utf-8")


def strange_file(folder: Path) -> str | None:
    """Returns a file or link in `folder` missing from its list, or None. Without a list, any file.

    >>> (folder / "notes.txt").touch()
    >>> strange_file(folder)
    'notes.txt'
    """
    listed = _listed(folder).keys()
    for place, folders, files in os.walk(folder):
        for name in [*files, *folders]:
            path = Path(place, name)
            if (path.is_symlink() or not path.is_dir()) and path.relative_to(folder).as_posix() not in listed:
                return path.relative_to(folder).as_posix()
    return None


def is_complete(folder: Path) -> bool:
    """Whether `folder` has a list, and all files in the list.

    >>> is_complete(folder)
    False
    """
    listed = _listed(folder)
    return bool(listed) and all((folder / name).is_file() for name in listed)


def is_changed(folder: Path, name: str) -> bool:
    """Whether the list has another SHA-256 for the file `name`.

    >>> (folder / "a.safetensors").touch()
    >>> write_listing(folder)
    >>> is_changed(folder, "a.safetensors")
    False
    """
    expected = _listed(folder).get(name)
    return expected is not None and expected != file_sha256(folder / name)


def _listed(folder: Path) -> Mapping[str, object]:
    """Returns the list of `folder`, name -> SHA-256 or None. Empty without a list."""
    file = folder / LISTING
    if file.is_symlink() or not file.is_file():
        return {}
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return {}
    if isinstance(listed, list):  # lists of earlier versions hold the names alone
        return dict.fromkeys(name for name in listed if isinstance(name, str))
    return listed if isinstance(listed, dict) else {}


def file_sha256(file: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal.

    >>> (folder / "empty").touch()
    >>> file_sha256(folder / "empty")[:8]
    'e3b0c442'
    """
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
