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
        name, shape, _ = known[0] if known else ("nothing", (), "")
        most = min(len(content) * DEFLATE, MOST)
        sound = len(shape) == 2 and shape[1] in (4, 6) and 0 <= shape[0] * shape[1] <= most
        matrix = loadmat(io.BytesIO(content), variable_names=[name])[name] if sound else np.empty(0)
    except Exception as error:  # scipy raises what the broken bytes lead it to
        raise DataFormatError(f"cannot be read as MATLAB's ({error})", path=path) from None
    if not sound or matrix.shape != tuple(shape) or matrix.dtype.kind not in "biuf":
        raise DataFormatError(
            f"found {name}{list(shape)} among {', '.join(VARIABLES)}; wanted numbers, 4 or 6 columns",
            path=path,
        )
    t, x, y, p = matrix[:, [0, -3, -2, -1]].T
    return from_columns(t, x, y, np.where(p > 0, 1, 0), path=path, sensor=sensor, strict=strict)
