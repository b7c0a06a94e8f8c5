"""Recordings as text, one event per row: `t x y p` of DVS128 Gait, or any table with a header.

Rows are lines. Numbers are separated by blanks, commas, semicolons or tabs. What follows a "#" is a comment.
"""

import codecs
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from attsnn._extension import Backend, compiled, use_fused
from attsnn.data.core.decoding import Decoded, Recording, fault, in_columns, recording, sides
from attsnn.data.core.framing import SIDE
from attsnn.data.errors import DataFormatError
from attsnn.data.formats.columns import TimeUnit, stands_for, unit_of, which

HEADER_BYTES = 1 << 16
MOST_FIELDS = 16
MARK = codecs.BOM_UTF8  # as spreadsheets write it
TRUTHS = ("True", "true", "TRUE", "False", "false", "FALSE")
INTEGER = re.compile(rb"[+-]?[0-9]+")
REAL = re.compile(rb"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


class Row(NamedTuple):
    """The layout of the numbers in a row."""

    fields: int = 4
    t: int = 0
    x: int = 1
    y: int = 2
    p: int = 3
    separator: str = " "  # a blank: any run of blanks and tabs
    time_unit: int = 1  # microseconds
    integers: bool = True  # 1.5 and 1e3 are refused

    def layout(self) -> tuple[tuple[int, int, int, int, int], str, int, bool]:
        """The layout as `_C.decode_text` takes it."""
        return (self.fields, self.t, self.x, self.y, self.p), self.separator, self.time_unit, self.integers


def decode(
    data: np.ndarray,
    *,
    path: str | os.PathLike[str] = "<bytes>",
    row: Row | None = None,
    start: int = 0,
    sensor: tuple[int, int] = (128, 128),
    strict: bool = False,
    backend: Backend = "auto",
) -> Recording:
    """The events in the bytes of a text (uint8 array) from byte `start` on, in time order.

    `row` is the layout of the rows, by default integers `t x y p` with t in microseconds; `sensor` is
    (height, width). Polarities are 0 and 1, or -1 and 1. Raises DataFormatError with `path`, the line and the
    offset.
    """
    data, row = np.ascontiguousarray(data, dtype=np.uint8), row or Row()
    start = max(start, len(MARK) if data[: len(MARK)].tobytes() == MARK else 0)
    decoder = compiled().decode_text if use_fused(backend, "cpu") else _reference_decode
    height, width = sensor
    decoded, polarities = decoder(data, start, height, width, *row.layout())
    if polarities & 3 == 3:
        raise DataFormatError("found polarities of 0 and of -1; wanted 0 and 1, or -1 and 1", path=path)
    fraction = ""
    if not row.integers:
        fraction = " (times with fractions are in s or ms: --time-unit; --columns names the columns)"
    columns = "; --columns names them in their order" if not row.integers else ""
    hints = {"fields": str(row.fields), "field": fraction, "polarity": columns} | sides(sensor)
    return recording(Decoded(*decoded), path, strict=strict, restarts=True, data=data, hints=hints)


def decode_table(
    data: np.ndarray,
    *,
    path: str | os.PathLike[str] = "<bytes>",
    columns: Sequence[str] | None = None,
    time_unit: TimeUnit = "us",
    sensor: tuple[int, int] | None = None,
    strict: bool = False,
    backend: Backend = "auto",
) -> Recording:
    """The events of a .csv or .txt whose header or comment names its columns; `columns` names them instead.

    Without either, rows are t, x, y, p. The columns are found by the names in `columns.NAMES`; others are not
    read. `sensor=None` accepts any position up to 32,767. Raises ValueError for another `time_unit`.
    """
    data = np.ascontiguousarray(data, dtype=np.uint8)
    unit = unit_of(time_unit)
    names, separator, start = _head(data, path)
    names = tuple(columns) if columns else names or tuple("txyp")
    t, x, y, p = which(names, path, time_unit)
    if len(names) > MOST_FIELDS:
        raise DataFormatError(f"found {len(names)} columns; wanted at most {MOST_FIELDS}", path=path, line=1)
    row = Row(len(names), t, x, y, p, separator, unit, integers=False)
    sensor = sensor or (SIDE, SIDE)
    found = decode(data, path=path, row=row, start=start, sensor=sensor, strict=strict, backend=backend)
    if not len(found.events) and start < len(data) and b"#" in data[start:].tobytes():
        raise DataFormatError(
            'found rows that begin with "#" alone, which are comments', path=path, offset=start
        )
    return found


def _head(data: np.ndarray, path: str | os.PathLike[str]) -> tuple[tuple[str, ...], str, int]:
    """(Names in a header or none, separator, byte at which the rows begin.)"""
    text, at, comments = data[:HEADER_BYTES].tobytes(), 0, []
    if text.startswith(MARK):
        text, at = text[len(MARK) :], len(MARK)
    for line in text.split(b"\n"):
        bare, end = line.strip(), min(at + len(line) + 1, len(data))
        if bare.startswith(b"#"):
            comments.append(bare.lstrip(b"#").strip())
        elif bare:
            separator = next((s for s in ",;" if s.encode() in bare), " ")
            words = _words(bare, separator)
            numbers = sum(bool(REAL.fullmatch(word.encode())) for word in words)
            if numbers < min(3, len(words)):
                return tuple(words), separator, end
            return _named(comments, separator, len(words)), separator, at
        at = end
    if at < len(data):
        raise DataFormatError(
            f"found no row in the first {HEADER_BYTES:,} bytes; wanted a header or a row", path=path, offset=0
        )
    if names := _named(comments, " ", None):
        return names, " ", len(data)
    raise DataFormatError("found no row; wanted at least a header", path=path, offset=0)


def _named(comments: Sequence[bytes], separator: str, number: int | None) -> tuple[str, ...]:
    """The columns that a comment before the first row names; of several, the last
    that names `number` columns.

    The names may follow a word and a colon.
    """
    for comment in reversed(comments):
        for said in (comment, comment.rpartition(b":")[2]):
            for names in (_words(said, separator), _words(said.replace(b",", b" "), " ")):
                if number in (None, len(names)) and _names_events(names):
                    return tuple(names)
    return ()


def _words(line: bytes, separator: str) -> list[str]:
    if separator == " ":
        words = re.sub(rb"[ \t]+(?=[\[(])", b"_", line).split()  # a unit belongs to its column
    else:
        words = line.split(separator.encode())
    return [word.strip().strip(b"\"'").decode("utf-8", "replace") for word in words]


def _names_events(names: Sequence[str]) -> bool:
    return all(any(stands_for(name, column) for name in names) for column in "txyp")


def _reference_decode(
    data: np.ndarray,
    start: int,
    height: int,
    width: int,
    fields: tuple[int, int, int, int, int],
    separator: str,
    time_unit: int,
    integers: bool,
) -> tuple[Decoded, int]:
    """`_C.decode_text` in Python."""
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
    table = np.array(rows, np.int64).reshape(-1, 4)
    return in_columns(table[:, 0], table[:, 1], table[:, 2], table[:, 3], offsets), polarities


def _read_row(line: bytes, at: int, row: Row) -> tuple[Decoded | None, list[int]]:
    """The numbers of the row at byte `at` (none if it is blank), or a fault."""
    text = line.partition(b"#")[0].strip(b" \t\r")
    if not text:
        return None, []
    words = re.split(rb"[ \t\r]+", text) if row.separator == " " else text.split(row.separator.encode())
    numbers = []
    for k, word in enumerate(words):
        if k == row.fields:
            return fault("fields", at, k + 1), []
        time, bare = k == row.t, word.strip(b" \t\r")
        value = _number(bare, row.time_unit if time else 1, time and row.time_unit > 1, row.integers)
        if value is None and k == row.p and not row.integers and bare.decode("latin1") in TRUTHS:
            value = int(bare[:1] in b"tT")
        if value is None and k in (row.t, row.x, row.y, row.p):
            return fault("field", at, k + 1), []
        numbers.append(value or 0)
    return (None, numbers) if len(numbers) == row.fields else (fault("fields", at, len(numbers)), [])


def _number(word: bytes, unit: int, rounds: bool, integers: bool) -> int | None:
    """A number times `unit`. None if it is no number, does not fit, or has a fraction and neither rounds."""
    if INTEGER.fullmatch(word):
        value = int(word) * unit
        return value if len(word.lstrip(b"+-")) <= 18 and abs(value) < 1 << 63 else None
    if integers or not REAL.fullmatch(word):
        return None
    real = float(word) * unit
    if real == 0 and re.search(rb"[1-9]", re.split(rb"[eE]", word)[0]):
        return None  # too small for a float
    return round(real) if abs(real) < 1 << 53 and (rounds or real == round(real)) else None
