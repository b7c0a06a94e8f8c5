"""A folder that appears as a whole, or not at all."""

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from attsnn.data.errors import DataError


@contextlib.contextmanager
def staged(path: str | os.PathLike) -> Iterator[Path]:
    """A new folder beside `path`, renamed to it when the block ends without an error, else removed.

    What was written in it must be on disk by then. Raises DataError if something is at `path` already. What
    a killed process left is removed first.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DataError(f"{path}: is there already; remove it, or name another place")
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}.partial-"
    for leftover in path.parent.glob(f"{prefix}*"):
        _remove_if_abandoned(leftover)
    partial = path.parent / f"{prefix}{secrets.token_hex(4)}"
    partial.mkdir()
    try:
        with _folder(partial) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield partial
            _sync_folder(partial)
            _put_in_place(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put_in_place(partial: Path, path: Path) -> None:
    try:
        os.rename(partial, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be put in place, {error.strerror}; nothing was replaced") from None
    _sync_folder(path.parent)


def _remove_if_abandoned(partial: Path) -> None:
    """Removes what a killed writer left; a living one holds the lock of its folder."""
    with contextlib.suppress(FileNotFoundError, BlockingIOError), _folder(partial) as folder:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(partial)


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    with _folder(path) as folder:
        os.fsync(folder)
