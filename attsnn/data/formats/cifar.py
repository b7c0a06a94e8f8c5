"""The records of CIFAR-10 and CIFAR-100, binary or pickled, as uint8 images `[N, 32, 32, 3]` and labels.

Binary: a byte for the label (CIFAR-100: the superclass, then the class), then 3,072 pixels, planes R, G, B.
Pickled: what Python 2 wrote, a dict with the same rows. It is read by an unpickler that knows NumPy arrays
and nothing else: any other name in a file ends the reading. Source: the page of the sets.
"""

import io
import os
import pickle

import numpy as np

from attsnn.data.errors import DataFormatError

PIXELS = 3 * 32 * 32
ALLOWED = {
    (module, name)
    for root in ("numpy.core", "numpy._core")
    for module, name in ((f"{root}.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"))
}
MOST_BYTES = 1 << 28


def decode_binary(
    data: np.ndarray, classes: int, *, path: str | os.PathLike = "<bytes>"
) -> tuple[np.ndarray, np.ndarray]:
    """(images, labels) of a .bin file of CIFAR-`classes`, 10 or 100."""
    data = np.ascontiguousarray(data, np.uint8)
    before = 1 if classes == 10 else 2
    if len(data) == 0 or len(data) % (before + PIXELS):
        raise DataFormatError(
            f"found {len(data)} bytes; wanted records of {before + PIXELS}", path=path, offset=len(data)
        )
    rows = data.reshape(-1, before + PIXELS)
    return _checked(rows[:, before:], rows[:, before - 1].astype(np.int64), classes, path)


def decode_pickled(
    data: np.ndarray, classes: int, *, path: str | os.PathLike = "<bytes>"
) -> tuple[np.ndarray, np.ndarray]:
    """(images, labels) of a file of the Python version; DataFormatError for anything but plain arrays."""
    content = unpickle(np.ascontiguousarray(data, np.uint8).tobytes(), path)
    if not isinstance(content, dict):
        raise DataFormatError(f"found a pickled {type(content).__name__}; wanted a dict", path=path)
    known = {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in content.items()}
    rows, labels = known.get("data"), known.get("labels" if classes == 10 else "fine_labels")
    sound = isinstance(rows, np.ndarray) and rows.dtype == np.uint8 and rows.shape[1:] == (PIXELS,)
    if not sound or not isinstance(labels, list) or len(labels) != len(rows):
        raise DataFormatError(
            f"found {sorted(map(str, known))[:6]}; wanted data, uint8 [N, {PIXELS}], and as many labels",
            path=path,
        )
    if not all(type(label) is int for label in labels):
        raise DataFormatError("found a label that is no integer", path=path)
    return _checked(rows, np.array(labels, np.int64), classes, path)


def unpickle(data: bytes, path: str | os.PathLike):
    """What plain Python values and NumPy arrays a pickle holds; DataFormatError for everything else."""
    if len(data) > MOST_BYTES:
        raise DataFormatError(f"found {len(data)} bytes; wanted at most {MOST_BYTES}", path=path)
    try:
        return _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except DataFormatError:
        raise
    except Exception as error:  # the unpickler raises what the broken bytes lead it to
        reason = str(error) or type(error).__name__
        raise DataFormatError(f"cannot be unpickled as plain arrays ({reason})", path=path) from None


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module.replace("numpy.core", _CORE), name)

    def persistent_load(self, pid):
        raise pickle.UnpicklingError("it asks for an object from elsewhere")


_CORE = "numpy._core" if hasattr(np, "_core") else "numpy.core"


def _checked(
    rows: np.ndarray, labels: np.ndarray, classes: int, path: str | os.PathLike
) -> tuple[np.ndarray, np.ndarray]:
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise DataFormatError(
            f"image {wrong[0]} has the label {labels[wrong[0]]}; wanted 0 to {classes - 1}", path=path
        )
    images = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels
