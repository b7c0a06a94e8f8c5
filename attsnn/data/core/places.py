"""Where files lie: a folder, or an archive (.tar, .tar.gz, .zip, a .zip in a .zip) that is never extracted.

A place lists its members, reads some of them, and names them in messages. Sizes are bounded before anything
is read, and memory is taken for bytes that are there, not for the size that a member claims.
"""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, Protocol, cast

import numpy as np

from attsnn.data.core.files import is_folder, is_junk, map_file
from attsnn.data.core.tar import Bounded, expect_zeros
from attsnn.data.errors import DataFormatError

BLOCK_BYTES = 1 << 20
FILE_BYTES = 1 << 31  # of a file in an archive
TOTAL_BYTES = 1 << 36
MEMBERS = 1_000_000
CALLED_LIKE_A_FILE = re.compile(r"\.(?:aedat|npz|npy|mat|bin|txt|csv)$", re.IGNORECASE)
LEVELS = 64  # of folders
COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
ARCHIVES = (".tar", *COMPRESSED_TARS, ".zip")
UNREAD = (".7z", ".rar", ".gz", ".bz2", ".xz", ".zst")  # kinds of archives that are not read
# What tarfile and gzip raise for senseless numbers and names, and for endless headers.
UNSOUND_TAR = (
    *(tarfile.TarError, zlib.error, lzma.LZMAError),
    *(EOFError, OSError, ValueError, KeyError, RecursionError),
)
COMPRESSED: dict[bytes, tuple[str, Callable[..., io.BufferedIOBase]]] = {
    b"\x1f\x8b": (".gz", gzip.open),
    b"BZ": (".bz2", bz2.open),
    b"\xfd7": (".xz", lzma.open),
}
# What zipfile raises for files that are no zip, are encrypted, or are compressed in another way.
UNSOUND_ZIP = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, NotImplementedError),
    *(RuntimeError, EOFError, OSError, ValueError, KeyError),
)


class Member(NamedTuple):
    """A file in a place: its path there, the handle by which the place finds it again, the size that an
    archive claims for it, and whether it is a regular file.
    """

    path: str
    handle: Any
    size: int = 0
    regular: bool = True


class Place(Protocol):
    """What Folder, Tar and Zip have in common."""

    path: Path

    def members(self) -> Iterator[Member]:
        """All members."""

    def read(self, members: Mapping[str, Member]) -> Iterator[tuple[str, np.ndarray]]:
        """Yields (key, bytes) of these members, in any order, in one pass."""

    def size(self, member: Member) -> int:
        """The member's bytes, as far as the place knows them without reading it."""

    def where(self, path: str) -> str:
        """A member's name for messages."""


def place_of(path: Path) -> Place:
    """The place at `path`."""
    if path.is_dir():
        return Folder(path)
    with open(path, "rb") as file:
        return (Zip if file.read(2) == b"PK" else Tar)(path)


def is_archive(path: Path) -> bool:
    """Whether a file is called like an archive."""
    return path.name.lower().endswith(ARCHIVES) and not is_junk(path.name) and path.is_file()


def below(outer: Sequence[str], path: str) -> list[str]:
    """The parts of a file's path as if its archive `outer` were unpacked into a folder of the archive's name.
    If the archive itself holds all of its files in such a folder, the name is not repeated.
    """
    parts = path.removeprefix("./").split("/")
    if not outer:
        return parts
    *above, name = outer
    ending = max((end for end in ARCHIVES if name.lower().endswith(end)), key=len, default="")
    name = name[: len(name) - len(ending)]
    doubled = len(parts) > 1 and parts[0].lower() == name.lower()
    return [*above, *parts] if doubled else [*above, name, *parts]


class Folder:
    """A folder and those below it, by name. Links to folders are followed, but not to one above."""

    def __init__(self, path: Path):
        self.path = path

    def members(self) -> Iterator[Member]:
        status = os.stat(self.path)
        yield from self._below(self.path, (), frozenset([(status.st_dev, status.st_ino)]))

    def _below(
        self, folder: Path, parts: tuple[str, ...], above: frozenset[tuple[int, int]]
    ) -> Iterator[Member]:
        with os.scandir(folder) as entries:
            found = sorted((e for e in entries if not is_junk(e.name)), key=lambda e: e.name)
        for entry in found:
            path, here = Path(entry.path), (*parts, entry.name)
            if not is_folder(entry):
                yield Member("/".join(here), path)
                continue
            if CALLED_LIKE_A_FILE.search(entry.name):
                yield Member("/".join(here), path, regular=False)
            status = os.stat(path)
            if (status.st_dev, status.st_ino) not in above and len(here) < LEVELS:
                yield from self._below(path, here, above | {(status.st_dev, status.st_ino)})

    def read(self, members: Mapping[str, Member]) -> Iterator[tuple[str, np.ndarray]]:
        for key, member in members.items():
            yield key, map_file(member.handle)

    def size(self, member: Member) -> int:
        try:
            return os.path.getsize(member.handle)
        except OSError:  # a link to nothing; reading it raises the error
            return 0

    def where(self, path: str) -> str:
        return str(self.path / path)


