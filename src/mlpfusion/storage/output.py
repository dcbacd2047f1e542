"""The output folder of a command: checked before any work, written whole or not at all."""

import errno
import logging
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mlpfusion.errors import InputError, one_line
from mlpfusion.storage.atomic import UNFINISHED, lock, locked, new_folders, new_sibling, swap, sweep, sync
from mlpfusion.storage.listing import strange_file, write_listing

_LOGGER = logging.getLogger(__name__)
# Errors of `rename` when the target exists and is no empty folder; they differ by file system.
_OCCUPIED = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EBUSY, errno.EPERM, errno.EACCES}


@dataclass(frozen=True)
class Occupant:
    """Identity of a replaceable folder, to notice later changes."""

    device: int
    inode: int
    modified: int

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Reads the identity of a folder."""
        status = folder.lstat()
        return cls(device=status.st_dev, inode=status.st_ino, modified=status.st_mtime_ns)


def check_output(
    out: Path, *, overwrite: bool = False, reads: Iterable[str | None] = (), writes: Iterable[str | None] = ()
) -> Occupant | None:
    """Returns the folder to replace, or None if `out` is new or empty.

    `reads` are files and folders read by the run (names on the Hub are ignored), `writes` others
    written. Only leftovers of killed runs beside `out` are touched. Raises `InputError` if `out` is
    a file, a link or a mount point, cannot be written, is or holds the working or home folder or
    any of those named, or is not empty: with `overwrite`, if it holds a file not written by this
    program.

    >>> check_output(folder / "out") is None
    True
    """
    try:
        linked = out.is_symlink()
        place = _place(out)
        mounted = place.is_mount()
    except (OSError, ValueError, RuntimeError) as error:
        raise _unwritable(out, error) from error
    if linked or mounted:
        kind = "symbolic link" if linked else "mount point"
        raise InputError(f"`out` must be a folder of its own, got the {kind} {out}; name a new folder")
    _check_apart(place, out, reads, writes)
    if not os.path.lexists(place) or place.is_dir():
        _try(place, out)
    return _occupant(place, out, overwrite)


@contextmanager
def staged_folder(out: Path, replacing: Occupant | None = None, *, listed: bool = True) -> Iterator[Path]:
    """Yields a new folder beside `out`, moved to `out` when the block ends without an error.

    All files are flushed (fsync) before one step puts them in place: at any moment and after any
    crash, `out` is the old folder or the complete new one. `out` must then still be missing, empty
    or `replacing`; otherwise it stays, the result is kept beside it, and an `InputError` names the
    place. After an error the new folder is removed. Only a `listed` folder can be replaced later.

    >>> with staged_folder(folder / "out") as staged:
    ...     _ = (staged / "config.json").write_text("{}")
    >>> strange_file(folder / "out") is None
    True
    """
    place = _place(out)
    with new_folders(place.parent), _new_folder(place) as staged:
        yield staged
        if listed:
            write_listing(staged)
        for file in sorted(staged.rglob("*")):
            sync(file)
        sync(staged)
        with locked(place.parent):
            _put_in_place(staged, place, replacing)
        _LOGGER.info("wrote %s", out)


@contextmanager
def _new_folder(place: Path) -> Iterator[Path]:
    """Yields a hidden folder, removed in the end. Its lock marks a living writer."""
    staged, descriptor = new_sibling(place, "incomplete"), None
    try:
        with locked(place.parent):  # no sweep between the folder and its lock
            staged.mkdir()
            descriptor = os.open(staged, os.O_RDONLY)
            lock(descriptor)
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _put_in_place(staged: Path, place: Path, replacing: Occupant | None) -> None:
    try:
        staged.rename(place)  # takes the place of nothing or of an empty folder, and fails for all else
    except OSError as error:
        if error.errno not in _OCCUPIED:
            raise
        if replacing is None or not _replace(staged, place, replacing):
            raise _kept(staged, place) from error
    else:
        sync(place.parent)


def _replace(staged: Path, place: Path, replacing: Occupant) -> bool:
    """Exchanges the two folders, if `place` may be replaced.

    Looks again after the exchange, when nobody can change the old folder any more.
    """
    if not _may_go(place, replacing):
        return False
    swap(staged, place)
    try:
        changed = not _may_go(staged, replacing)
        sync(place.parent)  # before the old one is removed
    except BaseException:
        swap(staged, place)
        raise
    if changed:
        swap(staged, place)
    return not changed


def _may_go(folder: Path, replacing: Occupant) -> bool:
    return not folder.is_symlink() and Occupant.of(folder) == replacing and strange_file(folder) is None


def _kept(staged: Path, place: Path) -> InputError:
    kept = place.with_name(f"{place.name}.kept-{secrets.token_hex(4)}")
    staged.rename(kept)
    sync(place.parent)
    return InputError(f"`out` must stay as it was during the run, {place} did not or cannot be replaced; see {kept}")


def _place(out: Path) -> Path:
    """Absolute name of `out`: links above are followed, `out` itself is not."""
    return out.resolve() if out.name in ("", "..") else out.parent.resolve() / out.name


def _check_apart(place: Path, out: Path, reads: Iterable[str | None], writes: Iterable[str | None]) -> None:
    """Raises `InputError` if `place` is or holds a file or folder in use."""
    read = [path for path in (Path(os.path.expanduser(name)) for name in reads if name) if os.path.exists(path)]
    others = [Path(os.path.expanduser(name)) for name in ("~", *writes) if name]
    for path in [Path.cwd(), *others, *read]:
        # a file read through a link must stay too: a snapshot in the Hub's cache links to its blobs
        links = [link for form in ("*", "*/*") for link in path.glob(form) if link.is_symlink()] if path in read else []
        ways = [above for start in (path, *links) for above in _ways(start)]
        for taken in (place, place.with_name(place.name + UNFINISHED)):
            if any(above == taken or _same(above, taken) for above in ways):
                raise InputError(f"`out` must not be, and not hold, {path}, got {out}; name a new folder")


def _ways(path: Path) -> set[Path]:
    """Returns `path`, its parents, and the targets of links among them."""
    ways: set[Path] = set()
    waiting = [Path(os.path.abspath(path)), path.resolve()]
    while waiting:
        start = waiting.pop()
        for above in {start, *start.parents} - ways:
            ways.add(above)
            if above.is_symlink():
                waiting.append(Path(os.path.abspath(above.parent / above.readlink())))
    return ways


def _same(first: Path, second: Path) -> bool:
    return os.path.exists(first) and os.path.exists(second) and first.samefile(second)


def _try(place: Path, out: Path) -> None:
    """Sweeps, then makes and removes folders with the needed names. Raises `InputError`."""
    parent, names = place.parent, [place.name + UNFINISHED]
    while not parent.exists():
        names.append(parent.name)
        parent = parent.parent
    try:
        with locked(parent) as lockable:
            if lockable and parent == place.parent:
                sweep(place)
            for name in names:
                trial = new_sibling(parent / name, "incomplete")
                trial.mkdir()
                trial.rmdir()
        sync(parent)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise _unwritable(out, error) from error


def _unwritable(out: Path, error: Exception) -> InputError:
    return InputError(f"`out` must be in a folder that can be written to, got {str(out)!r}: {one_line(error)}")


def _occupant(place: Path, out: Path, overwrite: bool) -> Occupant | None:
    if not os.path.lexists(place):
        return None
    if not place.is_dir():
        raise InputError(f"`out` must be a folder, got the file {out}")
    if not any(place.iterdir()):
        return None
    if (strange := strange_file(place)) is not None:
        raise InputError(
            f"`out` must be empty or new, got {out}; `overwrite` does not replace it, for it holds {strange}, which "
            "this program did not write: name another folder"
        )
    if not overwrite:
        raise InputError(f"`out` must be empty or new, got {out}; --overwrite replaces it")
    return Occupant.of(place)
