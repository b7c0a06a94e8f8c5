"""CIFAR10-DVS as MATLAB matrices: columns t, (-, -,) x, y, p in a variable `out`, `out1` or `res`.

They come from IMSE-CNM's dat2mat.m, which turns x and the polarity and subtracts the first time. scipy (the
extra `mat`) reads them; it crashes on some damaged files, so it gets a single matrix whose elements have been
checked. Source: MAT-File Format, version 5 (MathWorks).
"""

import io
import os
import struct
import zlib
from collections.abc import Iterator

import numpy as np

from attsnn.data.core.decoding import Recording
from attsnn.data.errors import DataFormatError
from attsnn.data.formats.columns import from_columns

VARIABLES = ("out", "out1", "res")
HEADER_BYTES = 128
MOST_BYTES = 1 << 30  # of a matrix
INT8, INT32, UINT32, MATRIX, COMPRESSED = 1, 5, 6, 14, 15  # types of elements
NUMBERS = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8}  # types of numbers: their bytes
CLASSES = range(6, 16)  # of arrays: double to uint64
COMPLEX = 0x0800


def decode(
    data: np.ndarray,
    *,
    path: str | os.PathLike[str] = "<bytes>",
    sensor: tuple[int, int] = (128, 128),
    strict: bool = False,
) -> Recording:
    """The events in the bytes of a .mat file of version 5 (uint8 array).

    x and y are those of dat2mat; of the polarities -1 and 1, 1 is ON. Raises DataFormatError, or ImportError
    in a sentence.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError(f"{path} needs scipy ({error}): pip install 'attsnn[mat]'") from None
    content = np.ascontiguousarray(data, np.uint8).tobytes()
    try:
        found = dict(_matrices(content))
        known = [name for name in VARIABLES if name in found]
        if not known:
            raise ValueError(f"holds matrices of numbers {sorted(found)}, none of {', '.join(VARIABLES)}")
        matrix = loadmat(io.BytesIO(content[:HEADER_BYTES] + found[known[0]]))[known[0]]
    except Exception as error:  # scipy and struct may raise anything for broken bytes
        raise DataFormatError(f"cannot be read as MATLAB's ({error})", path=path) from None
    if matrix.ndim != 2 or matrix.shape[1] not in (4, 6):
        raise DataFormatError(f"found {known[0]}{list(matrix.shape)}; wanted 4 or 6 columns", path=path)
    return from_columns(*matrix[:, [0, -3, -2, -1]].T, path=path, sensor=sensor, strict=strict)


def check_size(content: bytes, most: int) -> None:
    """Raises ValueError if a compressed element of a .mat file has more than `most` bytes."""
    at, order = HEADER_BYTES, "<" if content[HEADER_BYTES - 2 : HEADER_BYTES] == b"IM" else ">"
    while at < len(content):
        kind, body, at = _element(content, at, order)
        unpacker = zlib.decompressobj()
        if kind == COMPRESSED and unpacker.decompress(body, most) and unpacker.unconsumed_tail:
            raise ValueError(f"more than {most} bytes in an element")


def _matrices(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yields (name, uncompressed element) of each matrix of numbers."""
    order = {b"IM": "<", b"MI": ">"}.get(content[HEADER_BYTES - 2 : HEADER_BYTES])
    if order is None:
        raise ValueError("has no header of version 5")
    at = HEADER_BYTES
    while at < len(content):
        kind, body, end = _element(content, at, order)
        element = content[at:end]
        if kind == COMPRESSED:
            unpacker = zlib.decompressobj()
            element = unpacker.decompress(body, MOST_BYTES)
            if unpacker.unconsumed_tail:
                raise ValueError(f"more than {MOST_BYTES} bytes in an element")
            kind, body, _ = _element(element, 0, order)
        if kind == MATRIX and (name := _name_of_numbers(body, order)) is not None:
            yield name, element
        at = end


def _element(content: bytes, at: int, order: str) -> tuple[int, bytes, int]:
    """(type, bytes, where the next element begins) of the element at a byte."""
    kind, size = struct.unpack_from(f"{order}II", content, at)
    if kind >> 16:  # up to four bytes, inside its tag
        kind, size, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
    else:
        start = at + 8
        end = start + size if kind == COMPRESSED else start + -(-size // 8) * 8
    if size > len(content) - start or (end - start == 4 and size > 4):
        raise ValueError(f"an element at byte {at} claims {size} bytes")
    return kind, content[start : start + size], end


def _name_of_numbers(body: bytes, order: str) -> str | None:
    """The name of a matrix of real numbers with sound parts; None for another kind of matrix."""
    kind, flags, at = _element(body, 0, order)
    if kind != UINT32 or len(flags) != 8:
        raise ValueError("a matrix without flags")
    word = struct.unpack_from(f"{order}I", flags)[0]
    if word & 0xFF not in CLASSES or word & COMPLEX:
        return None
    kind, sizes, at = _element(body, at, order)
    if kind != INT32 or len(sizes) < 8 or len(sizes) % 4:
        raise ValueError("a matrix without sizes")
    shape = struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
    kind, name, at = _element(body, at, order)
    if kind != INT8:
        raise ValueError("a matrix without a name")
    kind, numbers, _ = _element(body, at, order)
    if (
        kind not in NUMBERS
        or min(shape) < 0
        or len(numbers) != NUMBERS[kind] * int(np.prod(shape, dtype=object))
    ):
        raise ValueError(f"a matrix of {list(shape)} numbers in {len(numbers)} bytes")
    return name.decode("latin1")
