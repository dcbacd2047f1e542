"""Writes a checkpoint that is visible only when it is complete."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlpfusion.errors import InputError


def check_output(out: Path, *, overwrite: bool = False) -> None:
    """Raises `InputError` if `out` is a file, or a folder that holds anything, unless `overwrite`."""
    if out.exists() and not out.is_dir():
        raise InputError(f"`out` must be a folder, got the file {out}")
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise InputError(f"`out` must be empty or new, got {out}; --overwrite replaces it")
    if not os.access(_existing_parent(out), os.W_OK):
        raise InputError(f"`out` must be in a folder that can be written to, got {out}")


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """A new folder beside `out` to write into, which takes the place of `out` when the block ends without an error.

    The files are on disk (fsync) before the rename, and the rename is one step: whoever looks at `out`, at any moment
    and after any crash, sees nothing, the old folder or the complete new one. On an error the staged folder goes.
    """
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    staged = _new_sibling(out, "incomplete")
    staged.mkdir()
    try:
        yield staged
        for file in sorted(staged.rglob("*")):
            sync(file)
        sync(staged)
        _put_in_place(staged, out)
        sync(out.parent)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def write_file(path: Path, content: str | bytes) -> None:
    """Writes a file that is there complete or not at all, in a folder that is there."""
    staged = _new_sibling(path, "incomplete")
    try:
        staged.write_bytes(content.encode() if isinstance(content, str) else content)
        sync(staged)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Brings a file, or the names in a folder, to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_in_place(staged: Path, out: Path) -> None:
    if not out.exists() or not any(out.iterdir()):
        staged.rename(out)
        return
    replaced = _new_sibling(out, "replaced")
    out.rename(replaced)
    staged.rename(out)
    shutil.rmtree(replaced)


def _new_sibling(out: Path, purpose: str) -> Path:
    return out.with_name(f".{out.name}.{purpose}-{secrets.token_hex(4)}")


def _existing_parent(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
