"""CIFAR10-DVS as MATLAB matrices: columns t, (-, -,) x, y, p in a variable `out`, `out1` or `res`.

They come from IMSE-CNM's dat2mat.m, which turns x and the polarity and takes off the first time. Needs scipy,
the extra `mat`.
"""

import io
import os

import numpy as np

from attsnn.data.core.decoding import Recording
from attsnn.data.errors import DataFormatError
from attsnn.data.formats.columns import DEFLATE, from_columns

VARIABLES = ("out", "out1", "res")
MOST = 1 << 27  # numbers of a matrix


def decode(
    data: np.ndarray,
    *,
    path: str | os.PathLike = "<bytes>",
    sensor: tuple[int, int] = (128, 128),
    strict: bool = False,
) -> Recording:
    """The events in the bytes of a .mat file of version 5 (uint8 array).

    x and y are those of dat2mat, p > 0 is ON. Raises DataFormatError, or ImportError in a sentence.
    """
    try:
        from scipy.io import loadmat, whosmat
    except ImportError as error:
        raise ImportError(f"{path} needs scipy ({error}): pip install 'attsnn[mat]'") from None
    content = np.ascontiguousarray(data, np.uint8).tobytes()
    try:
        known = [entry for entry in whosmat(io.BytesIO(content)) if entry[0] in VARIABLES]
        name, shape = known[0][:2] if known else ("", ())
        if (
            len(shape) == 2
            and shape[1] in (4, 6)
            and 0 <= shape[0] * shape[1] <= min(len(content) * DEFLATE, MOST)
        ):
            matrix = loadmat(io.BytesIO(content), variable_names=[name])[name]
        else:
            matrix = None
    except Exception as error:  # scipy raises what the broken bytes lead it to
        raise DataFormatError(f"cannot be read as MATLAB's ({error})", path=path) from None
    if matrix is None or matrix.shape != tuple(shape):
        found = f"{name} of {list(shape)}" if name else "none of them"
        raise DataFormatError(f"found {found}; wanted {', '.join(VARIABLES)} with 4 or 6 columns", path=path)
    t, x, y, p = matrix[:, [0, -3, -2, -1]].T
    return from_columns(t, x, y, np.where(p > 0, 1, 0), path=path, sensor=sensor, strict=strict)
