"""Turns raw files of event recordings into a store; the same for the user's own recordings."""

import operator
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from attsnn.data.core.decoding import Recording
from attsnn.data.core.events import COLUMNS, Events, make_events
from attsnn.data.core.files import plain
from attsnn.data.core.framing import SIDE
from attsnn.data.core.raw import Raw
from attsnn.data.core.store import EVENT_BYTES, StoreWriter
from attsnn.data.errors import warn

# Bytes that an event takes in a file of each kind, to estimate the size of the store beforehand. The values
# for texts and for what may be compressed are typical ones.
EVENT_IN_FILE = {".aedat": 8, ".bin": 5, ".mat": 16, ".npz": 16, ".npy": 16, ".txt": 14, ".csv": 14}


class Entry(NamedTuple):
    """A raw file and the clip that it becomes; `split` is train, test or all."""

    file: str
    label: int
    recording: str
    split: str


def store_bytes(raw: Raw, files: Iterable[str]) -> int:
    """About how many bytes the events of these files will take in a store."""
    return sum(raw.size(f) // EVENT_IN_FILE[Path(f).suffix.lower()] * EVENT_BYTES for f in files)


def write_recordings(
    raw: Raw,
    out: str | os.PathLike[str],
    entries: Sequence[Entry],
    decode: Callable[[str, np.ndarray], Recording],
    *,
    classes: Sequence[str],
    sensor: tuple[int, int] | None,
    about: dict[str, Any],
    progress: bool = True,
) -> Path:
    """Writes the store `out`: one clip for each entry, with the events `decode(file, its bytes)`.

    Prints how many bytes it will take, and raises DataError if the disk has fewer. `about` goes into the
    manifest, with how many events were sorted and how often a clock started again.
    """
    needs = store_bytes(raw, (entry.file for entry in entries))
    if progress:
        print(f"{plain(out)}: {len(entries):,} recordings, about {needs:,} bytes", file=sys.stderr)
    counted = {"source": plain(raw.path.name), "sorted_events": 0, "clock_restarts": 0, **about}
    by_file, empty = {entry.file: entry for entry in entries}, []
    with StoreWriter(out, classes=classes, sensor=sensor, about=counted, needs=needs) as writer:
        files = tqdm(
            raw.read(by_file),
            total=len(entries),
            unit="file",
            desc="prepare",
            disable=None if progress else True,
        )
        for file, data in files:
            events, disordered, restarts = decode(file, data)
            counted["sorted_events"] += disordered
            counted["clock_restarts"] += restarts
            entry = by_file[file]
            if not len(events):
                empty.append(file)
            writer.append(events, label=entry.label, recording=entry.recording, split=entry.split)
    if empty:
        warn(f"{len(empty)} recordings hold no event, e.g. {raw.where(empty[0])}")
    return Path(out)


def write_store(
    out: str | os.PathLike[str],
    recordings: Iterable[tuple[Events | Sequence[ArrayLike], int | str, str, str]],
    classes: Sequence[str],
    sensor: tuple[int, int] | None = None,
) -> Path:
    """Writes a store of the user's own recordings, which `Recordings(out, split)` opens; returns its path.

    Args:
        out: the folder to write; it must not exist yet, or be empty.
        recordings: one tuple (events, label, name, split) for each recording. `events` are `Events`, or four
            sequences as for `make_events`; `label` is the number or the name of its class; `name` is its own
            name; `split` is "train" or "test", or "all" for every recording if the split is chosen when the
            store is opened.
        classes: the names of the classes.
        sensor: (height, width) in pixels; None: as large as the events need.

    Raises:
        ValueError: something does not fit; the message names the recording, and nothing is written.
        DataError: something is at `out` already.
    """
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes) or not len(classes):
        raise ValueError(f"classes must be a sequence of names, got {classes!r}")
    classes, sensor = tuple(map(str, classes)), sides_of(sensor)
    if len(set(classes)) < len(classes):
        raise ValueError(f"classes must each have a name of its own, got {classes}")
    with StoreWriter(out, classes=classes, sensor=sensor, about={"source": "write_store"}) as writer:
        for number, (events, label, name, split) in enumerate(recordings):
            where = f"recording {number}, {plain(str(name))!r}"
            try:
                events = events if isinstance(events, Events) else make_events(*events)
                _check(events, sensor)
                writer.append(events, label=_number(label, classes), recording=str(name), split=split)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{where}: {error}") from None
    return Path(out)


def sides_of(sensor: Sequence[int] | None) -> tuple[int, int] | None:
    """The (height, width) of a sensor, or None. Raises ValueError for anything else."""
    if sensor is None:
        return None
    try:
        height, width = (operator.index(side) for side in sensor)
    except (TypeError, ValueError):
        height = width = 0
    if not (0 < height <= SIDE and 0 < width <= SIDE):
        raise ValueError(
            f"sensor must be (height, width) in pixels, at most {SIDE} each, or None; got {sensor!r}"
        )
    return height, width


def _check(events: Events, sensor: tuple[int, int] | None) -> None:
    if (np.diff(events.t) < 0).any():
        raise ValueError("its times decrease; make_events(..., sort=True) sorts them")
    if not len(events):
        return
    height, width = sensor or (SIDE, SIDE)
    least = [int(getattr(events, name).min()) for name in COLUMNS]
    most = [int(getattr(events, name).max()) for name in ("x", "y", "p")]
    if min(least) < 0 or most[0] >= width or most[1] >= height or most[2] > 1:
        raise ValueError(
            f"its events have x up to {most[0]}, y up to {most[1]}, p up to {most[2]}, and at least "
            f"{min(least)}; wanted 0 <= x < {width}, 0 <= y < {height}, p in 0, 1, and times from 0 on"
        )


def _number(label: int | str, classes: tuple[str, ...]) -> int:
    if isinstance(label, str):
        if label not in classes:
            raise ValueError(f"its class {label!r} is none of {', '.join(classes[:5])}")
        return classes.index(label)
    if not 0 <= operator.index(label) < len(classes):
        raise ValueError(f"its label is {label}; wanted 0 to {len(classes) - 1}")
    return operator.index(label)
