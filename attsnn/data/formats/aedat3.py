"""AEDAT 3.1, the format of DVS128 Gesture: text lines up to "#!END-HEADER", then packets, little-endian.

A packet is a header of 28 bytes (i16 type, i16 source, i32 event size, time offset, time overflow, capacity,
number of events, valid events) and `number * size` bytes. A polarity event (type 1) is a u32 (bit 0 valid,
bit 1 polarity, bits 2-16 y, bits 17-31 x) and an i32 time; t = overflow << 31 | time, in microseconds.
Source: iniVation's AEDAT 3.1 document and libcaer's headers. Every number in a file is checked against the
bytes that are there before it is used.
"""

import os
import struct
from bisect import bisect_right
from typing import NamedTuple

import numpy as np

from attsnn._extension import Backend, compiled, use_fused
from attsnn.data.core.events import COLUMNS, Events, check_frames, frames
from attsnn.data.core.files import map_file
from attsnn.data.errors import DataFormatError

MAGIC, END = b"#!AER-DAT3.1", b"#!END-HEADER"
TEXT_LIMIT = 1 << 16  # a header longer than this is not one
PACKET = struct.Struct("<hhiiiiii")
POLARITY, EVENT_BYTES, TIME_OFFSET = 1, 8, 4
DISORDER = 10_000  # of so many events, one may be out of the order of time

# Numbered as the C++ decoder numbers them (csrc/cpu/events.h); {} is the number that was found.
PROBLEMS = (
    None,
    "found {} bytes where a packet's header of 28 begins; the file is cut short",
    "found packets of events of {} bytes; wanted a positive event size",
    "found {} events in a packet; wanted a number that is not negative",
    "found a packet with room for {} events, fewer than it holds; wanted capacity >= number of events",
    "found polarity events of {} bytes; wanted 8",
    "found the time of a polarity event at its byte {}; wanted 4",
    "found a time overflow of {}; wanted a number that is not negative",
    "found a packet that claims {} bytes of events, more than the file has left; it is cut short or damaged",
    "found an event at time {}; wanted a time that is not negative",
    "found an event at x = {}; wanted a column of the sensor",
    "found an event at y = {}; wanted a row of the sensor",
)


class Recording(NamedTuple):
    """The events of one file in order of time, and how many had to be sorted into place."""

    events: Events
    disordered: int


def read(
    path: str | os.PathLike,
    *,
    sensor: tuple[int, int] = (128, 128),
    strict: bool = False,
    backend: Backend = "auto",
) -> Recording:
    """The valid polarity events of an AEDAT 3.1 file; see `decode`."""
    return decode(map_file(path), path=path, sensor=sensor, strict=strict, backend=backend)


def read_frames(
    path: str | os.PathLike,
    *,
    steps: int,
    dt: int,
    sensor: tuple[int, int] = (128, 128),
    downsample: int = 1,
    backend: Backend = "auto",
) -> np.ndarray:
    """A file straight to frames: int32 `[steps, 2, height/downsample, width/downsample]`, bins of `dt` us.

    The same as `frames` of `read`, in one pass and without columns in between.
    """
    check_frames(steps=steps, dt=dt, sensor=sensor, downsample=downsample)
    if use_fused(backend, "cpu"):
        data = map_file(path)
        counts = compiled().file_frames(data, _skip_text(data, path), steps, dt, *sensor, downsample)
        if counts is not None:
            return counts
    events = read(path, sensor=sensor, backend=backend).events
    return frames(events, steps=steps, dt=dt, sensor=sensor, downsample=downsample, backend=backend)


