"""The list of its files that every folder of this program holds, so that it is known what may be replaced."""

import json
import os
from pathlib import Path

LISTING = "mlp_fusion_files.json"


def write_listing(folder: Path) -> None:
    """Writes the names of all files in `folder` into `mlp_fusion_files.json` there."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    (folder / LISTING).write_text(json.dumps(sorted(names | {LISTING}), indent=1) + "\n", encoding="utf-8")


def strange_file(folder: Path) -> str | None:
    """The name of a file or link in `folder` that is not in its list, None if all are; without a list, of any."""
    known = _listed(folder)
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


def _listed(folder: Path) -> set[str]:
    file = folder / LISTING
    if file.is_symlink() or not file.is_file():
        return set()
    try:
        names = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return set()
    return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()
