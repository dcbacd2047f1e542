"""Files and folders that are there whole or not at all: fsync, locks, two names exchanged, and what a crash left."""

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
_LOCK_SECONDS = 60.0
_NO_LOCKS = {errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}  # EBADF: folders on NFS
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP}
_AT_FDCWD, _EXCHANGE = -100, 2  # RENAME_EXCHANGE of Linux and RENAME_SWAP of macOS have the same number


def sync(path: Path) -> None:
    """Brings a file, or the names in a folder, to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """A new file beside `path` to write into, which takes its place when the block ends without an error.

    The folder must be there. What killed writers of `path` left is removed.
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
    """Writes a file that is there complete or not at all, in a folder that is there."""
    with staged_file(path) as staged:
        staged.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def new_folders(folder: Path) -> Iterator[None]:
    """Makes `folder` and those above it where they are missing; on an error in the block they go, if they are empty."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    made: list[Path] = []
    try:
        for one in reversed(missing):
            one.mkdir(exist_ok=True)
            made.append(one)
            sync(one.parent)
        yield
    except BaseException:
        with suppress(OSError):
            for one in reversed(made):
                one.rmdir()
        raise


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Keeps other writers of this program in `folder` waiting. Gives False where the file system has no locks.

    Raises `InputError` if the lock is not free within a minute.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield _wait_for_lock(descriptor, folder)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked child may hold the descriptor for longer
    finally:
        os.close(descriptor)


def lock(descriptor: int) -> bool:
    """Locks an open file or folder as that of a living process. False if another process has it, or without locks."""
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


def exchange(one: Path, other: Path) -> None:
    """Exchanges two names in one step. Raises `OSError` with ENOSYS where the system has no such call."""
    library = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    try:
        if sys.platform == "darwin":
            failed = library.renamex_np(*names, ctypes.c_uint(_EXCHANGE))
        else:
            failed = library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_EXCHANGE))
    except AttributeError as error:
        raise OSError(errno.ENOSYS, "no call to exchange two names", str(one)) from error
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one), None, str(other))


def swap(staged: Path, place: Path) -> None:
    """Exchanges two folders beside each other: in one step, or in three where system or file system cannot.

    On an exception `place` is one of the two. Killed between the steps, `sweep` brings it back.
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
    """A hidden name beside `path` that nothing has: `.NAME.PURPOSE-` and eight hexadecimal digits."""
    return path.with_name(f".{path.name}.{purpose}-{secrets.token_hex(4)}")


def sweep(place: Path) -> None:
    """Removes what killed writers of `place` and of its unfinished job left beside it.

    For a folder, the one above must be locked. If `place` is missing, the newest complete copy that was set aside gets
    its name back; incomplete ones stay.
    """
    form = rf"\.{re.escape(place.name)}({re.escape(UNFINISHED)})?\.(incomplete|replaced|removed)-[0-9a-f]{{8}}"
    with os.scandir(place.parent) as entries:
        left = sorted(place.parent / entry.name for entry in entries if re.fullmatch(form, entry.name))
    aside = [one for one in left if one.name.startswith(f".{place.name}.replaced-")]
    if aside and not os.path.lexists(place):
        whole = [one for one in aside if not one.is_symlink() and is_complete(one)]
        if whole:
            max(whole, key=lambda one: one.stat().st_mtime_ns).rename(place)
            sync(place.parent)
        else:
            left = [one for one in left if one not in aside]
    for one in left:
        _remove_left(one)


def _remove_left(path: Path) -> None:
    """Removes a file or folder whose writer is dead; links are left alone."""
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
