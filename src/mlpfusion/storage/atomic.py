"""Files and folders written whole or not at all: fsync, locks, and names exchanged in one step."""

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlpfusion.errors import InputError
from mlpfusion.storage.listing import is_complete

UNFINISHED = ".unfinished"
_LOCK_SECONDS = 60.0  # a holder only renames folders, in milliseconds; not tuned
_NO_LOCKS = {errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}  # EBADF: folders on NFS
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP}
_AT_FDCWD, _EXCHANGE = -100, 2  # RENAME_EXCHANGE of Linux and RENAME_SWAP of macOS have the same number


def sync(path: Path) -> None:
    """Flushes a file, or the names in a folder, to the disk (fsync).

    >>> sync(folder)
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Yields a new file beside `path`, moved to `path` when the block ends without an error.

    The folder must exist. Files left by killed writers of `path` are removed.

    >>> with staged_file(folder / "a.txt") as staged:
    ...     _ = staged.write_text("new")
    >>> (folder / "a.txt").read_text()
    'new'
    """
    sweep(path)
    staged, descriptor = new_sibling(path, "incomplete"), -1
    try:
        while descriptor < 0 or not os.fstat(descriptor).st_nlink:  # swept before it was locked
            descriptor = os.open(staged, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            lock(descriptor)
        yield staged
        os.fsync(descriptor)
        staged.replace(path)
        sync(path.parent)
    finally:
        staged.unlink(missing_ok=True)
        if descriptor >= 0:
            os.close(descriptor)


def write_file(path: Path, content: str | bytes) -> None:
    """Writes a file, complete or not at all, into an existing folder.

    >>> write_file(folder / "a.txt", "text")
    >>> (folder / "a.txt").read_text()
    'text'
    """
    with staged_file(path) as staged:
        staged.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def new_folders(folder: Path) -> Iterator[None]:
    """Makes `folder` and its missing parents. Removes them, if empty, after an error in the block.

    >>> with new_folders(folder / "a" / "b"):
    ...     (folder / "a" / "b").is_dir()
    True
    """
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    made: list[Path] = []
    try:
        for parent in reversed(missing):
            parent.mkdir(exist_ok=True)
            made.append(parent)
            sync(parent.parent)
        yield
    except BaseException:
        with suppress(OSError):
            for parent in reversed(made):
                parent.rmdir()
        raise


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Locks `folder` against other writers of this program. Yields False without file locks.

    Raises `InputError` if the lock is not free within a minute.

    >>> with locked(folder) as has_lock:
    ...     pass
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield _wait_for_lock(descriptor, folder)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked child may hold the descriptor for longer
    finally:
        os.close(descriptor)


def lock(descriptor: int) -> bool:
    """Locks an open file or folder for the life of the process. False if held by another process.

    Also False if the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _wait_for_lock(descriptor: int, folder: Path) -> bool:
    end = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise InputError(f"`out` must be in a folder that no other program locks, got {folder}") from None
            time.sleep(0.01)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return False
        else:
            return True


def exchange(first: Path, second: Path) -> None:
    """Exchanges two names in one step. Raises `OSError` with ENOSYS if the system cannot.

    >>> write_file(folder / "a", "1"); write_file(folder / "b", "2")
    >>> with suppress(OSError):  # not on every file system
    ...     exchange(folder / "a", folder / "b")
    """
    library = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(first), os.fsencode(second)
    try:
        if sys.platform == "darwin":
            failed = library.renamex_np(*names, ctypes.c_uint(_EXCHANGE))
        else:
            failed = library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_EXCHANGE))
    except AttributeError as error:
        raise OSError(errno.ENOSYS, "no call to exchange two names", str(first)) from error
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(first), None, str(second))


def swap(staged: Path, place: Path) -> None:
    """Exchanges two neighbouring folders, in one step or, if the system cannot, in three.

    On an exception `place` is one of the two. If the process is killed between the steps, `sweep`
    restores `place`.

    >>> (folder / "old").mkdir(); (folder / "new").mkdir(); write_file(folder / "new" / "a", "")
    >>> swap(folder / "new", folder / "old")
    >>> (folder / "old" / "a").exists()
    True
    """
    try:
        exchange(staged, place)
        return
    except OSError as error:
        if error.errno not in _NO_EXCHANGE:
            raise
    aside = new_sibling(place, "replaced")
    try:
        place.rename(aside)
        staged.rename(place)
        aside.rename(staged)
    except BaseException:
        home = staged if os.path.lexists(place) else place
        if os.path.lexists(aside) and not os.path.lexists(home):
            aside.rename(home)
        raise


def new_sibling(path: Path, purpose: str) -> Path:
    """Makes up an unused hidden name beside `path`: `.NAME.PURPOSE-` and eight hexadecimal digits.

    >>> len(new_sibling(folder / "out", "incomplete").name)
    24
    """
    return path.with_name(f".{path.name}.{purpose}-{secrets.token_hex(4)}")


def sweep(place: Path) -> None:
    """Removes the leftovers of killed writers of `place` and of its unfinished job.

    For a folder, the parent must be locked. If `place` is missing, the newest complete copy set
    aside gets its name back; incomplete copies stay.

    >>> (folder / ".out.incomplete-0123abcd").mkdir()
    >>> sweep(folder / "out")
    >>> list(folder.iterdir())
    []
    """
    form = rf"\.{re.escape(place.name)}({re.escape(UNFINISHED)})?\.(incomplete|replaced|removed)-[0-9a-f]{{8}}"
    with os.scandir(place.parent) as entries:
        leftovers = sorted(place.parent / entry.name for entry in entries if re.fullmatch(form, entry.name))
    aside = [path for path in leftovers if path.name.startswith(f".{place.name}.replaced-")]
    if aside and not os.path.lexists(place):
        complete = [path for path in aside if not path.is_symlink() and is_complete(path)]
        if complete:
            max(complete, key=lambda path: path.stat().st_mtime_ns).rename(place)
            sync(place.parent)
        else:
            leftovers = [path for path in leftovers if path not in aside]
    for path in leftovers:
        _remove_left(path)


def _remove_left(path: Path) -> None:
    """Removes a file or folder with a dead writer. Links are left alone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return
    try:
        mode = os.fstat(descriptor).st_mode
        if not lock(descriptor):
            return
        if stat.S_ISDIR(mode):
            shutil.rmtree(path, ignore_errors=True)
        elif stat.S_ISREG(mode):
            with suppress(OSError):
                path.unlink()
    finally:
        os.close(descriptor)
