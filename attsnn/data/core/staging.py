"""A folder that appears as a whole, or not at all."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from attsnn._files import lock, opened_folder, sync_folder
from attsnn.data.core.files import is_junk, plain
from attsnn.data.errors import DataError, warn


@contextlib.contextmanager
def staged(path: str | os.PathLike, needs: int = 0) -> Iterator[Path]:
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
    partial = home / f"{prefix}{secrets.token_hex(4)}"
    partial.mkdir()
    try:
        with opened_folder(partial) as folder:
            lock(folder)
            yield partial
            sync_folder(partial)
            _put_in_place(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
    """What says that a folder is whole (manifest.json) is moved last."""
    moved: list[str] = []
    try:
        if partial.parent == path:
            if _content(path):
                raise OSError(None, "something is there now")
            for entry in sorted(partial.iterdir(), key=lambda entry: entry.name == "manifest.json"):
                os.rename(entry, path / entry.name)
                moved.append(entry.name)
            sync_folder(path)
        else:
            os.rename(partial, path)
            sync_folder(path.parent)
    except OSError as error:
        for name in moved:
            os.rename(path / name, partial / name)
        reason = f"cannot be put in place, {error.strerror or error}; nothing was replaced"
        if path.is_dir() and _content(path):
            raise DataError(f"{plain(path)}: {reason}") from None
        kept = partial.with_name(partial.name.removeprefix(".").replace(".partial-", ".finished-"))
        with contextlib.suppress(OSError):
            os.rename(partial, kept)
            raise DataError(f"{plain(path)}: {reason}. What was made is whole, in {plain(kept)}") from None
        raise DataError(f"{plain(path)}: {reason}") from None


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
