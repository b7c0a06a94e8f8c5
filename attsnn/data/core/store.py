"""A store: the events of a data set as memory-mapped columns, an index of its clips, and checksums.

    OUT/t.npy x.npy y.npy p.npy    columns over all events (dtypes: events.COLUMNS)
    OUT/clips.csv                  start,stop,label,recording,split: a half-open range of events per row;
    split
                                   is train, test, or all
    OUT/manifest.json              format version, classes, clips of each, size and SHA-256 of each file, ...

A store is written next to its final place and renamed once all of it is on disk, so one that exists is
complete.
"""

import contextlib
import csv
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from attsnn._files import mapped, sync, write_file
from attsnn.data.core.events import COLUMNS, Events
from attsnn.data.core.files import plain
from attsnn.data.core.framing import SIDE
from attsnn.data.core.staging import staged
from attsnn.data.errors import DataFormatError, DataMissingError

FORMAT = "attsnn event store"
VERSION = 1
MANIFEST, INDEX = "manifest.json", "clips.csv"
SPLITS = ("train", "test")
UNDIVIDED = "all"  # the split of such a store is chosen when it is opened
EVENT_BYTES = sum(dtype.itemsize for dtype in COLUMNS.values())
_CLIPS = {"train": "train", "test": "test", UNDIVIDED: "undivided"}  # words for sentences
ORDER = {split: place for place, split in enumerate((*SPLITS, UNDIVIDED))}
TEXT_LIMIT = 1 << 26
NAME = 4096  # the most characters in a recording's name


class Clip(NamedTuple):
    """One labelled range of events, start <= i < stop, of the recording `recording`."""

    start: int
    stop: int
    label: int
    recording: str
    split: str


