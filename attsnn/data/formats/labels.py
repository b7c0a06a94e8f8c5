"""The text files that come with DVS128 recordings: labelled intervals, trial lists, class names."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from attsnn.data.errors import DataFormatError, warn

COLUMNS = ("class", "startTime_usec", "endTime_usec")
NUMBER = re.compile(r"[+-]?[0-9]{1,18}")


class Interval(NamedTuple):
    """The part start <= t < end of a recording, in microseconds; labels count from 0."""

    label: int
    start: int
    end: int


def read_intervals(text: bytes, path: str, classes: int) -> list[Interval]:
    """The rows of a label CSV, whose columns are found by its header and whose classes count from 1. Overlaps
    only cause a warning.
    """
    rows = _rows(text, path)
    line, offset, header = next(rows, (1, 0, []))
    if not set(COLUMNS) <= set(header):
        raise DataFormatError(
            f"found columns {header}; wanted {list(COLUMNS)}", path=path, offset=offset, line=line
        )
    intervals: list[Interval] = []
    for line, offset, row in rows:
        where: dict[str, Any] = {"path": path, "offset": offset, "line": line}
        if len(row) != len(header):
            raise DataFormatError(f"found {len(row)} fields; wanted {len(header)}", **where)
        fields = dict(zip(header, row, strict=True))
        for name in COLUMNS:
            if not NUMBER.fullmatch(fields[name]):
                raise DataFormatError(f"found {name} = {fields[name][:40]!r}; wanted an integer", **where)
        number, start, end = (int(fields[name]) for name in COLUMNS)
        if not 1 <= number <= classes:
            raise DataFormatError(f"found class {number}; wanted 1 to {classes}", **where)
        if end <= start:
            raise DataFormatError(f"found an end of {end} at or before the start, {start}", **where)
        if intervals and start < intervals[-1].end:
            warn(f"{path}:{line}: starts at {start}, before the row above ends")
        intervals.append(Interval(number - 1, start, end))
    if not intervals:
        raise DataFormatError(
            "found no rows; wanted at least one labelled interval", path=path, offset=len(text), line=1
        )
    return intervals


def read_trials(text: bytes, path: str, known: set[str]) -> list[str]:
    """The recordings that a trials_to_*.txt names, without ".aedat"; each must be in `known`."""
    names = []
    for line, offset, row in _rows(text, path):
        name = row[0].removesuffix(".aedat")
        if len(row) != 1 or name not in known or name in names:
            found = ",".join(row)[:80]
            raise DataFormatError(
                f"found {found!r}; wanted the name of a recording that is there, once",
                path=path,
                offset=offset,
                line=line,
            )
        names.append(name)
    return names


def read_classes(text: bytes, path: str) -> tuple[str, ...]:
    """Class names in order, from a gesture_mapping.csv: a header, then rows of a name and a number from 1."""
    names: dict[int, str] = {}
    for line, offset, row in list(_rows(text, path))[1:]:
        numbers = [field for field in row if NUMBER.fullmatch(field)]
        words = [field for field in row if not NUMBER.fullmatch(field) and field]
        if len(row) != 2 or len(numbers) != 1 or len(words) != 1 or int(numbers[0]) in names:
            raise DataFormatError(
                f"found {row}; wanted a name and a new number", path=path, offset=offset, line=line
            )
        names[int(numbers[0])] = words[0]
    if sorted(names) != list(range(1, len(names) + 1)) or not names:
        raise DataFormatError(
            f"found classes {sorted(names)[:20]}; wanted 1, 2, 3, ...", path=path, offset=0, line=1
        )
    return tuple(names[number] for number in sorted(names))


def _rows(text: bytes, path: str) -> Iterator[tuple[int, int, list[str]]]:
    """(line from 1, byte offset, stripped fields) of each line that is not blank."""
    offset = 0
    for line, raw in enumerate(text.split(b"\n"), start=1):
        try:
            content = raw.decode("utf-8-sig" if line == 1 else "utf-8").strip()
        except UnicodeDecodeError:
            raise DataFormatError(
                "found bytes that are not UTF-8", path=path, offset=offset, line=line
            ) from None
        if content:
            yield line, offset, [field.strip() for field in content.split(",")]
        offset += len(raw) + 1
