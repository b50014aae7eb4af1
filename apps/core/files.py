"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from apps.core.errors import NO_ROOM, DataError, StateError

# is_locked() holds a lock for an instant: whoever wants it then tries so often, so many seconds apart.
_TRIES, _PAUSE_S = 4, 0.02


def write_atomically(path: str | Path, data: bytes, mode: int = 0o644) -> None:
    """Write `data` under a temporary name beside `path`, flush it to disk, rename.

    Raises DataError where the folder is missing or not writable, or the disk is full; `path` is then as before.
    """
    target = Path(path)
    try:
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, mode)  # noqa: PTH101 (mkstemp gives a string)
            os.replace(temporary, target)  # noqa: PTH105
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise DataError(f"{target}: cannot be written ({error.strerror or error}); give a writable place") from error


@contextlib.contextmanager
def file_in_the_making(path: str | Path) -> Iterator[Path]:
    """Yield a name beside `path` to write to; on success what is there is flushed to disk and renamed to `path`.

    The name is fixed, so that what a killed run left behind is written over.  Raises DataError where the place is not
    writable or full; `path` is then as before.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.partial")
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"{target}: cannot be written ({error.strerror or error}); give a writable place") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def folder_in_the_making(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder under a temporary name beside `path`; on success it is renamed to `path`.

    An existing `path` is replaced only after the new one is complete.  A leftover of a killed run is removed first: one
    task writes one folder, so the name is fixed and nothing piles up.  On an error nothing is left behind.

    Raises DataError where the place is not writable, or has no room for what the block writes.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir()
    except OSError as error:
        raise DataError(f"{target}: cannot be written ({error.strerror or error}); give a writable place") from error
    try:
        yield temporary
        replace_folder(temporary, target)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise DataError(f"{target}: cannot be written ({error.strerror}); give a place with more room") from error
        raise


def settled(path: str | Path) -> Path:
    """Where something is, by whatever links one comes there; what has its name may be a link itself."""
    path = Path(path)
    return path.parent.resolve() / path.name


def make_folder(folder: Path) -> None:
    """Make a folder, and those it lies in, where it is not there.  Raises DataError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error}); give a writable place") from error


def lock(stream: IO[Any], path: Path, alone: bool = True) -> None:
    """Hold the open file `stream` for this process until it is closed: alone, or with others that each do a part.

    Raises StateError, which names the output `path`, where another process holds it: two would write the same output.
    """
    if not try_lock(stream, shared=not alone):
        what = "works on this output" if alone else "works on all of it"
        raise StateError(f"{path}: another process {what}; wait for it, or end it first")


def try_lock(stream: IO[Any], shared: bool = False) -> bool:
    """Hold an open file until it is closed, alone or with others that share it; False where another holds it.

    The lock is the kernel's: it ends with the process, however that ends.  NFS wants a file that is shared to be open
    for reading, and one that is held alone for writing: `a+b` serves for both.  Raises DataError, which names the file,
    where it cannot be locked.
    """
    for left in reversed(range(_TRIES)):
        try:
            fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            if left:
                time.sleep(_PAUSE_S)
        except OSError as error:
            raise DataError(
                f"{stream.name}: cannot be locked ({error.strerror or error}); give a place on a file system with locks"
            ) from error
        else:
            return True
    return False


def is_locked(path: Path) -> bool:
    """Whether a process holds the file, alone or with others.

    Who may not write it is not told of those that share it.
    """
    writable = os.access(path, os.W_OK)  # on NFS, a lock for oneself wants a file that is open to be written
    try:
        with path.open("r+b" if writable else "rb") as stream:
            fcntl.flock(stream, (fcntl.LOCK_EX if writable else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def replace_folder(new: Path, target: Path) -> None:
    """Move the folder `new` to `target`, removing an old `target` last.

    Where the file system can exchange two names, `target` is there whole at every moment.  Elsewhere (some network file
    systems) there is an instant with the old folder under `.NAME.old` only; a kill just then means making it again.
    """
    old = _old(target)
    if old.exists():
        shutil.rmtree(old)
    if not target.exists():
        new.rename(target)
        return
    if _exchange(new, target):
        new.rename(old)
    else:
        target.rename(old)
        new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def put_back(target: Path, mark: str) -> None:
    """Give the old folder its name again where a kill between the two renames of `replace_folder` left no `target`.

    `mark`: a file that the folder has where it is whole.
    """
    old = _old(target)
    if not target.exists() and (old / mark).is_file():
        old.rename(target)


def move_folder(new: Path, target: Path) -> None:
    """Move the folder `new` to `target` where a killed run goes on: `new` is never anything but the new folder.

    Unlike `replace_folder`, which exchanges the two: after a kill just then the old one would be taken for the one in
    the making, and moved back.  There is an instant without `target`; the run that goes on then finds `new`, and moves
    it.  An old `target` is removed last, under `.NAME.old`.
    """
    old = _old(target)
    if old.exists():
        shutil.rmtree(old)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _old(target: Path) -> Path:
    """Where a folder is while another takes its place."""
    return target.with_name(f".{target.name}.old")


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step (Linux's renameat2); False where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    relative_to_cwd, exchange = -100, 2
    arguments = relative_to_cwd, os.fsencode(one), relative_to_cwd, os.fsencode(other), exchange
    return renameat2 is not None and renameat2(*arguments) == 0