class Store:
    """An open store. Opening checks its manifest and file sizes; only `verify` checks the hashes.

    Columns are mapped on first use in each process, so a store can be passed to workers.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.manifest = _read_manifest(self.path)
        self.classes: tuple[str, ...] = tuple(self.manifest["classes"])
        self.sensor: tuple[int, int] = tuple(self.manifest["sensor"])
        for name, entry in self.manifest["files"].items():
            size = (self.path / name).stat().st_size if (self.path / name).is_file() else None
            if size != entry["size"]:
                found = "nothing" if size is None else f"{size} bytes"
                raise DataFormatError(f"found {found}; wanted {entry['size']} bytes", path=self.path / name)
        self.clips = _read_index(self.path / INDEX, self.manifest["events"], len(self.classes))
        self._columns: Events | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_columns": None}

    def events(self, clip: Clip) -> Events:
        """The events of a clip, as views of the mapped columns; times are those of the recording."""
        return self.columns[clip.start : clip.stop]

    @property
    def columns(self) -> Events:
        """The events of all clips, one clip after the other."""
        if self._columns is None:
            self._columns = Events(*(self._map(name) for name in COLUMNS))
        return self._columns

    def _map(self, name: str) -> np.ndarray:
        path, number = self.path / f"{name}.npy", self.manifest["events"]
        if not number:
            return np.empty(0, COLUMNS[name])
        try:
            with open(path, "rb") as file:
                np.lib.format.read_magic(file)
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                start = file.tell()
            if dtype != COLUMNS[name] or shape != (number,):
                raise ValueError(f"{dtype}{list(shape)}; wanted {COLUMNS[name]}[{number}]")
            return mapped(path, dtype, shape, start)
        except Exception as error:  # NumPy parses a header as Python, and raises what that raises
            raise DataFormatError(f"not a column of a store ({error})", path=path) from None

    def verify(self) -> None:
        """Raises DataFormatError unless every file has its checksum and every column its type."""
        for name, entry in self.manifest["files"].items():
            if _sha256(self.path / name) != entry["sha256"]:
                raise DataFormatError("found another SHA-256 than the manifest's", path=self.path / name)
        for name in COLUMNS:
            self._map(name)


def is_divided(path: str | os.PathLike[str]) -> bool:
    """Whether a store has a split of its own; True if there is no store at `path`."""
    return not (Path(path) / MANIFEST).is_file() or all(c.split != UNDIVIDED for c in Store(path).clips)


class StoreWriter:
    """Writes a store: `append` clips in a `with` block. `path` appears if the block ends without an error."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        classes: Sequence[str],
        sensor: tuple[int, int] | None,
        about: dict[str, Any],
        needs: int = 0,
    ):
        """`about` goes into the manifest as it is; it may be filled until the block ends. With `sensor=None`
        the sensor is as large as the events need. `needs` bytes must be free where `path` is.
        """
        self.path, self.classes, self.sensor, self.about = Path(path), tuple(classes), sensor, about
        self._needs, self._seen = needs, [1, 1]
        self._contents: list[str] = []
        self.clips: list[Clip] = []
        self.number = 0

    def __enter__(self) -> "StoreWriter":
        self._open = contextlib.ExitStack()
        self._partial = self._open.enter_context(staged(self.path, self._needs))
        paths = {name: self._partial / f"{name}.npy" for name in COLUMNS}
        self._columns = {name: self._open.enter_context(path.open("wb+")) for name, path in paths.items()}
        self._open.push(self._finish)
        self._write_headers()
        return self

    def append(self, events: Events, *, label: int, recording: str, split: str) -> None:
        """Adds one clip. `split` is "train" or "test", or "all" for every clip;
        ValueError for anything else.
        """
        undivided = any(clip.split == UNDIVIDED for clip in self.clips[:1])
        if split not in ORDER or (self.clips and undivided != (split == UNDIVIDED)):
            raise ValueError(f"its split is {split!r}; wanted train or test, or all for every recording")
        if len(plain(recording)) > NAME:
            raise ValueError(f"its name has {len(plain(recording)):,} characters; wanted at most {NAME:,}")
        if len(events):
            sides = int(events.y.max()) + 1, int(events.x.max()) + 1
            self._seen = [max(pair) for pair in zip(self._seen, sides, strict=True)]
        digest = hashlib.sha256(json.dumps([plain(recording), label, split]).encode())
        for name, file in self._columns.items():
            column = np.ascontiguousarray(getattr(events, name), COLUMNS[name]).data
            file.write(column)
            digest.update(column)
        self._contents.append(digest.hexdigest())
        self.clips.append(Clip(self.number, self.number + len(events), label, plain(recording), split))
        self.number += len(events)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, traceback)

    def _write_headers(self) -> None:
        for name, file in self._columns.items():
            # NumPy pads a header so that the shape can grow in place.
            file.seek(0)
            description = np.lib.format.dtype_to_descr(COLUMNS[name])
            header = {"descr": description, "fortran_order": False, "shape": (self.number,)}
            np.lib.format.write_array_header_1_0(file, header)

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return
        self._write_headers()
        for file in self._columns.values():
            file.flush()
            sync(file.fileno())
        clips = sorted(self.clips, key=lambda clip: (ORDER[clip.split], clip.recording, clip.start))
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([Clip._fields, *clips])
        _write_text(self._partial / INDEX, text.getvalue())
        names = [f"{name}.npy" for name in COLUMNS] + [INDEX]
        paths = {name: self._partial / name for name in names}
        counts = {
            split: [sum(c.split == split and c.label == k for c in clips) for k in range(len(self.classes))]
            for split in dict.fromkeys(clip.split for clip in clips) or SPLITS
        }
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "classes": self.classes,
            "sensor": self.sensor or self._seen,
            "events": self.number,
            "clips_of_each_class": counts,
            # Independent of the clips' order: another archive of the same files has another order.
            "contents": hashlib.sha256("".join(sorted(self._contents)).encode()).hexdigest(),
            "files": {n: {"size": p.stat().st_size, "sha256": _sha256(p)} for n, p in paths.items()},
            **self.about,
        }
        _write_text(self._partial / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def verify(
    path: str | os.PathLike[str], dataset: str | None = None, published: Mapping[str, int] | None = None
) -> None:
    """Checks every file of a store against its checksum, and prints what the store holds. If that differs
    from what was published, prints how many clips were.

    Raises DataFormatError, also if the store was prepared from another set than `dataset`.
    """
    store = Store(path)
    store.verify()
    print(_said(store))
    if dataset is not None and (made := store.manifest.get("dataset", dataset)) != dataset:
        raise DataFormatError(f"was prepared from {made}; wanted {dataset}", path=path)
    found = Counter(clip.split for clip in store.clips)
    if published and found != published:
        print(
            "published are "
            + " and ".join(f"{number:,} {_CLIPS[split]}" for split, number in published.items())
        )


def verifier(
    dataset: str, published: Mapping[str, int] | None = None
) -> Callable[[str | os.PathLike[str]], None]:
    """A `verify` for the store of a set that was published with so many clips of each split."""

    def verify_one(path: str | os.PathLike[str]) -> None:
        verify(path, dataset, published)

    return verify_one


def describe(path: str | os.PathLike[str]) -> str:
    """A sentence about what a store holds."""
    return _said(Store(path))


def _said(store: Store) -> str:
    found = Counter(clip.split for clip in store.clips)
    clips = " and ".join(
        f"{found[split]} {_CLIPS[split]}" for split in ([UNDIVIDED] if found[UNDIVIDED] else SPLITS)
    )
    size, told = sum(entry["size"] for entry in store.manifest["files"].values()), store.manifest.get
    put = f"{told('sorted_events', 0)} sorted"
    if told("clock_restarts"):
        put += f", clocks that started again {told('clock_restarts')} times"
    return (
        f"{plain(store.path)}: {clips} clips, {len(store.classes)} classes, {told('events'):,} events, "
        f"{put}, sensor {store.sensor[0]} x {store.sensor[1]}, {size:,} bytes"
    )


def _write_text(path: Path, text: str) -> None:
    write_file(path, text.encode("utf-8"))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > TEXT_LIMIT:
            raise DataFormatError(f"larger than {TEXT_LIMIT} bytes", path=path)
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataMissingError(
            f"{plain(path)}: {error.strerror}; there is no prepared store here, make one with "
            "`python -m attsnn.data prepare NAME RAW OUT`"
        ) from None
    except UnicodeDecodeError as error:
        raise DataFormatError("not UTF-8", path=path, offset=error.start) from None


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    text = _read_text(path)
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:  # of JSON, and of numbers of too many digits
        raise DataFormatError(f"not JSON ({error})", path=path) from None
    if (
        not isinstance(manifest, dict)
        or manifest.get("format") != FORMAT
        or manifest.get("version") != VERSION
    ):
        raise DataFormatError(f"not a manifest of {FORMAT!r}, version {VERSION}; prepare it again", path=path)
    files, names = manifest.get("files"), {f"{name}.npy" for name in COLUMNS} | {INDEX}
    sensor, classes = manifest.get("sensor"), manifest.get("classes")
    sound = (
        isinstance(files, dict)
        and set(files) == names
        and all(isinstance(f, dict) and {"size", "sha256"} <= set(f) for f in files.values())
        and isinstance(sensor, list)
        and [type(side) for side in sensor] == [int, int]
        and all(0 < side <= SIDE for side in sensor)
        and isinstance(classes, list)
        and all(isinstance(name, str) for name in classes)
        and type(manifest.get("events")) is int
        and manifest["events"] >= 0
    )
    if not sound:
        raise DataFormatError("files, sensor, classes or events are missing or of another type", path=path)
    return manifest


def _read_index(path: Path, events: int, classes: int) -> list[Clip]:
    text = _read_text(path)
    try:
        header, *rows = list(csv.reader(io.StringIO(text))) or [[]]
    except csv.Error as error:
        raise DataFormatError(f"not a table ({error})", path=path) from None
    if tuple(header) != Clip._fields:
        raise DataFormatError(f"found columns {header}; wanted {list(Clip._fields)}", path=path, line=1)
    clips = []
    for line, row in enumerate(rows, start=2):
        numbers = row[:3]
        if len(row) != 5 or not all(n.isascii() and n.isdigit() and len(n) < 19 for n in numbers):
            raise DataFormatError(
                f"found {row}; wanted start,stop,label,recording,split", path=path, line=line
            )
        start, stop, label = map(int, numbers)
        clip = Clip(start, stop, label, row[3], row[4])
        if not (clip.start <= clip.stop <= events and clip.label < classes and clip.split in ORDER):
            raise DataFormatError(f"{clip} lies outside the store", path=path, line=line)
        clips.append(clip)
    return clips
