"""Writers of the published formats, byte for byte as their readers meet them; tests damage such files.

Recordings are written from `Events`, images from arrays.
"""

import gzip
import io
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from attsnn.data.core.events import COLUMNS, Events
from attsnn.data.formats.aedat3 import write as write_aedat3  # noqa: F401  one of these
from attsnn.data.formats.atis import OVERFLOW_ROW, OVERFLOW_TIME

_CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}  # of IDX


def write_aedat2(path: str | os.PathLike[str], events: Events, *, text: bytes = b"# raw data\r\n") -> None:
    """Writes AEDAT 2.0 of a DVS128: x, y, p are the bits of the address; `text` follows the magic."""
    x, y, p = (column.astype(np.int64) for column in (events.x, events.y, events.p))
    records = np.stack([p | x << 1 | y << 8, events.t], axis=1).astype(">u4")
    Path(path).write_bytes(b"#!AER-DAT2.0\r\n" + text + records.tobytes())


def write_atis(path: str | os.PathLike[str], events: Events) -> None:
    """Writes ATIS, 40 bits per event. Records of row 240 precede a time that does not fit into 23 bits."""
    overflows = np.maximum.accumulate(-(-np.maximum(events.t - (1 << 23) + 1, 0) // OVERFLOW_TIME))
    t = events.t - overflows * OVERFLOW_TIME
    fields = [events.x, events.y, events.p.astype(np.int64) << 7 | t >> 16, t >> 8 & 255, t & 255]
    records = np.stack(fields, axis=1).astype(np.uint8)
    before = np.repeat(np.arange(len(t)), np.diff(overflows, prepend=0))
    Path(path).write_bytes(np.insert(records, before, (0, OVERFLOW_ROW, 0, 0, 0), axis=0).tobytes())


def write_text(
    path: str | os.PathLike[str],
    events: Events,
    *,
    columns: str = "txyp",
    separator: str = " ",
    header: str = "",
) -> None:
    """Writes one row per event, with its columns in this order; `header` is the first line."""
    rows = np.stack([getattr(events, name).astype(np.int64) for name in columns], axis=1)
    row = separator.join(["%d"] * len(columns)) + "\n"
    text = row * len(events) % tuple(rows.ravel().tolist())  # as np.savetxt does, but fast
    Path(path).write_text((f"{header}\n" if header else "") + text)


def write_arrays(path: str | os.PathLike[str], events: Events) -> None:
    """Writes .npz with arrays t, x, y, p, like SpikingJelly's `events_np`; or .npy, columns in this order."""
    columns = {name: getattr(events, name) for name in COLUMNS}
    if Path(path).suffix == ".npz":
        np.savez(path, **columns)
    else:
        np.save(path, np.stack([column.astype(np.int64) for column in columns.values()], axis=1))


def write_mat(
    path: str | os.PathLike[str], events: Events, *, variable: str = "out", columns: int = 6
) -> None:
    """Writes a MATLAB matrix of 4 or 6 columns as dat2mat.m makes it from a
    DVS128's addresses. Needs scipy.
    """
    from scipy.io import savemat

    x, y, p = (column.astype(np.float64) for column in (events.x, events.y, events.p))
    t = (events.t - events.t[:1].sum()).astype(np.float64)
    unused = [np.full(len(t), -1.0)] * (columns - 4)
    savemat(path, {variable: np.stack([t, *unused, 127 - x, y, 1 - 2 * p], axis=1)})


def write_idx(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Writes IDX, compressed if `path` ends in .gz."""
    kind = array.dtype.newbyteorder(">")
    head = struct.pack(">HBB", 0, _CODES[array.dtype.str[1:]], array.ndim)
    data = head + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(kind).tobytes()
    Path(path).write_bytes(gzip.compress(data, mtime=0) if str(path).endswith(".gz") else data)


def write_cifar_binary(
    path: str | os.PathLike[str], images: np.ndarray, labels: np.ndarray, classes: int
) -> None:
    """Writes records of CIFAR-10 or CIFAR-100 from uint8 images `[N, 32, 32, 3]`; superclasses are 0."""
    before = np.stack([np.zeros_like(labels), labels], axis=1)[:, 2 - (1 if classes == 10 else 2) :]
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    Path(path).write_bytes(np.concatenate([before, rows], axis=1).astype(np.uint8).tobytes())


def write_cifar_pickled(
    path: str | os.PathLike[str], images: np.ndarray, labels: np.ndarray, classes: int
) -> None:
    """The same as Python 2 pickled it: byte strings, and NumPy's module under its old name."""
    rows = np.ascontiguousarray(images.transpose(0, 3, 1, 2).reshape(len(images), -1))
    content = {
        b"batch_label": b"x",
        b"labels" if classes == 10 else b"fine_labels": labels.tolist(),
        b"data": rows,
        b"filenames": [b"f.png"] * len(images),
    }
    file = io.BytesIO()
    _Python2(file, 2).dump(content)
    Path(path).write_bytes(file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))


class _Python2(pickle._Pickler):
    dispatch = dict(pickle._Pickler.dispatch)
    write: Callable[[bytes], object]  # it has these two; typeshed does not know them
    memoize: Callable[[object], None]

    def _save_bytes(self, value: bytes) -> None:
        short = len(value) < 256
        size = b"U" + bytes([len(value)]) if short else b"T" + struct.pack("<i", len(value))
        self.write(size + value)
        self.memoize(value)

    dispatch[bytes] = _save_bytes  # type: ignore[assignment]  # of a pickler, not of an Unpickler
