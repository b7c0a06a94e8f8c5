"""AEDAT 2.0 of a DVS128 sensor, the format of CIFAR10-DVS: lines that begin with "#", then records.

All numbers are big-endian. A record is a u32 address (bit 0 polarity, bits 1-7 x, bits 8-14 y, bit 15 marks
an event of no pixel, which is left out) and a u32 time in microseconds. The text has no end mark. It ends
where a line does not begin with "#", and no address of a DVS128 begins with that byte. jAER ends lines with
LF or CRLF and may add tens of kilobytes of XML. Source: iniVation's AEDAT 2.0 document.
"""

import os
from typing import Any

import numpy as np

from attsnn._extension import Backend, compiled, use_fused
from attsnn.data.core.decoding import Decoded, Recording, fault, in_columns, recording, sides
from attsnn.data.core.files import map_file
from attsnn.data.errors import DataFormatError

MAGIC = b"#!AER-DAT2.0"
LINE_BYTES = 1 << 16  # the most in a line of text
EVENT_BYTES, EXTERNAL = 8, 0x8000


def read(path: str | os.PathLike[str], **how: Any) -> Recording:
    """The events of an AEDAT 2.0 file; see `decode`."""
    return decode(map_file(path), path=path, **how)


def decode(
    data: np.ndarray,
    *,
    path: str | os.PathLike[str] = "<bytes>",
    sensor: tuple[int, int] = (128, 128),
    strict: bool = False,
    backend: Backend = "auto",
) -> Recording:
    """The events in the bytes of an AEDAT 2.0 file (uint8 array), in time order.

    x, y and p are the bits of the address. Only the data set knows how they lie in an upright image, and
    whether 1 is ON.

    `decoding.recording` says what happens if time decreases; a clock that starts again is taken as going on.
    Raises DataFormatError with `path` and the offset of the byte.
    """
    data = np.ascontiguousarray(data, dtype=np.uint8)
    start = _skip_text(data, path)
    decoder = compiled().decode_aedat2 if use_fused(backend, "cpu") else _reference_decode
    return recording(
        Decoded(*decoder(data, start, *sensor)), path, strict=strict, restarts=True, hints=sides(sensor)
    )


def _skip_text(data: np.ndarray, path: str | os.PathLike[str]) -> int:
    """Offset of the first record."""
    at = 0
    while True:
        line = data[at : at + LINE_BYTES].tobytes()
        end = line.find(b"\n")
        if at == 0 and line[: end if end >= 0 else 20].rstrip() != MAGIC:
            raise DataFormatError(f"found {line[:20]!r}; wanted {MAGIC.decode()}", path=path, offset=0)
        if end < 0 or not line.startswith(b"#"):
            return at
        at += end + 1


def _reference_decode(data: np.ndarray, start: int, height: int, width: int) -> Decoded:
    """`_C.decode_aedat2` in NumPy."""
    rest = (len(data) - start) % EVENT_BYTES
    if rest:
        return fault("record_cut", len(data) - rest, rest)
    address, t = data[start:].view(">u4").reshape(-1, 2).astype(np.int64).T
    offsets = np.arange(start, len(data), EVENT_BYTES)
    pixel = address & EXTERNAL == 0
    x, y, p = address >> 1 & 0x7F, address >> 8 & 0x7F, address & 1
    wrong = np.stack([address >> 16 != 0, pixel & (x >= width), pixel & (y >= height)], axis=1)
    if wrong.any():
        event = int(wrong.any(axis=1).argmax())
        kind = int(wrong[event].argmax())
        found = int((address, x, y)[kind][event])
        return fault(("address", "column", "row")[kind], int(offsets[event]), found)
    return in_columns(*(column[pixel] for column in (t, x, y, p, offsets)))
