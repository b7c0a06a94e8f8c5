"""A folder that appears as a whole, or not at all."""

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

# What file systems answer that rename files alone, or none from one of their layers to another.
CANNOT_RENAME = LACKS | {errno.EXDEV, errno.EISDIR}


@contextlib.contextmanager
def staged(path: str | os.PathLike[str], needs: int = 0) -> Iterator[Path]:
    """A new folder, whose content is at `path` when the block ends without an error, else nowhere.

    It lies beside `path` and is renamed to it. Where an empty folder is there already, which may be a mount
    point or the only place to write, it lies inside, and its content is moved up. What was written in it must
    be on disk by the end of the block. Raises DataError where something is at `path` already, or fewer than
    `needs` bytes are free. What a killed process left is removed first.
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
    """The folder `path`: made by `write(path)`, as a whole (`staged`), or only verified where it is there.

    Of two processes that write it at once the slower one takes what the other has made.
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
    """What is in a folder, but for what systems leave anywhere."""
    return [entry for entry in path.iterdir() if not is_junk(entry.name)]


def _free(folder: Path) -> int | None:
    """Bytes that are free; None where a file system does not say."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    return usage.free if usage.total else None


def _put_in_place(partial: Path, path: Path) -> None:
    """Raises DataError where that cannot be; what was made is kept then, unless `path` is taken by now."""
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
    shutil.rmtree(partial, ignore_errors=True)  # of which empty folders may be left


def _move(source: Path, target: Path, moved: list[tuple[Path | None, Path]]) -> None:
    """Renames; where a folder cannot be, it is made anew and its content moved. `moved` keeps it."""
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
    """What says that a folder is whole (manifest.json) is moved last."""
    for entry in sorted(source.iterdir(), key=lambda entry: entry.name == "manifest.json"):
        _move(entry, target / entry.name, moved)


def _undo(partial: Path, path: Path, moved: list[tuple[Path | None, Path]]) -> str:
    """Moves all of it back; what became of it, in words."""
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
    """Removes what a killed writer left; a living one holds the lock of its folder."""
    with contextlib.suppress(FileNotFoundError), opened_folder(partial) as folder:
        if (free := lock(folder, wait=False)) is None:
            warn(
                f"{plain(partial)}: of an attempt that did not end, or is at work: this file system has no "
                "locks that would tell. Remove it if nobody writes there."
            )
        elif free:
            shutil.rmtree(partial)
