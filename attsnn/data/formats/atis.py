"""ATIS recordings of 40 bits per event, the format of N-Caltech101 and N-MNIST: records and nothing else.

A record is five bytes: x, y, then, big-endian, one bit of polarity (1 = ON) and 23 bits of time in
microseconds. A record with row 240 is not an event: it makes all times after it 2^13 later. Source: Orchard
et al. (2015) and its readers.
"""

import os
from typing import Any

import numpy as np

from attsnn._extension import Backend, compiled, use_fused
from attsnn.data.core.decoding import Decoded, Recording, fault, in_columns, recording, sides
from attsnn.data.core.files import map_file

EVENT_BYTES, OVERFLOW_ROW, OVERFLOW_TIME = 5, 240, 1 << 13


def read(path: str | os.PathLike[str], **how: Any) -> Recording:
    """The events of an ATIS file; see `decode`."""
    return decode(map_file(path), path=path, **how)


def decode(
    data: np.ndarray,
    *,
    path: str | os.PathLike[str] = "<bytes>",
    sensor: tuple[int, int] = (180, 240),
    strict: bool = False,
    backend: Backend = "auto",
) -> Recording:
    """The events in the bytes of an ATIS file (uint8 array), in time order; `sensor` is (height, width).

    `decoding.recording` says what happens if time decreases; a clock that starts again is taken as going on.
    Raises DataFormatError with `path` and the offset of the byte.
    """
    data = np.ascontiguousarray(data, dtype=np.uint8)
    decoder = compiled().decode_atis if use_fused(backend, "cpu") else _reference_decode
    return recording(
        Decoded(*decoder(data, 0, *sensor)), path, strict=strict, restarts=True, hints=sides(sensor)
    )


def _reference_decode(data: np.ndarray, start: int, height: int, width: int) -> Decoded:
    """`_C.decode_atis` in NumPy."""
    rest = (len(data) - start) % EVENT_BYTES
    if rest:
        return fault("record_cut", len(data) - rest, rest)
    x, y, high, middle, low = data[start:].reshape(-1, EVENT_BYTES).astype(np.int64).T
    offsets = np.arange(start, len(data), EVENT_BYTES)
    event = y != OVERFLOW_ROW
    wrong = event & np.stack([x >= width, y >= height])
    if wrong.any():
        first = int(wrong.any(axis=0).argmax())
        kind = int(wrong[:, first].argmax())
        return fault(("column", "row")[kind], int(offsets[first]) + kind, int((x, y)[kind][first]))
    t = (high & 0x7F) << 16 | middle << 8 | low
    t = t + OVERFLOW_TIME * np.cumsum(~event)
    return in_columns(*(column[event] for column in (t, x, y, high >> 7, offsets)))
