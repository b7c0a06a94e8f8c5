"""Recordings as text, an event a row: `t x y p` of DVS128 Gait, or any table with a header.

Rows are separated by lines, numbers by blanks, commas, semicolons or tabs; what follows a "#" is a comment.
"""

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from attsnn._extension import Backend, compiled, use_fused
from attsnn.data.core.decoding import Decoded, Recording, fault, in_columns, recording
from attsnn.data.core.framing import SIDE
from attsnn.data.errors import DataFormatError
from attsnn.data.formats.columns import NAMES, UNITS, TimeUnit, which

HEADER_BYTES = 1 << 16
MOST_FIELDS = 16
INTEGER = re.compile(rb"[+-]?[0-9]+")
REAL = re.compile(rb"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


class Row(NamedTuple):
    """How the numbers of a row lie."""

    fields: int = 4
    t: int = 0
    x: int = 1
    y: int = 2
    p: int = 3
    separator: str = " "  # a blank: any run of blanks and tabs
    time_unit: int = 1  # microseconds
    integers: bool = True  # 1.5 and 1e3 are refused

    def layout(self) -> tuple:
        """As `_C.decode_text` takes it."""
        return (self.fields, self.t, self.x, self.y, self.p), self.separator, self.time_unit, self.integers


def decode(
    data: np.ndarray,
    *,
    path: str | os.PathLike = "<bytes>",
    row: Row | None = None,
    start: int = 0,
    sensor: tuple[int, int] = (128, 128),
    strict: bool = False,
    backend: Backend = "auto",
) -> Recording:
    """The events in the bytes of a text (uint8 array) from byte `start` on, in order of time.

    `row` says how its rows lie, by default integers `t x y p` with t in microseconds; `sensor` is (height,
    width). Polarities are 0 and 1, or -1 and 1. Raises DataFormatError with `path`, the line and the offset.
    """
    data, row = np.ascontiguousarray(data, dtype=np.uint8), row or Row()
    decoder = compiled().decode_text if use_fused(backend, "cpu") else _reference_decode
    decoded, polarities = decoder(data, start, *sensor, *row.layout())
    if polarities & 3 == 3:
        raise DataFormatError("found polarities of 0 and of -1; wanted 0 and 1, or -1 and 1", path=path)
    return recording(Decoded(*decoded), path, strict=strict, data=data)


def decode_table(
    data: np.ndarray,
    *,
    path: str | os.PathLike = "<bytes>",
    columns: Sequence[str] | None = None,
    time_unit: TimeUnit = "us",
    sensor: tuple[int, int] | None = None,
    strict: bool = False,
    backend: Backend = "auto",
) -> Recording:
    """The events of a .csv or .txt whose header names its columns; `columns` names them where there is none.

    t, x, y, p go by the names of `columns.NAMES`; others are left out. Without either, rows are t, x, y, p.
    `sensor=None` takes any place up to 32,767.
    """
    data = np.ascontiguousarray(data, dtype=np.uint8)
    words, separator, start, header_end = _first_row(data, path)
    named = [not REAL.fullmatch(word.encode()) for word in words]
    if any(named):
        start, names = header_end, tuple(words)
    else:
        names = tuple(columns or "txyp")
    if len(names) > MOST_FIELDS:
        raise DataFormatError(f"found {len(names)} columns; wanted at most {MOST_FIELDS}", path=path, line=1)
    at = which(names, path)
    row = Row(len(names), *at, separator, UNITS[time_unit], integers=False)
    how = {"row": row, "start": start, "sensor": sensor or (SIDE, SIDE), "strict": strict}
    return decode(data, path=path, backend=backend, **how)


def _first_row(data: np.ndarray, path) -> tuple[list[str], str, int, int]:
    """Its words, their separator, where it begins and what follows it. A header may be a comment."""
    text = data[:HEADER_BYTES].tobytes()
    at = 0
    for line in text.split(b"\n"):
        bare = line.strip()
        end = at + len(line) + 1
        words = bare.removeprefix(b"#").strip()
        if words and (not bare.startswith(b"#") or _names_events(words)):
            separator = next((s for s in ",;" if s.encode() in words), " ")
            fields = words.split(None if separator == " " else separator.encode())
            return [f.strip().decode("utf-8", "replace").lower() for f in fields], separator, at, end
        at = end
    raise DataFormatError("found no row; wanted at least a header", path=path, offset=0)


def _names_events(words: bytes) -> bool:
    found = {word.decode("utf-8", "replace").lower() for word in re.split(rb"[,;\s]+", words)}
    return all(found & set(names) for names in NAMES.values())


def _reference_decode(data, start, height, width, fields, separator, time_unit, integers):
    """As `_C.decode_text`, in Python."""
    row = Row(*fields, separator, time_unit, integers)
    rows, offsets, polarities, at = [], [], 0, start
    for line in data[start:].tobytes().split(b"\n"):
        wrong, numbers = _read_row(line, at, row)
        if wrong:
            return wrong, polarities
        if numbers:
            t, x, y, p = (numbers[k] for k in (row.t, row.x, row.y, row.p))
            checks = (
                ("polarity", not -1 <= p <= 1, p),
                ("row", not 0 <= y < height, y),
                ("column", not 0 <= x < width, x),
                ("time_sign", t < 0, t),
            )
            for problem, bad, found in checks:
                if bad:
                    return fault(problem, at, found), polarities
            polarities |= 1 << (p + 1)
            rows.append((t, x, y, int(p > 0)))
            offsets.append(at)
        at += len(line) + 1
    return in_columns(*(np.array(rows, np.int64).reshape(-1, 4).T), offsets), polarities


def _read_row(line: bytes, at: int, row: Row) -> tuple[Decoded | None, list[int]]:
    """The numbers of the row at byte `at`, none of a blank one; or a fault."""
    text = line.partition(b"#")[0].strip(b" \t\r")
    if not text:
        return None, []
    words = re.split(rb"[ \t\r]+", text) if row.separator == " " else text.split(row.separator.encode())
    numbers = []
    for k, word in enumerate(words):
        if k == row.fields:
            return fault("fields", at, k + 1), []
        time = k == row.t
        value = _number(word.strip(b" \t\r"), row.time_unit if time else 1, time, row.integers)
        if value is None:
            return fault("field", at, k + 1), []
        numbers.append(value)
    return (None, numbers) if len(numbers) == row.fields else (fault("fields", at, len(numbers)), [])


def _number(word: bytes, unit: int, rounds: bool, integers: bool) -> int | None:
    """A number times `unit`, or None where it is none, does not fit, or has a fraction and neither rounds."""
    if INTEGER.fullmatch(word):
        value = int(word) * unit
        return value if len(word.lstrip(b"+-")) <= 18 and abs(value) < 1 << 63 else None
    if integers or not REAL.fullmatch(word):
        return None
    value = float(word) * unit
    return round(value) if abs(value) < 1 << 53 and (rounds or value == round(value)) else None
