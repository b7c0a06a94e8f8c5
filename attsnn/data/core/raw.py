"""Where raw files come from: a folder, or a .tar.gz that is read in place and never extracted.

Only regular files whose whole name matches a pattern are ever opened, and sizes are bounded before anything
is read.
"""

import contextlib
import gzip
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from attsnn.data.core.files import map_file
from attsnn.data.core.tar import Bounded
from attsnn.data.errors import DataFormatError, DataMissingError

TEXT_BYTES = 1 << 20
FILE_BYTES = 1 << 30
TOTAL_BYTES = 1 << 34
MEMBERS = 10_000


class Folder:
    """The files of a folder whose names match `pattern`."""

    def __init__(self, path: str | os.PathLike, pattern: re.Pattern):
        self.path = Path(path)
        self.names = sorted(name for name in os.listdir(path) if pattern.fullmatch(name))

    def text(self, name: str) -> bytes:
        data = map_file(self.path / name)
        if len(data) > TEXT_BYTES:
            raise DataFormatError(
                f"found {len(data)} bytes; wanted a text of at most {TEXT_BYTES}", path=self.where(name)
            )
        return data.tobytes()

    def recordings(self, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
        """(name, bytes) of these files, in any order."""
        for name in names:
            yield name, map_file(self.path / name)

    def where(self, name: str) -> str:
        """The file's name for messages."""
        return str(self.path / name)


class Archive:
    """The same of a .tar.gz, where `folder` may precede the names; its texts are held in memory."""

    def __init__(
        self, path: str | os.PathLike, pattern: re.Pattern, folder: str, text_bytes: int = TEXT_BYTES
    ):
        self.path, self._pattern = Path(path), pattern
        self._prefix = re.compile(rf"(?:\./)?(?:{re.escape(folder)}/)?")
        self._texts: dict[str, bytes] = {}
        self.names: list[str] = []
        with self._open() as tar:
            for member, name in self._members(tar):
                self.names.append(name)
                if not name.endswith(".aedat"):
                    self._texts[name] = self._read(tar, member, text_bytes)
        self.names.sort()

    def text(self, name: str) -> bytes:
        return self._texts[name]

    def recordings(self, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
        """(name, bytes) of these files, in the archive's order: one pass, because gzip cannot seek."""
        wanted = set(names)
        with self._open() as tar:
            for member, name in self._members(tar):
                if name in wanted:
                    yield name, np.frombuffer(self._read(tar, member, FILE_BYTES), np.uint8)

    def where(self, name: str) -> str:
        return f"{self.path}({name})"

    @contextlib.contextmanager
    def _open(self) -> Iterator[tarfile.TarFile]:
        try:
            with gzip.open(self.path) as file, tarfile.open(fileobj=Bounded(file), mode="r:") as tar:
                yield tar
                _finish(file, self.path)
        except DataFormatError:
            raise
        except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, KeyError) as error:
            # The last two come from tarfile itself, for numbers and names that make no sense.
            raise DataFormatError(f"not a sound .tar.gz ({error})", path=self.path) from None

    def _members(self, tar: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, str]]:
        seen, total = set(), 0
        for count, member in enumerate(tar):
            total += max(member.size, 0)
            if count >= MEMBERS or not 0 <= member.size <= FILE_BYTES or total > TOTAL_BYTES:
                raise DataFormatError(
                    f"found {member.name[:80]!r}, member {count} of {member.size} bytes; wanted at most "
                    f"{MEMBERS} members of {FILE_BYTES} bytes and {TOTAL_BYTES} in all",
                    path=self.path,
                    offset=member.offset,
                )
            name = member.name[self._prefix.match(member.name).end() :]
            if not self._pattern.fullmatch(name):
                continue
            if not member.isreg() or member.issparse() or name in seen:
                found = "a second one of that name" if name in seen else "a link, folder or sparse file"
                raise DataFormatError(f"found {found}; wanted one regular file", path=self.where(name))
            seen.add(name)
            yield member, name

    def _read(self, tar: tarfile.TarFile, member: tarfile.TarInfo, limit: int) -> bytes:
        if member.size > limit:
            raise DataFormatError(
                f"found {member.size} bytes; wanted at most {limit}", path=self.where(member.name)
            )
        with tar.extractfile(member) as file:
            return b"".join(iter(lambda: file.read(TEXT_BYTES), b""))


def _finish(file: gzip.GzipFile, path: Path) -> None:
    """Reads what follows the last member: only at its end gzip compares its checksum."""
    for _ in range(FILE_BYTES // TEXT_BYTES):
        if not file.read(TEXT_BYTES):
            return
    raise DataFormatError(f"more than {FILE_BYTES} bytes follow the last file", path=path)


def open_raw(path: str | os.PathLike, pattern: re.Pattern, *, folder: str, missing: str) -> Folder | Archive:
    """`path`: the folder of the files, the one above, or the .tar.gz; `missing` says where to get them."""
    path = Path(path)
    if path.is_dir():
        inner = path / folder if (path / folder).is_dir() else path
        source = Folder(inner, pattern)
        archive = path / f"{folder}.tar.gz"
        if not source.names and archive.is_file():
            source = Archive(archive, pattern, folder)
    elif path.is_file():
        source = Archive(path, pattern, folder)
    else:
        raise DataMissingError(f"{path}: no such file or folder; {missing}")
    if not any(name.endswith(".aedat") for name in source.names):
        raise DataMissingError(f"{path}: there are no recordings; {missing}")
    return source
