"""The raw files of a data set: files in a folder or in archives whose paths end in what a pattern matches.

They may lie below any folder, as people keep them. No other file is ever opened.
"""

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from attsnn.data.core.files import is_junk, plain
from attsnn.data.core.places import ARCHIVES, UNREAD, Folder, Member, Place, below, is_archive, place_of
from attsnn.data.errors import DataFormatError, DataMissingError, warn

TEXT_BYTES = 1 << 20


class Listing:
    """What lies at `path`, a folder or an archive. It is listed once, however many patterns
    it is searched for.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.place = place_of(self.path)
        self.members = list(self.place.members())
        self.archives: list[Path] = []  # below a folder
        if isinstance(self.place, Folder):
            self.archives = [member.handle for member in self.members if is_archive(member.handle)]

    @cached_property
    def inner(self) -> list[tuple[Place, list[Member]]]:
        """The archives below a folder, and the members of each."""
        places = map(place_of, self.archives)
        return [(place, list(place.members())) for place in places]

    def parts(self, place: Place, member: Member) -> list[str]:
        """The path of a member below `path`, or below the folder of `path`, as if archives were unpacked."""
        if isinstance(place, Folder):
            return member.path.split("/")
        outer = [place.path.name] if place is self.place else place.path.relative_to(self.path).parts
        return below(outer, member.path)


class Raw:
    """The files at `path`, a folder or an archive, whose last `depth` path parts match `pattern`.

    `names` are these parts, sorted. If a folder has no such files, the archives below it are searched;
    otherwise `archives` lists them. The files of a place must lie below one folder, or below one that ends in
    `folder`, which is preferred. `left` counts files that match elsewhere, `others` are files that do not
    match. Raises DataFormatError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Listing,
        pattern: re.Pattern[str],
        folder: str = "",
        depth: int = 1,
    ):
        listing = path if isinstance(path, Listing) else Listing(path)
        self.path, self._depth, self._pattern, self._listing = listing.path, depth, pattern, listing
        self.others: list[str] = []
        self.archives = listing.archives  # not searched
        found = list(self._matches(listing.place, listing.members))
        if not found and self.archives:
            found = [match for place, members in listing.inner for match in self._matches(place, members)]
            self.archives = []
        tops = Counter((place, top) for top, _, place, _ in found)
        chosen = {key for key in tops if folder and f"/{key[1]}".endswith(f"/{folder}")} or set(tops)
        for place in {place for place, _ in chosen}:
            _expect_one(place, sorted(top for other, top in chosen if other is place))
        left = {key: number for key, number in tops.items() if key not in chosen}
        self.left = {
            (top or ".") if place is listing.place else place.where(top): number
            for (place, top), number in left.items()
        }
        self._files: dict[str, tuple[Place, Member]] = {}
        places: dict[str, Place] = {}
        for top, name, place, member in found:
            if (place, top) in chosen:
                if name in self._files:
                    raise DataFormatError(
                        f"found a second one of that name; the first is {self.where(name)}",
                        path=plain(place.where(member.path)),
                    )
                self._files[name] = place, member
                # Parts of one set share no folder. Two versions of it do, and must not be mixed.
                inner = name.rpartition("/")[0]
                if inner and places.setdefault(inner, place) is not place:
                    raise DataFormatError(
                        f"holds {plain(inner)}/, and so does {plain(places[inner].path)}; name one of them, "
                        "or unpack both into one folder",
                        path=plain(place.path),
                    )
        self.names = sorted(self._files)

    def _matches(self, place: Place, members: Iterable[Member]) -> Iterator[tuple[str, str, Place, Member]]:
        """Yields (path before the name, name, place, member) of each file that matches."""
        known = set(self._listing.archives)
        for member in members:
            parts = self._listing.parts(place, member)
            name = "/".join(parts[-self._depth :])
            if any(map(is_junk, parts)) or "" in parts:
                continue
            if not self._pattern.fullmatch(name):
                if member.handle not in known:
                    self.others.append(member.path)
                continue
            if not member.regular:
                raise DataFormatError(
                    "found a folder, link or sparse file; wanted a regular file",
                    path=plain(place.where(member.path)),
                )
            yield "/".join(parts[: -self._depth]), name, place, member

    def read(self, names: Iterable[str], limit: int | None = None) -> Iterator[tuple[str, np.ndarray]]:
        """Yields (name, bytes) of these files, each of at most `limit` bytes, in any order:
        one pass per place.
        """
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
        """A file's name for messages; bytes that are not text are escaped."""
        if name in self._files:
            place, member = self._files[name]
            return plain(place.where(member.path))
        return plain(self.path / name if self.path.is_dir() else f"{self.path}({name})")

    def size(self, name: str) -> int:
        """The bytes of a file, as its place states them."""
        place, member = self._files[name]
        return place.size(member)

    def _bound(self, name: str, size: int, limit: int | None) -> None:
        if limit is not None and size > limit:
            raise DataFormatError(f"found {size} bytes; wanted at most {limit}", path=self.where(name))


