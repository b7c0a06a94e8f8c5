"""File operations that leave a whole file or none, also on file systems that lack locks, memory maps, names
in text, or files and folders that synchronise.

A step that only protects is skipped where the file system cannot do it. A step that is needed is done in a
slower way.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

UNFINISHED = ".tmp-"  # begins the names of files and folders that are not complete yet

# The errors by which network file systems, FUSE and containers say that they cannot do something.
LACKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK, errno.ENOTTY}


def sync(descriptor: int | None) -> None:
    """Waits until a file or folder is on disk, as far as its file system can say so."""
    if descriptor is None:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in LACKS:
            raise


def write_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file, and waits until it is on disk."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        sync(file.fileno())


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The content of a regular file. Raises OSError for anything else, such as a pipe, which might block."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no plain file", os.fspath(path))
    with open(descriptor, "rb") as file:
        return file.read()


@contextlib.contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """Makes a new folder in `folder` for this process alone, to hold what is not complete yet. What is left
    in it at the end is deleted.
    """
    own = folder / f"{UNFINISHED}{os.getpid()}-{secrets.token_hex(4)}"
    own.mkdir()
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file in place of an existing one, which stays as it is if the writing fails."""
    with unfinished(path.parent) as own:
        write_file(own / f"{UNFINISHED}{path.name}", content)
        os.replace(own / f"{UNFINISHED}{path.name}", path)
    sync_folder(path.parent)


def sync_folder(path: str | os.PathLike[str]) -> None:
    """As `sync`, for the names in a folder."""
    with opened_folder(path) as descriptor:
        sync(descriptor)


@contextlib.contextmanager
def opened_folder(path: str | os.PathLike[str]) -> Iterator[int | None]:
    """A descriptor of a folder; None if folders cannot be opened here."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        if error.errno not in LACKS | {errno.EISDIR}:
            raise
        descriptor = None
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def lock(descriptor: int | None, *, wait: bool = True) -> bool | None:
    """Locks an open file or folder for this process, until it is closed.

    Returns True once it is locked, False if another process holds it and `wait` is False, and None if nothing
    can be locked here.
    """
    if descriptor is None:
        return None
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except ImportError:
        return None
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in LACKS:
            raise
        return None
    return True


def print_any_name() -> None:
    """Lets this process print names that a terminal cannot show or that are not text: they are escaped."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def plain(name: str | os.PathLike[str]) -> str:
    """A name that fits on one line: line ends and bytes that are not text are escaped."""
    text = os.fspath(name).encode("utf-8", "backslashreplace").decode()
    return re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]", lambda match: ascii(match[0])[1:-1], text)


def mapped(
    path: str | os.PathLike[str], dtype: DTypeLike, shape: tuple[int, ...], offset: int = 0
) -> np.ndarray:
    """A part of a file as a read-only array: memory-mapped, or read if its file system has no maps."""
    if 0 in shape:
        return np.empty(shape, dtype)
    try:
        return np.memmap(path, dtype, "r", offset, shape).view(np.ndarray)
    except OSError as error:
        if error.errno not in LACKS | {errno.ENODEV}:
            raise
    number = int(np.prod(shape))
    array = np.fromfile(path, dtype, number, offset=offset)
    if len(array) != number:
        raise ValueError(f"{os.fspath(path)} ends before {number} numbers")
    array.flags.writeable = False
    return array.reshape(shape)
