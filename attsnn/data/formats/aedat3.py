"""AEDAT 3.1, the format of DVS128 Gesture: text lines up to "#!END-HEADER", then packets, little-endian.

A packet is a header of 28 bytes (i16 type, i16 source, then i32: event size, time offset, time overflow,
capacity, number of events, valid events) and `number * size` bytes. A polarity event (type 1) is a u32 (bit 0
valid, bit 1 polarity, bits 2-16 y, bits 17-31 x) and an i32 time; t = overflow << 31 | time, in microseconds.
Source: iniVation's AEDAT 3.1 document and libcaer's headers. Every number in a file is checked against the
bytes that are there before it is used.
"""

import os
import struct

import numpy as np

from attsnn._extension import Backend, compiled, use_fused
from attsnn.data.core.decoding import Decoded, Recording, fault, in_columns, recording, sides
from attsnn.data.core.events import Events, frames, warn_outside
from attsnn.data.core.files import map_file
from attsnn.data.core.framing import Framing
from attsnn.data.errors import DataFormatError

MAGIC, END = b"#!AER-DAT3.1", b"#!END-HEADER"
TEXT_LIMIT = 1 << 16  # a header longer than this is not one
PACKET = struct.Struct("<hhiiiiii")
POLARITY, EVENT_BYTES, TIME_OFFSET = 1, 8, 4


def read(
    path: str | os.PathLike[str],
    *,
    sensor: tuple[int, int] = (128, 128),
    strict: bool = False,
    backend: Backend = "auto",
) -> Recording:
    """Reads the valid polarity events of an AEDAT 3.1 file, the format of DVS128 Gesture, in time order.

    Packets of other types and events that are marked invalid are left out. If time decreases, up to one event
    in 10,000 is sorted into place (a stable sort); more is an error.

    Args:
        path: the file.
        sensor: (height, width) in pixels.
        strict: refuse any time that decreases.
        backend: "fused" is C++, "reference" is NumPy.

    Raises:
        DataFormatError: the file is broken; the message has the file and the offset of the byte.
        DataMissingError: the file is not there.
    """
    return decode(map_file(path), path=path, sensor=sensor, strict=strict, backend=backend)


def read_frames(
    path: str | os.PathLike[str],
    *,
    steps: int,
    dt: int,
    sensor: tuple[int, int] = (128, 128),
    downsample: int = 1,
    backend: Backend = "auto",
) -> np.ndarray:
    """Counts an AEDAT 3.1 file straight into frames, int32 `[steps, 2, height/downsample, width/downsample]`.

    The result is that of `frames` of what `read` returns, in one pass and without columns in between.

    Args:
        path: the file.
        steps: time steps.
        dt: microseconds of a step, counted from the first event.
        sensor, downsample, backend: see `Framing`.

    Raises as `read` and `Framing` do.
    """
    framing = Framing(steps, dt, sensor, downsample)
    if use_fused(backend, "cpu"):
        data = map_file(path)
        decoded = compiled().file_frames(data, _skip_text(data, path), steps, dt, *sensor, downsample)
        if decoded is not None:
            counts: np.ndarray
            counts, number, first, last = decoded
            if 2 * (inside := int(counts.sum())) < number:
                warn_outside(framing, inside, number, first, last)
            return counts
    events = read(path, sensor=sensor, backend=backend).events
    return frames(events, steps=steps, dt=dt, sensor=sensor, downsample=downsample, backend=backend)


def decode(
    data: np.ndarray,
    *,
    path: str | os.PathLike[str] = "<bytes>",
    sensor: tuple[int, int] = (128, 128),
    strict: bool = False,
    backend: Backend = "auto",
) -> Recording:
    """The valid polarity events in the bytes of an AEDAT 3.1 file (uint8 array), in time order.

    Packets of other types and events that are marked invalid are left out. If time decreases, up to one event
    in 10,000 is sorted into place (a stable sort); more, or any with `strict`, is an error. `sensor` is
    (height, width). Raises DataFormatError with `path` and the offset of the byte.
    """
    data = np.ascontiguousarray(data, dtype=np.uint8)
    start = _skip_text(data, path)
    decoder = compiled().decode_aedat3 if use_fused(backend, "cpu") else _reference_decode
    return recording(Decoded(*decoder(data, start, *sensor)), path, strict=strict, hints=sides(sensor))


def write(path: str | os.PathLike[str], events: Events, *, per_packet: int = 4096) -> None:
    """Writes an AEDAT 3.1 file like a DVS128 recording. x and y must be below 2^15, times not negative."""
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


def _skip_text(data: np.ndarray, path: str | os.PathLike[str]) -> int:
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


def _read_packet(data: np.ndarray, at: int) -> tuple[Decoded | None, int, int, int, bool]:
    """(fault or None, number, event size, overflow, polarity) of the packet at `at`."""
    left = len(data) - at
    if left < PACKET.size:
        return fault("header_cut", at, left), 0, 0, 0, False
    kind, _, size, time_offset, overflow, capacity, number, _ = PACKET.unpack_from(data.data, at)
    polarity = kind == POLARITY
    checks = (
        ("event_size", size <= 0, 4, size),
        ("number", number < 0, 20, number),
        ("capacity", capacity < number, 16, capacity),
        ("polarity_size", polarity and size != EVENT_BYTES, 4, size),
        ("time_offset", polarity and time_offset != TIME_OFFSET, 8, time_offset),
        ("overflow", polarity and overflow < 0, 12, overflow),
        ("payload_cut", number * size > left - PACKET.size, 20, number * size),
    )
    for problem, wrong, field, found in checks:
        if wrong:
            return fault(problem, at + field, found), 0, 0, 0, False
    return None, number, size, overflow, polarity


def _reference_decode(data: np.ndarray, start: int, height: int, width: int) -> Decoded:
    """`_C.decode_aedat3` in NumPy."""
    at, packets = start, []
    while at < len(data):
        problem, number, size, overflow, polarity = _read_packet(data, at)
        if problem:
            return problem
        first, at = at + PACKET.size, at + PACKET.size + number * size
        if polarity and number:
            words = data[first:at].view("<u4").reshape(-1, 2)
            overflows = np.full(number, overflow, np.int64)
            packets.append((words, overflows, np.arange(first, at, EVENT_BYTES)))
    if not packets:
        return in_columns([], [], [], [], [])
    words, overflows, offsets = (np.concatenate(parts) for parts in zip(*packets, strict=True))
    valid = words[:, 0] & 1 == 1
    (word, time), overflows, offsets = words[valid].T, overflows[valid], offsets[valid]
    x, y, p = word >> 17, word >> 2 & 0x7FFF, word >> 1 & 1
    wrong = np.stack([time >> 31 == 1, x >= width, y >= height], axis=1)
    if wrong.any():
        event = int(wrong.any(axis=1).argmax())
        kind = int(wrong[event].argmax())
        found = (int(time[event]) - (1 << 32), int(x[event]), int(y[event]))[kind]
        offset = int(offsets[event]) + (TIME_OFFSET if kind == 0 else 0)
        return fault(("time_sign", "column", "row")[kind], offset, found)
    return in_columns(overflows << 31 | time.astype(np.int64), x, y, p, offsets)
