"""The Frechet distance of two sets of features.

Each set is taken for a normal distribution with its mean and covariance (Dowson and Landau, 1982; for
Inception features: Heusel et al., NeurIPS 2017).
"""

import io
import math
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# What NumPy and zipfile raise for a file that is none of theirs, or broken.
_NO_ARRAYS = (
    *(ValueError, KeyError, EOFError, OverflowError, MemoryError, NotImplementedError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)
_ASYMMETRY = 1e-5  # relative to a covariance's greatest entry: files may hold float32
_NEGATIVE = 1e-3  # relative to its greatest eigenvalue, for the same reason


class Moments:
    """Mean `[D]` and covariance `[D, D]` of features, gathered in float64 on the CPU.

    Up to rounding, they are the same for every order and every division into batches (Chan, Golub and
    LeVeque, 1983). `count` is the number of samples. It is None if a file does not state it; such moments
    take no more samples.

    Args:
        dimensions: D; None until it is known.
    """

    def __init__(self, dimensions: int | None = None) -> None:
        self.count: int | None = 0
        self.dimensions = dimensions
        self._mean: Tensor = torch.zeros(0)
        # (count - 1) times the covariance; without a count the covariance.
        self._scatter: Tensor = torch.zeros(0)

    @classmethod
    def given(cls, mean: Tensor, covariance: Tensor, count: int | None = None) -> "Moments":
        """Moments from a mean `[D]` and a covariance `[D, D]` with ddof 1. Raises ValueError if
        they cannot be that.
        """
        if mean.dim() != 1 or len(mean) == 0 or covariance.shape != (len(mean), len(mean)):
            shapes = f"{list(mean.shape)} and {list(covariance.shape)}"
            raise ValueError(f"mean and covariance have shapes [D] and [D, D], got {shapes}")
        mean, covariance = _finite("mean", mean), _finite("covariance", covariance)
        largest = covariance.abs().max().item()
        if (covariance - covariance.T).abs().max().item() > _ASYMMETRY * largest:
            raise ValueError("a covariance is symmetric, this one is not")
        if count is not None and count < 2:
            raise ValueError(f"a covariance is of 2 samples at least, got {count}")
        moments = cls(len(mean))
        moments.count, moments._mean = count, mean.clone()
        moments._scatter = covariance * (1 if count is None else count - 1)
        return moments

    def update(self, features: Tensor) -> None:
        """Adds the rows of features `[N, D]`. Raises ValueError for another shape, and if a
        number is not finite.
        """
        if features.dim() != 2 or features.shape[1] == 0:
            raise ValueError(f"features have shape [N, D], got {list(features.shape)}")
        features = _finite("features", features)
        if len(features) > 0:
            mean = features.mean(0)
            centred = features - mean
            self._join(len(features), mean, centred.T @ centred)

    def merge(self, other: "Moments") -> None:
        """Adds the samples of `other`, which stays as it is. Raises ValueError if their
        number is not known.
        """
        if other.count is None:
            raise ValueError("moments of an unknown number of samples cannot be added to others")
        if other.count > 0:
            self._join(other.count, other._mean, other._scatter)

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if self.count is None:
            raise ValueError("moments of an unknown number of samples take no more samples")
        if self.dimensions not in (None, len(mean)):
            raise ValueError(f"these moments are of {self.dimensions} dimensions, got {len(mean)}")
        self.dimensions = len(mean)
        if self.count == 0:
            self.count, self._mean, self._scatter = count, mean, scatter
            return
        total = self.count + count
        apart = mean - self._mean
        self._scatter = (self._scatter + scatter).addr_(apart, apart, alpha=self.count * count / total)
        self._mean = self._mean + apart * (count / total)
        self.count = total

    @property
    def mean(self) -> Tensor:
        """The mean `[D]`, float64. Raises ValueError if there is no sample."""
        if self.count == 0:
            raise ValueError("there are no samples to take a mean of")
        return self._mean.clone()

    @property
    def covariance(self) -> Tensor:
        """The covariance `[D, D]`, float64, ddof 1. Raises ValueError for fewer than 2 samples."""
        if self.count is None:
            return self._scatter.clone()
        if self.count < 2:
            raise ValueError(f"a covariance is of 2 samples at least, got {self.count}")
        return self._scatter / (self.count - 1)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Moments":
        """Reads an .npz file of `mu` `[D]` and `sigma` `[D, D]`, as clean-fid and the published repositories
        write them, and of `count` if the file has one.

        Raises OSError if it cannot be read, and ValueError if it is no such file.
        """
        content = Path(path).read_bytes()
        try:
            mean, covariance, count = _arrays(io.BytesIO(content))
            return cls.given(torch.from_numpy(mean), torch.from_numpy(covariance), count)
        except _NO_ARRAYS as error:
            said = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{os.fspath(path)}: no statistics of features (.npz): {said}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes such a file. An existing one is replaced once the new one is complete."""
        arrays: dict[str, Any] = {"mu": self.mean.numpy(), "sigma": self.covariance.numpy()}
        if self.count is not None:
            arrays["count"] = np.int64(self.count)
        path = Path(path)
        own = path.with_name(f".tmp-{os.getpid()}-{path.name}")
        try:
            with open(own, "wb") as file:
                np.savez(file, **arrays)
            os.replace(own, path)
        finally:
            own.unlink(missing_ok=True)


def frechet_distance(a: Moments, b: Moments) -> float:
    """The Frechet distance |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) for covariances A and B.

    The covariances may be singular. The trace of the root is computed as the sum of the singular values of
    A^(1/2) B^(1/2). Unlike the roots of the eigenvalues of A^(1/2) B A^(1/2), these do not lose half of their
    digits near zero. Eigenvalues of A and of B that are zero up to rounding are taken for zero.

    Raises ValueError for different dimensions, for fewer than 2 samples, and for matrices that are not finite
    or not covariances.
    """
    covariances = a.covariance, b.covariance
    if a.dimensions != b.dimensions:
        raise ValueError(f"moments of {a.dimensions} and {b.dimensions} dimensions have no distance")
    (values_a, axes_a), (values_b, axes_b) = map(_eigen, covariances)
    roots = (axes_a * values_a.sqrt()).T @ (axes_b * values_b.sqrt())
    shared = torch.linalg.svdvals(roots).sum()
    apart = (a.mean - b.mean).square().sum()
    distance: float = (apart + values_a.sum() + values_b.sum() - 2 * shared).item()
    if not math.isfinite(distance):
        raise ValueError("the distance is not finite: the features are too large")
    return max(0.0, distance)


def _eigen(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalues [R] that are not zero up to rounding, and their vectors [D, R]."""
    values, vectors = torch.linalg.eigh(_finite("covariance", covariance))
    least, greatest = values[0].item(), values[-1].item()
    if -least > _NEGATIVE * max(greatest, 0.0):
        raise ValueError(f"no covariance: it has the eigenvalue {least:.3g}")
    kept = values > len(values) * torch.finfo(torch.float64).eps * greatest
    return values[kept], vectors[:, kept]


