"""The records of CIFAR-10 and CIFAR-100, binary or pickled, as uint8 images `[N, 32, 32, 3]` and labels.

Binary: a byte for the label (CIFAR-100: the superclass, then the class), then 3,072 pixels, planes R, G, B.
Pickled: what Python 2 wrote, a dict with the same rows. Such a file cannot call anything of NumPy: stand-ins
record its arrays, which are checked before memory is taken for them. Source: the web page of the sets.
"""

import os
import pickle
import pickletools
from collections.abc import Callable
from io import BytesIO
from typing import Any, ClassVar

import numpy as np

from attsnn.data.errors import DataFormatError

PIXELS = 3 * 32 * 32
MOST_BYTES = 1 << 28
MOST_ROWS = 1 << 20
# The operations in such files (Python 2, protocol 2). None takes more memory than the file has bytes.
_OPCODES = """
    PROTO STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINSTRING SHORT_BINSTRING BINUNICODE
    EMPTY_DICT SETITEM SETITEMS EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    BINPUT LONG_BINPUT BINGET LONG_BINGET GLOBAL REDUCE BUILD
"""
OPCODES = set(_OPCODES.split())


def decode_binary(
    data: np.ndarray, classes: int, *, path: str | os.PathLike[str] = "<bytes>"
) -> tuple[np.ndarray, np.ndarray]:
    """(images, labels) of a .bin file of CIFAR-`classes`, 10 or 100."""
    data = np.ascontiguousarray(data, np.uint8)
    before = 1 if classes == 10 else 2
    if len(data) == 0 or len(data) % (before + PIXELS):
        raise DataFormatError(
            f"found {len(data)} bytes; wanted records of {before + PIXELS}", path=path, offset=len(data)
        )
    rows = data.reshape(-1, before + PIXELS)
    return _checked(rows[:, before:], rows[:, before - 1].tolist(), classes, path)


def decode_pickled(
    data: np.ndarray, classes: int, *, path: str | os.PathLike[str] = "<bytes>"
) -> tuple[np.ndarray, np.ndarray]:
    """The (images, labels) of a file of the Python version. Raises DataFormatError for anything else."""
    content = unpickle(np.ascontiguousarray(data, np.uint8).tobytes(), path)
    if not isinstance(content, dict):
        raise DataFormatError(f"found a pickled {type(content).__name__}; wanted a dict", path=path)
    rows = content.get(b"data")
    labels = content.get(b"labels" if classes == 10 else b"fine_labels")
    if not isinstance(rows, _Array) or not isinstance(labels, list) or rows.shape != (len(labels), PIXELS):
        raise DataFormatError(f"wanted data, uint8 [N, {PIXELS}], and as many labels", path=path)
    return _checked(rows.array(), labels, classes, path)


def unpickle(data: bytes, path: str | os.PathLike[str]) -> Any:
    """The plain values in a pickle, its arrays as `_Array`. Raises DataFormatError for everything else."""
    try:
        _look(data)
        return _Unpickler(BytesIO(data), encoding="bytes").load()
    except Exception as error:  # the unpickler may raise anything for broken bytes
        reason = str(error) or type(error).__name__
        raise DataFormatError(f"cannot be unpickled as plain arrays ({reason[:200]})", path=path) from None


def _look(data: bytes) -> None:
    """Raises ValueError for operations that plain rows do not need, and for content that might grow large."""
    if len(data) > MOST_BYTES:
        raise ValueError(f"{len(data)} bytes; wanted at most {MOST_BYTES}")
    held = 0  # the highest index used in the memo
    for opcode, argument, at in pickletools.genops(data):
        if opcode.name not in OPCODES:
            raise ValueError(f"the operation {opcode.name} at byte {at}")
        if opcode.name in ("BINPUT", "LONG_BINPUT"):
            assert argument is not None  # these two have one
            if argument > held + 1:
                raise ValueError(f"the place {argument} of the memory, after {held}")
            held = max(held, argument)


class _Array:
    """Stands for an array of bytes, and records what the file says about it."""

    def __init__(self, *_: object):
        self.shape: tuple[int, ...] = ()
        self._content = b""

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        sound = isinstance(shape, tuple) and 1 <= len(shape) <= 2 and all(type(n) is int for n in shape)
        if (
            not sound
            or not isinstance(kind, _Type)
            or not isinstance(content, bytes)
            or fortran not in (0, False)
        ):
            raise ValueError("an array that is not one of bytes, row by row")
        rows, columns = (*shape, 1)[:2]
        if not (0 <= rows <= MOST_ROWS and 0 <= columns <= PIXELS and rows * columns == len(content)):
            raise ValueError(f"an array of {list(shape)} in {len(content)} bytes")
        self.shape, self._content = shape, content

    def array(self) -> np.ndarray:
        """uint8, of this shape."""
        return np.frombuffer(self._content, np.uint8).reshape(self.shape)

    __hash__ = None  # type: ignore[assignment]  # not a key of a dict


class _Type:
    """Stands for NumPy's type of a byte; ValueError for any other type."""

    def __init__(self, kind: object, *_: object):
        if not isinstance(kind, bytes | str) or kind[-2:] not in (b"u1", "u1"):
            raise ValueError("an array of another type than bytes")

    def __setstate__(self, _: object) -> None:
        pass


class _Unpickler(pickle._Unpickler):
    """Written in Python, so its memo is a dict, whose size no number in a file decides."""

    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]  # it has these two, which typeshed does not know
    pop_mark: Callable[[], list[Any]]

    def find_class(self, module: str, name: str) -> type[_Array] | type[_Type]:
        if (module, name) not in STANDS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return STANDS[module, name]

    def _set_items(self) -> None:
        items = self.pop_mark()
        if not all(isinstance(key, bytes | str) for key in items[::2]):  # hashing tuples of tuples has no end
            raise ValueError("a key that is not a string")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        if not isinstance(key, bytes | str):
            raise ValueError("a key that is not a string")
        self.stack[-1][key] = value

    dispatch[pickle.SETITEMS[0]], dispatch[pickle.SETITEM[0]] = _set_items, _set_item


STANDS: dict[tuple[str, str], type[_Array] | type[_Type]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
}
STANDS |= {(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")}


def _checked(
    rows: np.ndarray, labels: list[Any], classes: int, path: str | os.PathLike[str]
) -> tuple[np.ndarray, np.ndarray]:
    for index, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < classes:
            found = label if type(label) is int else f"a {type(label).__name__}"
            raise DataFormatError(
                f"image {index} has the label {found}; wanted 0 to {classes - 1}", path=path
            )
    images = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.array(labels, np.int64)