class Tar:
    """A .tar, compressed or not. It is read to its last byte, because only there is a checksum compared."""

    def __init__(self, path: Path):
        self.path = path
        with open(path, "rb") as file:
            self._ending, self._open_file = COMPRESSED.get(file.read(2), ("", open))

    def members(self) -> Iterator[Member]:
        with self._open() as tar:
            for member in self._bounded(tar):
                if not member.isdir() or CALLED_LIKE_A_FILE.search(member.name):
                    regular = member.isreg() and not member.issparse()
                    yield Member(member.name, member.name, member.size, regular)

    def read(self, members: Mapping[str, Member]) -> Iterator[tuple[str, np.ndarray]]:
        keys = {member.handle: key for key, member in members.items()}
        with self._open() as tar:
            for member in self._bounded(tar):
                if (key := keys.pop(member.name, None)) is not None:
                    file = tar.extractfile(member)
                    assert file is not None  # a regular member has one
                    with file:
                        yield key, _content(file, member.size)

    def size(self, member: Member) -> int:
        return member.size

    def where(self, path: str) -> str:
        return f"{self.path}({path})"

    @contextlib.contextmanager
    def _open(self) -> Iterator[tarfile.TarFile]:
        try:
            with contextlib.ExitStack() as stack:
                file = stack.enter_context(self._open_file(self.path, "rb"))
                bounded = Bounded(file)
                yield stack.enter_context(tarfile.open(fileobj=cast(IO[bytes], bounded), mode="r:"))
                # tarfile takes a damaged header, or the end of the file, for the end of the archive.
                if len(bounded.last) < tarfile.BLOCKSIZE or any(bounded.last):
                    raise DataFormatError("found no end mark; it is cut short or damaged", path=self.path)
                expect_zeros(iter(lambda: file.read(BLOCK_BYTES), b""), file.tell(), self.path)
        except DataFormatError:
            raise
        except UNSOUND_TAR as error:
            raise DataFormatError(f"not a sound .tar{self._ending} ({error})", path=self.path) from None

    def _bounded(self, tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
        total = 0
        for count, member in enumerate(tar):
            total += max(member.size, 0)
            _bound(self.path, count, member.size, total, member.name, member.offset)
            yield member


class Zip:
    """A .zip. One that lies in another .zip is a place of its own, reached through `inner`."""

    def __init__(self, path: Path, inner: str = ""):
        self.path, self._inner = path, inner

    def members(self) -> Iterator[Member]:
        total = 0
        with self._open() as archive:
            for count, info in enumerate(archive.infolist()):
                name = info.filename
                if name.lower().endswith(".zip") and not self._inner:
                    if not is_junk(PurePosixPath(name).name):
                        inner = Zip(self.path, name)
                        for member in inner.members():
                            its = "/".join(below(name.split("/"), member.path))
                            yield member._replace(path=its, handle=(inner, member))
                elif not info.is_dir():
                    total += info.file_size
                    _bound(self.path, count, info.file_size, total, name, info.header_offset)
                    yield Member(name.replace("\\", "/"), name, info.file_size)  # as Windows tools write

    def read(self, members: Mapping[str, Member]) -> Iterator[tuple[str, np.ndarray]]:
        keys: dict[str, str] = {}
        within: dict[str, tuple[Zip, dict[str, Member]]] = {}
        for key, member in members.items():
            if isinstance(member.handle, tuple):
                inner, its = member.handle
                within.setdefault(inner._inner, (inner, {}))[1][key] = its
            else:
                keys[member.handle] = key
        with self._open() as archive:
            # In the archive's order: going back is not cheap in an archive within another.
            for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
                if (asked := keys.pop(info.filename, None)) is not None:
                    with archive.open(info) as file:
                        yield asked, _content(file, info.file_size)
        for inner, its in within.values():
            yield from inner.read(its)

    def size(self, member: Member) -> int:
        return member.size

    def where(self, path: str) -> str:
        return f"{self.path}({f'{self._inner}/' * bool(self._inner)}{path})"

    @contextlib.contextmanager
    def _open(self) -> Iterator[zipfile.ZipFile]:
        try:
            with contextlib.ExitStack() as stack:
                archive = stack.enter_context(zipfile.ZipFile(self.path))
                if self._inner:
                    inner = stack.enter_context(archive.open(self._inner))
                    archive = stack.enter_context(zipfile.ZipFile(inner))
                yield archive
        except DataFormatError:
            raise
        except UNSOUND_ZIP as error:
            raise DataFormatError(f"not a sound .zip ({error})", path=self.path) from None


def _content(file: IO[bytes], size: int) -> np.ndarray:
    """The bytes of a member, read in parts. Raises ValueError if they are not as many as it claims."""
    parts, left = [], size
    while left > 0 and (part := file.read(min(left, BLOCK_BYTES))):
        parts.append(part)
        left -= len(part)
    if left or file.read(1):
        raise ValueError(f"a member of {size} bytes holds {'fewer' if left else 'more'}")
    return np.frombuffer(b"".join(parts), np.uint8)


def _bound(path: Path, count: int, size: int, total: int, name: str, offset: int) -> None:
    if count >= MEMBERS or not 0 <= size <= FILE_BYTES or total > TOTAL_BYTES:
        raise DataFormatError(
            f"found {name[:80]!r}, member {count} of {size} bytes; wanted at most {MEMBERS} members of "
            f"{FILE_BYTES} bytes and {TOTAL_BYTES} in all",
            path=path,
            offset=offset,
        )
