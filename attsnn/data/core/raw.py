"""The raw files of a data set: those in a folder or in archives whose names end in what a pattern matches.

They may lie under any folder, as people have them. Nothing else is ever opened.
"""

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from attsnn.data.core.files import is_junk, plain
from attsnn.data.core.places import FILE_BYTES, Member, Place, is_archive, place_of
from attsnn.data.errors import DataFormatError, DataMissingError

TEXT_BYTES = 1 << 20


class Raw:
    """The files at `path`, a folder or an archive, whose last `depth` parts match `pattern`.

    `names` are these parts, sorted. Archives in a folder are looked into where the folder has no such files.
    The files must lie below one folder, or below one called `folder`, which is preferred; `left` counts what
    matches elsewhere. Raises DataFormatError.
    """

    def __init__(self, path: str | os.PathLike, pattern: re.Pattern, folder: str = "", depth: int = 1):
        self.path, self._depth = Path(path), depth
        found = list(self._matches([place_of(self.path)], pattern))
        if not found and self.path.is_dir():
            archives = sorted(filter(is_archive, self.path.iterdir()))
            found = list(self._matches(map(place_of, archives), pattern))
        tops = Counter(top for top, *_ in found)
        chosen = [top for top in tops if folder and PurePosixPath(top).name == folder] or list(tops)
        if len(chosen) > 1:
            listed = ", ".join(repr(plain(top or ".")) for top in sorted(chosen)[:4])
            raise DataFormatError(f"found files of this set below {listed}; name one of these", path=path)
        self.left = {top: number for top, number in tops.items() if top not in chosen}
        self._files: dict[str, tuple[Place, Member]] = {}
        for top, name, place, member in found:
            if name in self._files and top in chosen:
                second = plain(place.where(member.path))
                raise DataFormatError("found a second one of that name; wanted one regular file", path=second)
            if top in chosen:
                self._files[name] = place, member
        self.names = sorted(self._files)

    def _matches(
        self, places: Iterable[Place], pattern: re.Pattern
    ) -> Iterator[tuple[str, str, Place, Member]]:
        """(what precedes the name, name, place, member) of each file that matches."""
        for place in places:
            for member in place.members():
                parts = member.path.removeprefix("./").split("/")
                name = "/".join(parts[-self._depth :])
                if any(map(is_junk, parts)) or "" in parts or not pattern.fullmatch(name):
                    continue
                if not member.regular:
                    where = plain(place.where(member.path))
                    raise DataFormatError(
                        "found a folder, link or sparse file; wanted a regular file", path=where
                    )
                yield "/".join(parts[: -self._depth]), name, place, member

    def read(self, names: Iterable[str], limit: int = FILE_BYTES) -> Iterator[tuple[str, np.ndarray]]:
        """(name, bytes) of these files, each of at most `limit` bytes, in any order: one pass a place."""
        by_place: dict[Place, dict[str, Member]] = {}
        for name in names:
            place, member = self._files[name]
            self._bound(name, member.size, limit)
            by_place.setdefault(place, {})[name] = member
        for place, members in by_place.items():
            for name, data in place.read(members):
                self._bound(name, len(data), limit)
                yield name, data

    recordings = read

    def text(self, name: str, limit: int = TEXT_BYTES) -> bytes:
        """The bytes of one small file."""
        ((_, data),) = self.read([name], limit)
        return data.tobytes()

    def texts(self, names: Iterable[str]) -> dict[str, bytes]:
        """The bytes of small files, in one pass."""
        return {name: data.tobytes() for name, data in self.read(names, TEXT_BYTES)}

    def where(self, name: str) -> str:
        """A file's name for messages; bytes that are no text are escaped."""
        if name in self._files:
            place, member = self._files[name]
            return plain(place.where(member.path))
        return plain(self.path / name if self.path.is_dir() else f"{self.path}({name})")

    def size(self, name: str) -> int:
        """Bytes of a file, as its place says."""
        place, member = self._files[name]
        return place.size(member)

    def _bound(self, name: str, size: int, limit: int) -> None:
        if size > limit:
            raise DataFormatError(f"found {size} bytes; wanted at most {limit}", path=self.where(name))


Archive = Raw  # as it was called when folders were another class


def open_raw(
    path: str | os.PathLike, *patterns: re.Pattern, folder: str = "", depth: int = 1, missing: str
) -> Raw:
    """The raw files at `path` of the first pattern that some match; `missing` says where to get them.

    What else looks like files of the set is counted in a warning.
    """
    path = Path(path)
    if not path.is_dir() and not path.is_file():
        raise DataMissingError(f"{plain(path)}: no such file or folder; {missing}")
    try:
        found = [raw for pattern in patterns if (raw := Raw(path, pattern, folder, depth)).names]
    except OSError as error:
        raise DataMissingError(f"{plain(path)}: cannot be read, {error.strerror or error}") from None
    if not found:
        raise DataMissingError(f"{plain(path)}: there are no recordings; {missing}")
    chosen, *others = found
    for top, number in chosen.left.items():
        warnings.warn(f"{plain(path)}: {number} files below {plain(top or '.')!r} are left out", stacklevel=3)
    for other in others:
        warnings.warn(
            f"{plain(path)}: {len(other.names)} files of another format are left out, e.g. "
            f"{plain(other.names[0])}; {plain(chosen.names[0])} and the like are read",
            stacklevel=3,
        )
    return chosen