def decode(
    data: np.ndarray,
    *,
    path: str | os.PathLike = "<bytes>",
    sensor: tuple[int, int] = (128, 128),
    strict: bool = False,
    backend: Backend = "auto",
) -> Recording:
    """The valid polarity events in the bytes of an AEDAT 3.1 file (uint8 array), in order of time.

    Packets of other types and events marked invalid are left out. Where time decreases, up to one event in
    10,000 is sorted into place (a stable sort); more, or any with `strict`, is an error. `sensor` is (height,
    width). Raises DataFormatError with `path` and the offset of the byte.
    """
    data = np.ascontiguousarray(data, dtype=np.uint8)
    start = _skip_text(data, path)
    decoder = compiled().decode_events if use_fused(backend, "cpu") else _reference_decode
    (problem, offset, found), columns, number, descents, first_descent = decoder(data, start, *sensor)
    if problem:
        raise DataFormatError(PROBLEMS[problem].format(found), path=path, offset=offset)
    events = Events(*columns)[:number]
    if not descents:
        return Recording(events, 0)
    # Each event that is taken out removes at most two descents, so many descents need no closer look.
    disordered = _disorder(events.t) if descents <= 2 * (number // DISORDER) else (descents + 1) // 2
    if strict or disordered > number // DISORDER:
        few = "none (strict)" if strict else f"at most one in {DISORDER:,}"
        raise DataFormatError(
            f"found time decreasing, {disordered:,} or more of {number:,} events out of order; wanted {few}",
            path=path,
            offset=first_descent,
        )
    order = np.argsort(events.t, kind="stable")
    return Recording(Events(*(getattr(events, name)[order] for name in COLUMNS)), disordered)


def write(path: str | os.PathLike, events: Events, *, per_packet: int = 4096) -> None:
    """Writes an AEDAT 3.1 file as a DVS128 recording; x and y below 2^15, times not negative."""
    with open(path, "wb") as file:
        file.write(MAGIC + b"\r\n#Format: RAW\r\n#Source 1: DVS128\r\n")
        file.write(b"#Start-Time: 2000-01-01 00:00:00 (TZ+0000)\r\n" + END + b"\r\n")
        overflow = events.t >> 31
        cuts = np.flatnonzero(np.diff(overflow)) + 1
        edges = [*np.union1d(np.arange(0, len(events), per_packet), cuts).tolist(), len(events)]
        x, y, p = (column.astype("<u4") for column in (events.x, events.y, events.p))
        times = (events.t & 0x7FFFFFFF).astype("<u4")
        words = np.stack([1 | p << 1 | y << 2 | x << 17, times], axis=1)
        for first, last in zip(edges[:-1], edges[1:], strict=True):
            number, epoch = last - first, int(overflow[first])
            file.write(PACKET.pack(POLARITY, 1, EVENT_BYTES, TIME_OFFSET, epoch, number, number, number))
            file.write(words[first:last].tobytes())


def _skip_text(data: np.ndarray, path) -> int:
    """Offset of the first packet."""
    text = data[:TEXT_LIMIT].tobytes()
    at = 0
    while True:
        end = text.find(b"\n", at)
        line = text[at:] if end < 0 else text[at:end]
        if at == 0 and line.rstrip() != MAGIC:
            raise DataFormatError(f"found {line[:20]!r}; wanted {MAGIC.decode()}", path=path, offset=0)
        if end < 0 or not line.startswith(b"#"):
            raise DataFormatError(
                f"the header's text ends without {END.decode()}; it is cut short or not AEDAT 3.1",
                path=path,
                offset=at,
            )
        if line.startswith(b"#Format:") and line.split(b":")[1].strip() != b"RAW":
            raise DataFormatError(f"found {line.rstrip()[:40]!r}; wanted RAW events", path=path, offset=at)
        at = end + 1
        if line.rstrip() == END:
            return at


def _disorder(t: np.ndarray) -> int:
    """The fewest events that must be taken out for the rest to be in order of time.

    n minus the longest non-decreasing subsequence, by patience sorting: one early or one late event counts
    once. Events that nothing earlier exceeds and nothing later undercuts are in it anyway.
    """
    greatest, least = np.maximum.accumulate(t), np.minimum.accumulate(t[::-1])[::-1]
    t = t[(t < greatest) | (t > least)]
    tails: list[int] = []  # tails[k]: the least time that ends such a subsequence of k + 1 events
    for time in t.tolist():
        if not tails or time >= tails[-1]:
            tails.append(time)
        else:
            tails[bisect_right(tails, time)] = time
    return len(t) - len(tails)


def _read_packet(data: np.ndarray, at: int) -> tuple[tuple[int, int, int], int, int, int, bool]:
    """(problem, offset, found), number of events, their size, time overflow, whether of polarity."""
    left = len(data) - at
    if left < PACKET.size:
        return (1, at, left), 0, 0, 0, False
    kind, _, size, time_offset, overflow, capacity, number, _ = PACKET.unpack_from(data, at)
    polarity = kind == POLARITY
    checks = (
        (size <= 0, 4, size),
        (number < 0, 20, number),
        (capacity < number, 16, capacity),
        (polarity and size != EVENT_BYTES, 4, size),
        (polarity and time_offset != TIME_OFFSET, 8, time_offset),
        (polarity and overflow < 0, 12, overflow),
        (number * size > left - PACKET.size, 20, number * size),
    )
    for problem, (wrong, field, found) in enumerate(checks, start=2):
        if wrong:
            return (problem, at + field, found), 0, 0, 0, False
    return (0, 0, 0), number, size, overflow, polarity


def _reference_decode(data: np.ndarray, start: int, height: int, width: int):
    """As `_C.decode_events`, in NumPy: fault, columns, number, descents, offset of the first descent."""
    at, words, overflows, offsets = start, [], [], []
    while at < len(data):
        fault, number, size, overflow, polarity = _read_packet(data, at)
        if fault[0]:
            return fault, None, 0, 0, -1
        first, at = at + PACKET.size, at + PACKET.size + number * size
        if polarity and number:
            words.append(data[first:at].view("<u4").reshape(-1, 2))
            overflows.append(np.full(number, overflow, np.int64))
            offsets.append(np.arange(first, at, EVENT_BYTES))
    if not words:
        return (0, 0, 0), [np.empty(0, dtype) for dtype in COLUMNS.values()], 0, 0, -1
    words, overflows, offsets = (np.concatenate(parts) for parts in (words, overflows, offsets))
    valid = words[:, 0] & 1 == 1
    (word, time), overflows, offsets = words[valid].T, overflows[valid], offsets[valid]
    x, y, p = word >> 17, word >> 2 & 0x7FFF, word >> 1 & 1
    wrong = np.stack([time >> 31 == 1, x >= width, y >= height], axis=1)
    if wrong.any():
        event = int(wrong.any(axis=1).argmax())
        kind = int(wrong[event].argmax())
        found = (int(time[event]) - (1 << 32), int(x[event]), int(y[event]))[kind]
        return (9 + kind, int(offsets[event]) + (TIME_OFFSET if kind == 0 else 0), found), None, 0, 0, -1
    t = overflows << 31 | time.astype(np.int64)
    descents = np.flatnonzero(np.diff(t) < 0) + 1
    columns = [column.astype(dtype) for column, dtype in zip((t, x, y, p), COLUMNS.values(), strict=True)]
    return (0, 0, 0), columns, len(t), len(descents), int(offsets[descents[0]]) if len(descents) else -1
