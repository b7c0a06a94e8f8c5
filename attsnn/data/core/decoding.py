"""What the decoders of recordings share: what can be wrong with a file, and events out of time order.

A decoder, `_C.decode_*` or its NumPy reference, returns a `Decoded`. The fault in it is the number of an
entry of `PROBLEMS`, the offset of the byte, and the number that was found there.
"""

import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from attsnn.data.core.events import COLUMNS, Events
from attsnn.data.errors import DataFormatError

DISORDER = 10_000  # one event in this many may be out of time order
RESTARTS = 16  # the most times that a clock may start again
FALL_US = 10_000  # the least by which time falls back then
FEW = 4  # events on either side that tell a restart from a stray event
WRAP = 1 << 32  # where a 32-bit clock wraps

# In the order of csrc/cpu/events.h; the first {} is the number found, the second a hint.
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
    "column": "found an event at x = {}; wanted a column of the sensor{}",
    "row": "found an event at y = {}; wanted a row of the sensor{}",
    "record_cut": "found {} bytes after the last whole event; the file is cut short, or is of another format",
    "address": "found the address {}; wanted 16 bits, those of a DVS128 sensor",
    "fields": "found a row of {} numbers; wanted {}",
    "field": "cannot read number {} of the row as an integer{}",
    "polarity": "found a polarity of {}; wanted 0 or 1, or -1 or 1{}",
}
NUMBERS = {name: number for number, name in enumerate(PROBLEMS)}


class Decoded(NamedTuple):
    """What a decoder found: a fault or none, `number` events in `columns`, how many are earlier than the
    event before them, and the byte offset of the first of these.
    """

    fault: tuple[int, int, int]
    columns: Sequence[np.ndarray] | None
    number: int
    descents: int
    first_descent: int


class Recording(NamedTuple):
    """The events of one file.

    Args:
        events: the events, in time order.
        disordered: how many of them had to be sorted into place.
        restarts: how often the clock started again.
    """

    events: Events
    disordered: int
    restarts: int = 0


def sides(sensor: tuple[int, int]) -> dict[str, str]:
    """The hints for a sensor of (height, width)."""
    height, width = sensor
    return {"column": f", 0 to {width - 1}", "row": f", 0 to {height - 1}"}


def fault(name: str, offset: int, found: int) -> Decoded:
    """What a reference decoder returns for a file that it cannot use."""
    return Decoded((NUMBERS[name], offset, found), None, 0, 0, -1)


def in_columns(
    t: ArrayLike, x: ArrayLike, y: ArrayLike, p: ArrayLike, offsets: Sequence[int] | np.ndarray
) -> Decoded:
    """What a reference decoder returns for events; `offsets` has the byte offset of each."""
    columns = [np.asarray(c).astype(dtype) for c, dtype in zip((t, x, y, p), COLUMNS.values(), strict=True)]
    descents = np.flatnonzero(np.diff(columns[0], prepend=0) < 0)
    first = int(offsets[descents[0]]) if len(descents) else -1
    return Decoded((0, 0, 0), columns, len(columns[0]), len(descents), first)


def recording(
    decoded: Decoded,
    path: str | os.PathLike[str],
    *,
    strict: bool = False,
    restarts: bool = False,
    data: np.ndarray | None = None,
    hints: Mapping[str, str] | None = None,
    by_event: bool = False,
) -> Recording:
    """The events of a decoder in time order. Raises DataFormatError with `path` and the offset of the byte.

    With `restarts`, a clock may start again up to 16 times: if time falls back to where it began and stays
    there, the events that follow are taken as a continuation, and the order stays. If time decreases
    otherwise, up to one event in 10,000 is sorted into place (a stable sort). More, or any with `strict`, is
    an error. With `data`, the bytes of a text, errors name the line. With `by_event`, offsets are numbers of
    events.
    """
    (problem, offset, found), columns, number, descents, first_descent = decoded
    if problem:
        name = list(PROBLEMS)[problem]
        sentence = PROBLEMS[name].format(found, (hints or {}).get(name, ""))
        raise DataFormatError(sentence, path=path, offset=offset, line=_line(data, offset))
    assert columns is not None  # there is no fault
    events, began = Events(*columns)[:number], 0
    if descents and restarts and not strict:
        t, began = _restarted(events.t)
        events = Events(t, events.x, events.y, events.p)
        descents = int(np.count_nonzero(np.diff(t) < 0))
    if not descents:
        return Recording(events, 0, began)
    # Taking out an event removes at most two descents, so many descents need no closer look.
    disordered = _disorder(events.t) if descents <= 2 * (number // DISORDER) else (descents + 1) // 2
    if not strict and disordered <= number // DISORDER:
        order = np.argsort(events.t, kind="stable")
        return Recording(Events(*(getattr(events, name)[order] for name in COLUMNS)), disordered, began)
    few = "none (strict)" if strict else f"at most one in {DISORDER:,}"
    place = {"offset": first_descent, "line": _line(data, first_descent)}
    raise DataFormatError(
        f"found time decreasing, {disordered:,} or more of {number:,} events out of order"
        f"{f', the first is event {first_descent}' if by_event else ''}; wanted {few}. Is another column "
        "the time?",
        path=path,
        **({} if by_event else place),
    )


def _line(data: np.ndarray | None, offset: int) -> int | None:
    return None if data is None else int(np.count_nonzero(data[:offset] == ord("\n"))) + 1


def _restarted(t: np.ndarray) -> tuple[np.ndarray, int]:
    """Times that continue where a clock started again (as in dat2mat) or wrapped at 32 bits, and
    how often that was.

    A single early or late event among others that continue is no restart.
    """
    falls = np.flatnonzero(np.diff(t) < 0) + 1
    if len(falls) > DISORDER:
        return t, 0
    again, last = [], 0
    for at in falls.tolist():
        # One of the events before may be late: the second latest time counts.
        before, after = sorted(t[max(at - FEW, last) : at].tolist())[-2:], t[at : at + FEW].tolist()
        fall = before[0] - max(after)
        if fall > WRAP // 2 or (fall >= FALL_US and after[0] <= t[last] + FALL_US):
            again.append(at)
            last = at
    if not again or len(again) > RESTARTS:
        return t, 0
    steps = np.diff(t, prepend=0)
    steps[again] = np.where(steps[again] < -WRAP // 2, steps[again] + WRAP, t[again])
    return np.cumsum(steps), len(again)


def _disorder(t: np.ndarray) -> int:
    """The fewest events that must be taken out for the rest to be in time order.

    This is n minus the longest non-decreasing subsequence, found by patience sorting: one early or one late
    event counts once. Events that nothing earlier exceeds and nothing later undercuts are always in that
    subsequence.
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
