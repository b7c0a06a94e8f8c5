"""Recordings as NumPy arrays, .npy or .npz: t, x, y, p (SpikingJelly's `events_np`), or one with fields.

Nothing is unpickled, and every claim of a header is checked against the bytes that are there before memory is
taken.
"""

import io
import math
import os
import re
import zipfile
from collections.abc import Sequence
from typing import IO, Literal

import numpy as np
from numpy.typing import ArrayLike

from attsnn.data.core.decoding import Recording, in_columns, recording
from attsnn.data.core.framing import SIDE
from attsnn.data.core.places import UNSOUND_ZIP
from attsnn.data.errors import DataFormatError

TimeUnit = Literal["us", "ms", "s"]
UNITS = {"us": 1, "ms": 1_000, "s": 1_000_000}  # microseconds
NAMES = {  # the usual names of the columns, in lower case
    "t": ("t", "ts", "time", "times", "timestamp", "timestamps"),
    "x": ("x", "xs", "col", "column"),
    "y": ("y", "ys", "row"),
    "p": ("p", "ps", "pol", "polarity", "polarities", "on"),
}
ALSO = {"µs": "us", "μs": "us", "usec": "us", "msec": "ms", "sec": "s", "seconds": "s"}
SPELLING = re.compile(rf"([a-z]+?)(?:[ _]*[\[(]?({'|'.join([*UNITS, *ALSO])})[\])]?)?")
MOST_BYTES = 1 << 32  # of an array
SMALL_BYTES, DEFLATE = 1 << 26, 200  # a larger array is at most that many times its packed size
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def unit_of(time_unit: str) -> int:
    """The microseconds of a unit. Raises ValueError for another unit."""
    if time_unit not in UNITS:
        raise ValueError(f"time_unit must be one of {', '.join(UNITS)}, got {time_unit!r}")
    return UNITS[time_unit]


def stands_for(name: str, column: str) -> bool:
    """Whether `name` is a usual name for t, x, y or p. A time may state its unit, as in `t_us` or `t [s]`."""
    match = SPELLING.fullmatch(name.strip().lower())
    return match is not None and match[1] in NAMES[column] and (match[2] is None or column == "t")


def which(names: Sequence[str], path: str | os.PathLike[str], time_unit: TimeUnit | None = None) -> list[int]:
    """The places of t, x, y, p among column names. Raises DataFormatError, also for a
    time in another unit.
    """
    places = [[k for k, name in enumerate(names) if stands_for(name, column)] for column in NAMES]
    for column, found in zip(NAMES, places, strict=True):
        if len(found) != 1:
            listed = ", ".join(names[:12])
            raise DataFormatError(
                f"found {len(found) or 'no'} columns for {column} among {listed}; wanted one of "
                f"{', '.join(NAMES[column])}",
                path=path,
            )
    match = SPELLING.fullmatch(names[places[0][0]].strip().lower())
    assert match is not None  # it stands for t
    unit = ALSO.get(match[2], match[2])
    if time_unit is not None and unit not in (None, time_unit):
        raise DataFormatError(
            f"column {names[places[0][0]]} is not in {time_unit}: --time-unit {unit}", path=path
        )
    return [found[0] for found in places]


def decode(
    data: np.ndarray,
    *,
    path: str | os.PathLike[str] = "<bytes>",
    columns: Sequence[str] | None = None,
    time_unit: TimeUnit = "us",
    sensor: tuple[int, int] | None = None,
    strict: bool = False,
) -> Recording:
    """The events in the bytes of an .npz or .npy file (uint8 array), in time order.

    The file holds four arrays or one with fields, with the names in `NAMES`; or one array `[N, 4]` with the
    columns t, x, y, p, or `[N, ...]` with those that `columns` names. Polarities are 0 and 1, or -1 and 1.
    `sensor=None` accepts any position up to 32,767. Raises DataFormatError, or ValueError for another
    `time_unit`.
    """
    found = _columns(_arrays(data, path), columns or "txyp", path, time_unit)
    return from_columns(*found, path=path, time_unit=time_unit, sensor=sensor, strict=strict)


