"""A folder that appears as a whole or not at all."""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from attsnn._files import LACKS, lock, opened_folder, sync_folder
from attsnn.data.core.files import is_junk, plain
from attsnn.data.errors import DataError, warn

# The errors of file systems that rename only files, or nothing from one of their layers to another.
CANNOT_RENAME = LACKS | {errno.EXDEV, errno.EISDIR}


@contextlib.contextmanager
def staged(path: str | os.PathLike[str], needs: int = 0) -> Iterator[Path]:
    """Yields a new folder. Its content is at `path` if the block ends without an
    error, and nowhere otherwise.

    The new folder lies next to `path` and is renamed to it. If there is an empty folder at `path` (a mount
    point perhaps, or the only place to write), the new folder lies inside it, and its content is moved up.
    The block must have flushed what it wrote to disk. Raises DataError if something is at `path` already, or
    if fewer than `needs` bytes are free. What a killed process left is removed first.
    """
    path = Path(path)
    inside = path.is_dir()
    if _content(path) if inside else (path.exists() or path.is_symlink()):
        raise DataError(f"{plain(path)}: is there already; remove what is there, or name another place")
    home = path if inside else path.parent
    home.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}.partial-"
    for leftover in home.iterdir():
        if leftover.name.startswith(prefix):
            _remove_if_abandoned(leftover)
    if (free := _free(home)) is not None and free < needs:
        raise DataError(
            f"{plain(path)}: its disc has {free:,} bytes free; about {needs:,} are needed: name another place"
        )
    partial, whole = home / f"{prefix}{secrets.token_hex(4)}", False
    partial.mkdir()
    try:
        with opened_folder(partial) as folder:
            lock(folder)
            yield partial
            sync_folder(partial)
            whole = True
            _put_in_place(partial, path)
    finally:
        if not whole:
            shutil.rmtree(partial, ignore_errors=True)


def once(
    path: str | os.PathLike[str], write: Callable[[Path], object], verify: Callable[[Path], object]
) -> Path:
    """Makes the folder `path` by `write(path)`, as a whole (`staged`). If it is there already, verifies it.

    If two processes write it at once, the slower one takes what the other has made.
    """
    path = Path(path)
    if path.is_dir():
        verify(path)
        return path
    try:
        write(path)
    except DataError:
        if not path.is_dir():
            raise
    return path


def _content(path: Path) -> list[Path]:
    """What is in a folder, except for what systems leave anywhere."""
    return [entry for entry in path.iterdir() if not is_junk(entry.name)]


def _free(folder: Path) -> int | None:
    """The bytes that are free; None if the file system does not say."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    return usage.free if usage.total else None


def _put_in_place(partial: Path, path: Path) -> None:
    """Raises DataError if that is impossible. What was made is kept then, unless `path` is taken by now."""
    moved: list[tuple[Path | None, Path]] = []
    try:
        if partial.parent == path:
            if _content(path):
                raise OSError(None, "something is there now")
            _move_content(partial, path, moved)
            sync_folder(path)
        else:
            _move(partial, path, moved)
            sync_folder(path.parent)
    except OSError as error:
        reason = f"{plain(path)}: cannot be put in place, {error.strerror or error}"
        raise DataError(f"{reason}; {_undo(partial, path, moved)}") from None
    shutil.rmtree(partial, ignore_errors=True)  # empty folders may be left of it


def _move(source: Path, target: Path, moved: list[tuple[Path | None, Path]]) -> None:
    """Renames. If a folder cannot be renamed, makes it anew and moves its content.
    `moved` records each step.
    """
    try:
        os.rename(source, target)
        moved.append((source, target))
    except OSError as error:
        if error.errno not in CANNOT_RENAME or not source.is_dir():
            raise
        target.mkdir()
        moved.append((None, target))
        _move_content(source, target, moved)


def _move_content(source: Path, target: Path, moved: list[tuple[Path | None, Path]]) -> None:
    """Moves the file that marks a folder as complete (manifest.json) last."""
    for entry in sorted(source.iterdir(), key=lambda entry: entry.name == "manifest.json"):
        _move(entry, target / entry.name, moved)


def _undo(partial: Path, path: Path, moved: list[tuple[Path | None, Path]]) -> str:
    """Moves everything back; returns what became of it, in words."""
    try:
        for source, target in reversed(moved):
            if source is None:
                target.rmdir()
            else:
                os.rename(target, source)
    except OSError as error:
        return (
            f"nor can all of it be moved back, {error.strerror or error}: a part of it is in {plain(path)}, "
            f"the rest in {plain(partial)}"
        )
    if path.is_dir() and _content(path):
        shutil.rmtree(partial, ignore_errors=True)
        return "nothing was replaced"
    kept = partial.with_name(partial.name.removeprefix(".").replace(".partial-", ".finished-"))
    try:
        os.rename(partial, kept)
    except OSError:
        return (
            f"nothing was replaced. What was made is whole, in {plain(partial)}; move it away before the "
            "next attempt, which removes it"
        )
    return f"nothing was replaced. What was made is whole, in {plain(kept)}"


def _remove_if_abandoned(partial: Path) -> None:
    """Removes what a killed writer left. A living writer holds the lock of its folder."""
    with contextlib.suppress(FileNotFoundError), opened_folder(partial) as folder:
        if (free := lock(folder, wait=False)) is None:
            warn(
                f"{plain(partial)}: of an attempt that did not end, or is at work: this file system has no "
                "locks that would tell. Remove it if nobody writes there."
            )
        elif free:
            shutil.rmtree(partial)
