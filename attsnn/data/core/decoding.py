"""What the decoders of recordings share: what can be wrong with a file, and events out of the order of time.

A decoder, `_C.decode_*` or its NumPy reference, returns a `Decoded`: its fault is a number of `PROBLEMS`, the
offset of the byte, and the number that was found there.
"""

import os
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from attsnn.data.core.events import COLUMNS, Events
from attsnn.data.errors import DataFormatError

DISORDER = 10_000  # of so many events, one may be out of the order of time
RESTARTS = 16  # how often a clock may start again
WRAP = 1 << 32  # of a clock of 32 bits

# In the order of csrc/cpu/events.h; {} is the number that was found.
PROBLEMS = {
    "none": "",
    "header_cut": "found {} bytes where a packet's header of 28 begins; the file is cut short",
    "event_size": "found packets of events of {} bytes; wanted a positive event size",
    "number": "found {} events in a packet; wanted a number that is not negative",
    "capacity": "found a packet with room for {} events, fewer than it holds; wanted capacity >= number of "
    "events",
    "polarity_size": "found polarity events of {} bytes; wanted 8",
    "time_offset": "found the time of a polarity event at its byte {}; wanted 4",
    "overflow": "found a time overflow of {}; wanted a number that is not negative",
    "payload_cut": "found a packet that claims {} bytes of events, more than the file has left; it is cut "
    "short or damaged",
    "time_sign": "found an event at time {}; wanted a time that is not negative",
    "column": "found an event at x = {}; wanted a column of the sensor",
    "row": "found an event at y = {}; wanted a row of the sensor",
    "record_cut": "found {} bytes after the last whole event; the file is cut short, or is of another format",
    "address": "found the address {}; wanted 16 bits, those of a DVS128 sensor",
    "fields": "found a row of {} numbers; wanted another number of them",
    "field": "cannot read number {} of the row",
    "polarity": "found a polarity of {}; wanted 0 or 1, or -1 or 1",
}
NUMBERS = {name: number for number, name in enumerate(PROBLEMS)}


class Decoded(NamedTuple):
    """What a decoder found: events written to `columns`, how many are earlier than the one before, and the
    byte of the first of these.
    """

    fault: tuple[int, int, int]
    columns: Sequence[np.ndarray] | None
    number: int
    descents: int
    first_descent: int


class Recording(NamedTuple):
    """The events of one file in order of time, how many had to be sorted into place, and how often the clock
    started again.
    """

    events: Events
    disordered: int
    restarts: int = 0


def fault(name: str, offset: int, found: int) -> Decoded:
    """What a reference decoder returns for a file that it cannot use."""
    return Decoded((NUMBERS[name], offset, found), None, 0, 0, -1)


def in_columns(t, x, y, p, offsets) -> Decoded:
    """What a reference decoder returns for events, each found at its offset."""
    columns = [np.asarray(c).astype(dtype) for c, dtype in zip((t, x, y, p), COLUMNS.values(), strict=True)]
    descents = np.flatnonzero(np.diff(columns[0], prepend=0) < 0)
    first = int(offsets[descents[0]]) if len(descents) else -1
    return Decoded((0, 0, 0), columns, len(columns[0]), len(descents), first)


def recording(
    decoded: Decoded,
    path: str | os.PathLike,
    *,
    strict: bool = False,
    restarts: bool = False,
    data: np.ndarray | None = None,
) -> Recording:
    """The events of a decoder in order of time, or DataFormatError with `path` and the offset of the byte.

    Where time decreases, up to one event in 10,000 is sorted into place (a stable sort). With `restarts` a
    clock may also start again, up to 16 times: what follows is moved behind what came before, and the order
    stays. More, or any with `strict`, is an error. With `data`, the bytes of a text, errors name the line.
    """
    (problem, offset, found), columns, number, descents, first_descent = decoded
    if problem:
        sentence = list(PROBLEMS.values())[problem].format(found)
        raise DataFormatError(sentence, path=path, offset=offset, line=_line(data, offset))
    events = Events(*columns)[:number]
    if not descents:
        return Recording(events, 0)
    # Each event that is taken out removes at most two descents, so many descents need no closer look.
    disordered = _disorder(events.t) if descents <= 2 * (number // DISORDER) else (descents + 1) // 2
    if not strict and disordered <= number // DISORDER:
        order = np.argsort(events.t, kind="stable")
        return Recording(Events(*(getattr(events, name)[order] for name in COLUMNS)), disordered)
    if not strict and restarts and descents <= RESTARTS:
        return Recording(Events(_restarted(events.t), events.x, events.y, events.p), 0, descents)
    few = "none (strict)" if strict else f"at most one in {DISORDER:,}"
    raise DataFormatError(
        f"found time decreasing, {disordered:,} or more of {number:,} events out of order; wanted {few}",
        path=path,
        offset=first_descent,
        line=_line(data, first_descent),
    )


def _line(data: np.ndarray | None, offset: int) -> int | None:
    return None if data is None else int(np.count_nonzero(data[:offset] == ord("\n"))) + 1


def _restarted(t: np.ndarray) -> np.ndarray:
    """Times after each restart go on from the last one before it, as in dat2mat; a clock of 32 bits wraps."""
    steps = np.diff(t, prepend=0)
    again = np.flatnonzero(steps < 0)
    steps[again] = np.where(steps[again] < -WRAP // 2, steps[again] + WRAP, t[again])
    return np.cumsum(steps)


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
