"""Small writers of the published formats, independent of the package's own: what the readers' tests read."""

import csv
import struct
from pathlib import Path

import numpy as np

from attsnn.data import Events, make_events
from attsnn.data.core.events import COLUMNS

TEXT = (
    b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n"
    b"#Start-Time: 2016-11-10 10:40:45 (TZ+0100)\r\n#!END-HEADER\r\n"
)
LABEL_COLUMNS = ("class", "startTime_usec", "endTime_usec")
GESTURES = (1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 10, 11)  # a recording of DVS128 Gesture: class 8 twice
TRIAL_US = 1_000_000


def random_events(
    number: int, *, start: int = 0, length: int = 1_000_000, side: int = 128, seed: int = 0
) -> Events:
    rng = np.random.default_rng(seed)
    x, y, p = rng.integers(0, (side, side, 2), (number, 3)).T
    return make_events(np.sort(rng.integers(start, start + length, number)), x, y, p)


def assert_equal(got: Events, wanted: Events) -> None:
    for name, dtype in COLUMNS.items():
        assert getattr(got, name).dtype == dtype
        np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name), err_msg=name)


def as_array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def packet(events: Events, *, valid=1, **fields: int) -> bytes:
    """One packet; `fields` replace those of its header, `valid` is a bit or one for each event."""
    overflow = int(events.t[0]) >> 31 if len(events) else 0
    header = {"kind": 1, "source": 1, "size": 8, "time_offset": 4, "overflow": overflow}
    header |= dict.fromkeys(("capacity", "number", "valid_number"), len(events))
    x, y, p = (column.astype("<u4") for column in (events.x, events.y, events.p))
    words = np.stack([valid | p << 1 | y << 2 | x << 17, events.t & 0x7FFFFFFF], axis=1).astype("<u4")
    return struct.pack("<hhiiiiii", *(header | fields).values()) + words.tobytes()


def other_packet(payload: bytes = bytes(36), *, kind: int = 2, size: int = 12) -> bytes:
    """A packet of another type, which a reader steps over."""
    number = len(payload) // size
    return struct.pack("<hhiiiiii", kind, 1, size, 4, 0, number, number, number) + payload


def aedat(events: Events, per_packet: int = 4096) -> bytes:
    """A whole file; a packet ends where the time overflow changes."""
    cuts = np.union1d(
        np.arange(0, len(events), per_packet), np.flatnonzero(np.diff(events.t >> 31)) + 1
    ).astype(int)
    return TEXT + b"".join(packet(events[a:b]) for a, b in zip(cuts, [*cuts[1:], len(events)], strict=True))


def write_csv(path: Path, rows, header=LABEL_COLUMNS) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def write_recording(folder: Path, name: str, *, classes=GESTURES, number: int = 300, seed: int = 0) -> Events:
    """`name`.aedat and its label CSV: a trial a second from 80 s on, labelled but for 50 ms at either end."""
    events = random_events(number * len(classes), start=80_000_000, length=TRIAL_US * len(classes), seed=seed)
    (folder / f"{name}.aedat").write_bytes(aedat(events, 1000))
    starts = [80_000_000 + k * TRIAL_US for k in range(len(classes))]
    rows = [(c, start + 50_000, start + TRIAL_US - 50_000) for c, start in zip(classes, starts, strict=True)]
    write_csv(folder / f"{name}_labels.csv", rows)
    return events


def write_dvs_gesture(
    root: Path, *, train=("user01_led", "user02_lab"), test=("user24_led",), lists=True, number: int = 300
) -> Path:
    """A small DVS128 Gesture in root/DvsGesture, `number` events a trial; returns that folder."""
    folder = root / "DvsGesture"
    folder.mkdir(parents=True)
    for seed, name in enumerate((*train, *test)):
        write_recording(folder, name, number=number, seed=seed)
    for split, names in (("train", train), ("test", test)):
        if lists:
            (folder / f"trials_to_{split}.txt").write_text("".join(f"{name}.aedat\n" for name in names))
    return folder
