"""The user's own event recordings: any tree of files with one folder per class.

    RAW/train/<class>/.../*  and RAW/test/<class>/.../*      the split is that of the folders
    RAW/<class>/.../*                                        the split is chosen when the store is opened

Files are .aedat (2.0 of a DVS128, 3.1), .npz and .npy (columns or fields t, x, y, p), .csv and .txt (columns
by their names in the header, or t x y p). x, y and p of AEDAT 2.0 are the bits of the address. From Python,
use `write_store`.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from attsnn._extension import Backend
from attsnn.data.core.contract import STRICT, DataSet
from attsnn.data.core.decoding import Recording
from attsnn.data.core.files import plain
from attsnn.data.core.framing import SIDE
from attsnn.data.core.preparing import Entry, sides_of, write_recordings
from attsnn.data.core.raw import Raw, open_raw
from attsnn.data.core.recordings import EventFrames
from attsnn.data.core.store import SPLITS, UNDIVIDED, describe, verify
from attsnn.data.errors import DataError, DataFormatError, warn
from attsnn.data.formats import aedat2, aedat3, text
from attsnn.data.formats import columns as arrays
from attsnn.data.formats.columns import TimeUnit

KINDS = (".aedat", ".npz", ".npy", ".csv", ".txt")
IN_A_FOLDER = re.compile(rf".+/[^/]+(?:{'|'.join(map(re.escape, KINDS))})", re.DOTALL | re.IGNORECASE)
SPLIT_OF = {"train": "train", "training": "train", "test": "test", "testing": "test"}  # by its folder
OTHER_SPLITS = ("val", "valid", "validation", "eval", "dev")
FOLDERS = 64  # levels below RAW
WHERE = (
    "put recordings (.aedat, .npz, .npy, .csv, .txt) into RAW/train/<class>/ and RAW/test/<class>/, or into "
    "RAW/<class>/, and run `python -m attsnn.data prepare recordings RAW OUT`"
)


def prepare(
    raw: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    sensor: str | tuple[int, int] | None = None,
    time_unit: TimeUnit = "us",
    columns: str | None = None,
    strict: bool = False,
    progress: bool = True,
    backend: Backend = "auto",
) -> Path:
    """Writes the store `out` of all recordings below `raw`, a folder or an archive.

    Args:
        sensor: "HEIGHTxWIDTH" or (height, width); None: as large as the events need.
        time_unit: of the times in .npz, .npy, .csv and .txt.
        columns: names of the columns of .csv, .txt and .npy, such as "x,y,p,t"; they replace those of a
            header.
        strict: refuse times that decrease.

    Raises DataMissingError, DataFormatError, or DataError if an argument or the disk does not fit.
    """
    size, names = _size(sensor), None if columns is None else [c.strip() for c in columns.split(",")]
    arrays.unit_of(time_unit)
    source = open_raw(raw, IN_A_FOLDER, depth=FOLDERS, missing=WHERE)
    entries, classes = _entries(source)

    def decode(name: str, data: np.ndarray) -> Recording:
        how: dict[str, Any] = {"path": source.where(name), "strict": strict, "sensor": size}
        kind = Path(name).suffix.lower()
        if kind == ".aedat":
            old = bytes(data[: len(aedat2.MAGIC)]) == aedat2.MAGIC
            reader = aedat2.decode if old else aedat3.decode
            return reader(data, **how | {"sensor": size or (SIDE, SIDE)}, backend=backend)
        if kind in (".npz", ".npy"):
            return arrays.decode(data, **how, time_unit=time_unit, columns=names)
        return text.decode_table(data, **how, time_unit=time_unit, columns=names, backend=backend)

    about = {"dataset": "recordings", "time_unit": time_unit}
    return write_recordings(
        source, out, entries, decode, classes=classes, sensor=size, about=about, progress=progress
    )


def _size(sensor: str | tuple[int, int] | None) -> tuple[int, int] | None:
    match = re.fullmatch(r"([0-9]{1,5})[xX]([0-9]{1,5})", sensor) if isinstance(sensor, str) else None
    # The parts of any other string are no integers, which is refused below.
    given: Sequence[Any] | None = tuple(map(int, match.groups())) if match else sensor
    try:
        return sides_of(given)
    except ValueError:
        raise DataError(
            f"the sensor is {sensor!r}; wanted HEIGHTxWIDTH (rows x columns) in pixels, such as 260x346"
        ) from None


def _entries(source: Raw) -> tuple[list[Entry], tuple[str, ...]]:
    """The recordings and the sorted names of the classes. Warns of what is left out."""
    strange = [name for name in source.others if Path(name).suffix.lower() not in KINDS]
    _say_left(source, strange, "files are not recordings")
    files = {name: name.split("/") for name in source.names}
    # A folder that holds everything is no class, unless it is one of the splits.
    while len({parts[0] for parts in files.values()}) == 1 and any(len(p) > 2 for p in files.values()):
        if next(iter(files.values()))[0].lower() in SPLIT_OF:
            break
        files = {name: parts[1:] for name, parts in files.items() if len(parts) > 2}
    split_of = {
        n: SPLIT_OF[p[0].lower()] for n, p in files.items() if len(p) > 2 and p[0].lower() in SPLIT_OF
    }
    splits, wanted = set(split_of.values()), 3 if split_of else 2
    chosen = {name: parts for name, parts in files.items() if name in split_of or not splits}
    layout = "train/<class>/ and test/<class>/" if splits else "<class>/"
    stray = [name for name in source.others if name not in strange]
    stray += [name for name in source.names if name not in chosen]
    _say_left(source, stray, f"recordings are not in {layout}")
    _expect_classes(source, splits, chosen)
    if splits and splits != set(SPLITS):
        raise DataFormatError(
            f"found {splits.pop()}/ alone; wanted train/ and test/", path=plain(source.path)
        )
    classes = tuple(sorted({parts[wanted - 2] for parts in chosen.values()}))
    names = {name: "/".join(parts[wanted - 2 :]).rpartition(".")[0] for name, parts in chosen.items()}
    places = Counter((split_of.get(name), names[name]) for name in chosen)
    entries = []
    for name, parts in chosen.items():
        split = split_of.get(name, UNDIVIDED)
        if places[split_of.get(name), names[name]] > 1:
            raise DataFormatError(
                "is one of two files of this name; give one another name",
                path=source.where(name),
            )
        entries.append(Entry(name, classes.index(parts[wanted - 2]), names[name], split))
    return entries, tuple(map(plain, classes))


def _expect_classes(source: Raw, splits: set[str], chosen: dict[str, list[str]]) -> None:
    """Raises DataFormatError where a split would be taken for a class, or a class for a split."""
    tops = sorted({parts[0] for parts in chosen.values()})
    if not splits and tops and all(top.lower() in (*SPLIT_OF, *OTHER_SPLITS) for top in tops):
        raise DataFormatError(
            f"found recordings right below {'/ and '.join(tops)}/; wanted them in train/<class>/ and "
            "test/<class>/",
            path=plain(source.path),
        )
    inner = {part.lower(): part for parts in chosen.values() for part in parts[1:-1]}
    if not splits and inner.keys() >= set(SPLITS):
        raise DataFormatError(
            f"found folders {' and '.join(inner[split] for split in SPLITS)} below others; wanted "
            "train/<class>/ and test/<class>/, or <class>/ alone",
            path=plain(source.path),
        )


def _say_left(source: Raw, left: Sequence[str], what: str) -> None:
    if left:
        warn(f"{plain(source.path)}: {len(left)} {what} and are left out, e.g. {plain(left[0])}")


class Recordings(EventFrames):
    """The user's own recordings, from a store that
    `python -m attsnn.data prepare recordings` or `write_store` wrote.

    By default a sample has 10 steps of equally many events. If the store has no split, `split_rule` chooses
    one. Other arguments and errors are those of `EventFrames`.
    """

    where = WHERE

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: Literal["train", "test"],
        *,
        steps: int = 10,
        dt_ms: float | None = None,
        **how: Any,
    ):
        super().__init__(root, split, steps=steps, dt_ms=dt_ms, **how)


RECORDINGS = DataSet(
    name="recordings",
    title="Recordings of your own: a folder a class, .aedat, .npz, .npy, .csv or .txt",
    where=WHERE,
    licence="yours",
    splits=SPLITS,
    open=Recordings,
    prepare=prepare,
    verify=verify,
    describe=describe,
    raw="the folder of train/<class>/ and test/<class>/, or of <class>/",
    flags=STRICT
    | {
        "sensor": "HEIGHTxWIDTH in pixels; default: as wide and high as the events are",
        "time_unit": "of the times in .npz, .npy, .csv and .txt; default: us",
        "columns": "names of the columns of .csv, .txt and .npy, in place of a header's, e.g. x,y,p,t",
    },
)