def _finite(what: str, values: Tensor) -> Tensor:
    """The values as float64 on the CPU. Raises ValueError if they are not real and finite."""
    if values.is_complex():
        raise ValueError(f"the {what} must be real numbers")
    values = values.detach().to("cpu", torch.float64)
    if (wrong := values.numel() - int(values.isfinite().sum())) > 0:
        raise ValueError(f"the {what} must be finite: {wrong} of {values.numel()} numbers are not")
    return values


def _arrays(file: io.BytesIO) -> tuple[np.ndarray, np.ndarray, int | None]:
    content = np.load(file, allow_pickle=False)
    if not isinstance(content, np.lib.npyio.NpzFile):
        raise ValueError("it holds one array, wanted mu and sigma")
    if missing := [key for key in ("mu", "sigma") if key not in content.files]:
        raise ValueError(f"it has no {' and no '.join(missing)}, but {', '.join(content.files) or 'nothing'}")
    found = {key: content[key] for key in ("mu", "sigma", "count") if key in content.files}
    for key, array in found.items():
        if array.dtype.kind not in ("iu" if key == "count" else "fiu"):
            raise ValueError(f"{key} is of type {array.dtype}")
    if "count" in found and found["count"].shape != ():
        raise ValueError(f"count has shape {list(found['count'].shape)}, wanted one number")
    count = int(found["count"]) if "count" in found else None
    return found["mu"].astype(np.float64), found["sigma"].astype(np.float64), count