def from_columns(
    t: ArrayLike,
    x: ArrayLike,
    y: ArrayLike,
    p: ArrayLike,
    *,
    path: str | os.PathLike[str],
    time_unit: TimeUnit = "us",
    sensor: tuple[int, int] | None = None,
    strict: bool = False,
) -> Recording:
    """The events of four arrays of any numeric type; otherwise as `decode`."""
    columns = [np.asarray(column) for column in (t, x, y, p)]
    if any(column.shape != (columns[0].size,) or column.dtype.kind not in "biuf" for column in columns):
        found = ", ".join(f"{column.dtype}{list(column.shape)}" for column in columns)
        raise DataFormatError(f"found columns {found}; wanted four of numbers, of one length", path=path)
    t, x, y, p = columns
    unit, (height, width) = unit_of(time_unit), sensor or (SIDE, SIDE)
    if unit == 1 and t.dtype.kind == "f" and (t[np.isfinite(t)] % 1 != 0).any():
        raise DataFormatError("found times with fractions; they are in s or ms: --time-unit", path=path)
    if unit != 1:
        t = np.rint(t.astype(np.float64) * unit)
    for name, column, limit in (("t", t, 1 << 53), ("x", x, width), ("y", y, height)):
        _check(name, column, (column >= 0) & (column < limit) & (column == np.floor(column)), limit, path)
    _check("p", p, (p == 0) | (np.abs(p * 1) == 1), 2, path)
    if (p < 0).any() and (p == 0).any():
        raise DataFormatError("found polarities of 0 and of -1; wanted 0 and 1, or -1 and 1", path=path)
    decoded = in_columns(t, x, y, p > 0, np.arange(len(t)))
    return recording(decoded, path, strict=strict, restarts=True, by_event=True)


def _check(
    name: str, column: np.ndarray, sound: np.ndarray, limit: int, path: str | os.PathLike[str]
) -> None:
    if not sound.all():
        event = int(sound.argmin())
        wanted = f"an integer from 0 to {limit - 1}{', or -1' if name == 'p' else ''}"
        raise DataFormatError(f"event {event} has {name} = {column[event]}; wanted {wanted}", path=path)


def _columns(
    arrays: dict[str, np.ndarray], names: Sequence[str], path: str | os.PathLike[str], time_unit: TimeUnit
) -> list[np.ndarray]:
    if all(any(stands_for(name, column) for name in arrays) for column in NAMES):
        given = list(arrays)
        return [arrays[given[k]].reshape(-1) for k in which(given, path, time_unit)]
    for array in arrays.values():
        if array.dtype.names and len(array.dtype.names) > 3:
            fields = array.dtype.names
            return [array[fields[k]].reshape(-1) for k in which(fields, path, time_unit)]
        if array.ndim == 2 and array.shape[1] == len(names) > 3:
            return [array[:, k] for k in which(names, path, time_unit)]
    found = ", ".join(f"{name} {array.dtype}{list(array.shape)}".strip() for name, array in arrays.items())
    frames = "; frames have lost their times: give the events" if "frames" in arrays else ""
    raise DataFormatError(
        f"found {found}; wanted arrays t, x, y, p, one with fields of these names, or one [N, {len(names)}] "
        f"with the columns {', '.join(names)}{frames}",
        path=path,
    )


def _arrays(data: np.ndarray, path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    data = np.ascontiguousarray(data, np.uint8)
    if bytes(data[:2]) != b"PK":
        return {"": _array(io.BytesIO(data.data), len(data), path)}
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data.data)) as archive:
            for member in archive.infolist():
                if member.file_size > max(member.compress_size * DEFLATE, SMALL_BYTES):
                    claim = f"{member.filename} claims {member.file_size} bytes in {member.compress_size}"
                    raise DataFormatError(claim, path=path)
                with archive.open(member) as file:
                    array = _array(file, member.file_size, path)
                    arrays[member.filename.removesuffix(".npy")] = array
    except DataFormatError:
        raise
    except UNSOUND_ZIP as error:
        raise DataFormatError(f"not a sound .npz ({error})", path=path) from None
    return arrays


def _array(file: IO[bytes], size: int, path: str | os.PathLike[str]) -> np.ndarray:
    """The array in an .npy file of `size` bytes."""
    try:
        version = np.lib.format.read_magic(file)
        if version not in HEADERS:
            raise ValueError(f"version {version}")
        shape, fortran, dtype = HEADERS[version](file)
        wanted = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or wanted > min(size, MOST_BYTES) or min(shape, default=0) < 0:
            raise ValueError(f"{dtype}{list(shape)} in {size} bytes")
        content = file.read(wanted)
        if len(content) != wanted:
            raise ValueError(f"cut short: {len(content)} bytes of {wanted}")
        return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
    except Exception as error:  # NumPy parses a header as Python, and raises what that raises
        raise DataFormatError(f"not a sound .npy ({error})", path=path) from None
