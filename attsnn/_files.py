"""Files that are whole or not there, and what a file system may lack: locks, shared maps, names in text,
files and folders that synchronise.

What only protects is left out where it cannot be done; what is needed is done in a slower way.
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

UNFINISHED = ".tmp-"  # begins the name of what is not whole yet

# What network file systems, FUSE and containers answer for "not here".
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
    """What a plain file holds; an OSError for anything else, a pipe say, on which reading would wait."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no plain file", os.fspath(path))
    with open(descriptor, "rb") as file:
        return file.read()


@contextlib.contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """A new folder in `folder`, of this process alone, for what is not whole yet: what is left in it goes."""
    own = folder / f"{UNFINISHED}{os.getpid()}-{secrets.token_hex(4)}"
    own.mkdir()
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file in place of the one that is there, which stays as it is where that fails."""
    with unfinished(path.parent) as own:
        write_file(own / f"{UNFINISHED}{path.name}", content)
        os.replace(own / f"{UNFINISHED}{path.name}", path)
    sync_folder(path.parent)


def sync_folder(path: str | os.PathLike[str]) -> None:
    """The same of the names in a folder."""
    with opened_folder(path) as descriptor:
        sync(descriptor)


@contextlib.contextmanager
def opened_folder(path: str | os.PathLike[str]) -> Iterator[int | None]:
    """A descriptor of a folder; None where folders cannot be opened."""
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
    """Locks a file or folder for this process, until it is closed: True; False where another process holds it
    and `wait` is False; None where nothing can be locked here.
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
    """Lets this process print names that a terminal cannot show, or that are no text: they are escaped."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def plain(name: str | os.PathLike[str]) -> str:
    """A name that fits a line: bytes that are no text, and ends of lines, are escaped."""
    text = os.fspath(name).encode("utf-8", "backslashreplace").decode()
    return re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]", lambda match: ascii(match[0])[1:-1], text)


def mapped(
    path: str | os.PathLike[str], dtype: DTypeLike, shape: tuple[int, ...], offset: int = 0
) -> np.ndarray:
    """A part of a file as a read-only array: mapped, or read where its file system has no maps."""
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
