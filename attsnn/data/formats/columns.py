"""Recordings as NumPy arrays, .npy or .npz: t, x, y, p (SpikingJelly's `events_np`), or one with fields.

Nothing is unpickled, and every claim of a header is checked against the bytes that are there before memory is
taken.
"""

import io
import math
import os
import zipfile
from collections.abc import Sequence
from typing import Literal

import numpy as np

from attsnn.data.core.decoding import Recording, in_columns, recording
from attsnn.data.core.framing import SIDE
from attsnn.data.core.places import UNSOUND_ZIP
from attsnn.data.errors import DataFormatError

TimeUnit = Literal["us", "ms", "s"]
UNITS = {"us": 1, "ms": 1_000, "s": 1_000_000}  # microseconds
NAMES = {  # how people call the columns, in lower case
    "t": ("t", "ts", "time", "times", "timestamp", "timestamps"),
    "x": ("x", "xs", "col", "column"),
    "y": ("y", "ys", "row"),
    "p": ("p", "ps", "pol", "polarity", "polarities", "on"),
}
MOST_BYTES = 1 << 32  # of an array
DEFLATE = 1_032  # no byte of a zip file becomes more
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def which(names: Sequence[str], path: str | os.PathLike) -> list[int]:
    """Where t, x, y and p are among the names of columns."""
    lower = [name.strip().lower() for name in names]
    places = [[k for k, name in enumerate(lower) if name in known] for known in NAMES.values()]
    for column, found in zip(NAMES, places, strict=True):
        if len(found) != 1:
            listed = ", ".join(names[:12])
            raise DataFormatError(
                f"found {len(found) or 'no'} columns for {column} among {listed}; wanted one of "
                f"{', '.join(NAMES[column])}",
                path=path,
            )
    return [found[0] for found in places]


def decode(
    data: np.ndarray,
    *,
    path: str | os.PathLike = "<bytes>",
    time_unit: TimeUnit = "us",
    sensor: tuple[int, int] | None = None,
    strict: bool = False,
) -> Recording:
    """The events in the bytes of an .npz or .npy file (uint8 array), in order of time.

    Four arrays, or one with fields, of the names in `NAMES`; or one `[N, 4]` with the columns t, x, y, p.
    Polarities are 0 and 1, or -1 and 1. `sensor=None` takes any place up to 32,767. Raises DataFormatError.
    """
    arrays = _arrays(data, path)
    return from_columns(*_columns(arrays, path), path=path, time_unit=time_unit, sensor=sensor, strict=strict)


def from_columns(
    t,
    x,
    y,
    p,
    *,
    path: str | os.PathLike,
    time_unit: TimeUnit = "us",
    sensor: tuple[int, int] | None = None,
    strict: bool = False,
) -> Recording:
    """The events of four arrays of any type of number; else as `decode`."""
    columns = [np.asarray(column) for column in (t, x, y, p)]
    if any(column.shape != (columns[0].size,) or column.dtype.kind not in "biuf" for column in columns):
        found = ", ".join(f"{column.dtype}{list(column.shape)}" for column in columns)
        raise DataFormatError(f"found columns {found}; wanted four of numbers, of one length", path=path)
    t, x, y, p = columns
    unit, (height, width) = UNITS[time_unit], sensor or (SIDE, SIDE)
    if unit != 1 or t.dtype.kind == "f":
        t = np.rint(t.astype(np.float64) * unit)
    for name, column, limit in (("t", t, 1 << 53), ("x", x, width), ("y", y, height)):
        _check(name, column, (column >= 0) & (column < limit) & (column == np.floor(column)), limit, path)
    _check("p", p, (p == 0) | (np.abs(p * 1) == 1), 2, path)
    if (p < 0).any() and (p == 0).any():
        raise DataFormatError("found polarities of 0 and of -1; wanted 0 and 1, or -1 and 1", path=path)
    decoded = in_columns(t, x, y, p > 0, np.arange(len(t)))
    return recording(decoded, path, strict=strict, restarts=True)


def _check(name: str, column: np.ndarray, sound: np.ndarray, limit: int, path) -> None:
    if not sound.all():
        event = int(sound.argmin())
        wanted = f"an integer from 0 to {limit - 1}{', or -1' if name == 'p' else ''}"
        raise DataFormatError(f"event {event} has {name} = {column[event]}; wanted {wanted}", path=path)


def _columns(arrays: dict[str, np.ndarray], path) -> list[np.ndarray]:
    if len(arrays) == 1:
        (array,) = arrays.values()
        if array.dtype.names:
            return [array[array.dtype.names[k]].reshape(-1) for k in which(array.dtype.names, path)]
        if array.ndim == 2 and array.shape[1] == 4:
            return list(array.T)
        raise DataFormatError(
            f"found one array of {array.dtype}{list(array.shape)}; wanted [N, 4] with columns t, x, y, p, or "
            "fields of these names",
            path=path,
        )
    names = list(arrays)
    return [arrays[names[k]].reshape(-1) for k in which(names, path)]


def _arrays(data: np.ndarray, path) -> dict[str, np.ndarray]:
    data = np.ascontiguousarray(data, np.uint8)
    if bytes(data[:2]) != b"PK":
        return {"": _array(io.BytesIO(memoryview(data)), len(data), path)}
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(memoryview(data))) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                known = any(name.lower() in names for names in NAMES.values())
                if not known and len(archive.infolist()) > 1:
                    continue
                if member.file_size > max(member.compress_size, 1) * DEFLATE:
                    raise DataFormatError(f"{member.filename} claims {member.file_size} bytes", path=path)
                with archive.open(member) as file:
                    arrays[name] = _array(file, member.file_size, path)
            if not arrays:
                names = [member.filename for member in archive.infolist()][:8]
                raise DataFormatError(f"found arrays {names}; wanted t, x, y, p", path=path)
    except DataFormatError:
        raise
    except UNSOUND_ZIP as error:
        raise DataFormatError(f"not a sound .npz ({error})", path=path) from None
    return arrays


def _array(file, size: int, path) -> np.ndarray:
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
    except DataFormatError:
        raise
    except Exception as error:  # NumPy parses a header as Python would, and says what that says
        raise DataFormatError(f"not a sound .npy ({error})", path=path) from None
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
