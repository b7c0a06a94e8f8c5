"""Reads files as bytes: regular files only, and never more than is allowed."""

import contextlib
import os
import stat
from collections.abc import Callable

import numpy as np

from attsnn._files import mapped
from attsnn._files import plain as plain  # the subpackages of data import it from here
from attsnn.data.errors import DataFormatError, DataMissingError

FILE_BYTES = 1 << 26  # of an image
LOOKS = 1024  # how many files of a set are looked at, to tell it from others
# What operating systems and their tools leave in any folder.
JUNK = {
    *("__macosx", "lost+found", "$recycle.bin", "recycler", "system volume information", "found.000"),
    *("@eadir", "#recycle", "@recycle", "#snapshot", "@tmp", "@__thumb", "thumbs.db", "desktop.ini"),
}


def is_junk(name: str) -> bool:
    """Whether a file or folder of that name belongs to the system or a tool, not to the data."""
    return name.startswith(".") or name.lower() in JUNK


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one. A link that leads nowhere is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def map_file(path: str | os.PathLike[str]) -> np.ndarray:
    """The bytes of a file as a read-only uint8 array, memory-mapped if its file system can do that."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise DataFormatError("found a folder or device; wanted a regular file", path=plain(path))
        return mapped(path, np.uint8, (status.st_size,))
    except OSError as error:
        raise DataMissingError(f"{plain(path)}: {error.strerror or error}") from None


def spread(number: int) -> list[int]:
    """At most `LOOKS` of the indices below `number`, evenly spaced."""
    indices: list[int] = np.linspace(0, number - 1, min(LOOKS, number), dtype=np.int64).tolist()
    return indices


def look(path_of: Callable[[int], str | os.PathLike[str]], number: int) -> bytes:
    """The sizes, and the first and last bytes, of some of `number` files: enough to tell sets apart."""
    found = []
    for index in spread(number):
        with contextlib.suppress(OSError, ValueError):
            size = os.stat(path_of(index)).st_size
            ends = [read_bytes(path_of(index), at, min(size, 512)) for at in (0, max(size - 512, 0))]
            found += [b"%d %d\n" % (index, size), *ends]
    return b"".join(found)


def read_bytes(
    path: str | os.PathLike[str], offset: int = 0, size: int | None = None, most: int = FILE_BYTES
) -> bytes:
    """`size` bytes (None: all) of a file. Raises DataFormatError if it is not regular, too
    large or too short.
    """
    # Without O_NONBLOCK a named pipe would wait for a writer.
    with open(path, "rb", buffering=0, opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise DataFormatError("found a folder or device; wanted a regular file", path=path)
        size = status.st_size if size is None else size
        if size > most:
            raise DataFormatError(f"found {size} bytes; wanted at most {most}", path=path)
        if offset + size > status.st_size:
            raise DataFormatError(
                f"ends at byte {status.st_size}; wanted {size} bytes there", path=path, offset=offset
            )
        file.seek(offset)
        parts, left = [], size
        while left and (part := file.read(left)):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
