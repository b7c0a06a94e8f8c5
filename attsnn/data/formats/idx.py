"""IDX, the format of MNIST: two zero bytes, a type, the number of dimensions, their sizes, then the numbers.

Everything is big-endian, with sizes of 32 bits and rows last; a file may be compressed by gzip. Source: the
web page of MNIST.
"""

import gzip
import io
import math
import os
import struct
import zlib

import numpy as np

from attsnn.data.errors import DataFormatError

TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MOST_BYTES = 1 << 27
MOST_DIMENSIONS = 8


def decode(data: np.ndarray, *, path: str | os.PathLike[str] = "<bytes>") -> np.ndarray:
    """The array in the bytes of an IDX file (uint8 array).

    The header is compared with the bytes that are there before memory is taken. Raises DataFormatError with
    `path` and the offset of the byte.
    """
    data = np.ascontiguousarray(data, np.uint8)
    packed = bytes(data[:2]) == b"\x1f\x8b"
    file = io.BytesIO(data.data)
    try:
        return _read(gzip.GzipFile(fileobj=file) if packed else file, None if packed else len(data), path)
    except (EOFError, zlib.error, OSError) as error:
        raise DataFormatError(f"not sound gzip ({error})", path=path) from None


def _read(file: io.BufferedIOBase, size: int | None, path: str | os.PathLike[str]) -> np.ndarray:
    """`size` is the number of bytes in the file; None if it must be decompressed to be known."""
    head = file.read(4)
    kind, dimensions = (head[2], head[3]) if len(head) == 4 and head[:2] == b"\0\0" else (None, 0)
    if kind not in TYPES or not 1 <= dimensions <= MOST_DIMENSIONS:
        raise DataFormatError(f"found {head!r}; wanted the magic of IDX", path=path, offset=0)
    sizes = file.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise DataFormatError("ends in its header; it is cut short", path=path, offset=4)
    shape, dtype = struct.unpack(f">{dimensions}I", sizes), np.dtype(TYPES[kind])
    if max(shape) > MOST_BYTES:
        raise DataFormatError(
            f"found sizes of {list(shape)}; wanted at most {MOST_BYTES}", path=path, offset=4
        )
    wanted, start = math.prod(shape) * dtype.itemsize, 4 + 4 * dimensions
    left = wanted if size is None else size - start
    if wanted > MOST_BYTES or wanted != left:
        raise DataFormatError(
            f"found a header of {dtype}{list(shape)}, {wanted} bytes, and {left} bytes after it",
            path=path,
            offset=4,
        )
    parts, missing = [], wanted
    while missing and (part := file.read(min(missing, 1 << 20))):
        parts.append(part)
        missing -= len(part)
    if missing or file.read(1):
        some = f"{missing} bytes fewer" if missing else "more bytes"
        raise DataFormatError(f"holds {some} than its header of {wanted} says", path=path, offset=start)
    return np.frombuffer(b"".join(parts), dtype).reshape(shape)