def _expect_one(place: Place, tops: list[str]) -> None:
    if len(tops) > 1:
        what = "name one of these" if isinstance(place, Folder) else "unpack it and name one of these"
        listed = ", ".join(repr(plain(top or ".")) for top in tops[:4])
        raise DataFormatError(f"found files of this set below {listed}; {what}", path=plain(place.path))


Archive = Raw  # its name while folders had a class of their own


def list_raw(path: str | os.PathLike[str], missing: str) -> Listing:
    """What lies at `path`. Raises DataMissingError, which ends in `missing`, if nothing can be listed."""
    if not os.path.isdir(path) and not os.path.isfile(path):
        raise DataMissingError(f"{plain(path)}: no such file or folder; {missing}")
    with _readable(path):
        return Listing(path)


@contextlib.contextmanager
def _readable(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataMissingError(f"{plain(error.filename or path)}: cannot be read, {error.strerror}") from None


def open_raw(
    path: str | os.PathLike[str] | Listing,
    *patterns: re.Pattern[str],
    folder: str = "",
    depth: int = 1,
    kinds: tuple[str, ...] = (),
    missing: str,
) -> Raw:
    """The raw files at `path` for the first pattern that any file matches. `missing` says where to get them.

    Warns of other files that may belong to the set: archives that are not searched, files of the other
    patterns, and files that end in one of `kinds` and match no pattern.
    """
    listing = path if isinstance(path, Listing) else list_raw(path, missing)
    path = listing.path
    with _readable(path):
        tried = [Raw(listing, pattern, folder, depth) for pattern in patterns]
    found = [raw for raw in tried if raw.names]
    if not found:
        packed = [name for name in tried[0].others if name.lower().endswith((*ARCHIVES, *UNREAD))]
        held = f" (it holds {plain(packed[0])}: unpack that)" if packed else ""
        raise DataMissingError(f"{plain(path)}: there are no recordings{held}; {missing}")
    chosen, *further = found

    def left_out(number: int, what: str, first: str) -> None:
        warn(f"{plain(path)}: {number} {what} left out, e.g. {plain(first)}")

    for top, number in chosen.left.items():
        left_out(number, "files below another folder are", top)
    for other in further:
        left_out(len(other.names), "files of another format are", other.names[0])
    if chosen.archives:
        left_out(
            len(chosen.archives), "archives, beside files that lie unpacked, are", chosen.archives[0].name
        )
    matched = {name for raw in found for name in raw.names}
    strange = (
        [n for n in chosen.others if n.lower().endswith(kinds) and not matched & set(_tails(n))]
        if kinds
        else []
    )
    if strange:
        left_out(len(strange), f"{' and '.join(kinds)} files of other names are", strange[0])
    return chosen


def _tails(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[k:]) for k in range(len(parts))]
