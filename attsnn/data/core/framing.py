"""From events to frames: counts `[T, 2, H, W]`, by bins of time or by number of events, for many samples.

Channel 0 is OFF, channel 1 is ON; a row is y, a column is x. The published networks of MA-SNN were trained on
transposed frames; `axes="xy"` gives those.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from attsnn._extension import Backend, compiled, use_fused
from attsnn.data.errors import DataFormatError

Axes = Literal["yx", "xy"]
Polarity = Literal["both", "collapsed"]
SIDE = 1 << 15  # pixels of the widest sensor
MOST = (1 << 31) - 1
COUNTS = (np.uint8, np.int16, np.int32)


@dataclass(frozen=True)
class Framing:
    """How events become frames `shape` = `[steps, 2, height / downsample, width / downsample]`.

    Channel 0 counts OFF events, channel 1 ON events. With `dt`, bin k holds the events with origin + k*dt <=
    t < origin + (k+1)*dt; events outside of all bins are left out. With `dt=None`, step k holds the events
    k*n .. (k+1)*n - 1 of M, with n = floor(M / steps), and the last step holds all that are left
    (SpikingJelly's split by number).

    Args:
        steps: time steps T.
        dt: microseconds of a step, or None.
        sensor: (height, width) in pixels.
        downsample: divides the sensor's sides.
        axes: "yx", or "xy" to exchange the last two axes, as in the frames that MA-SNN's published networks
            were trained on.
        polarity: "both", or "collapsed" to count both polarities in channel 1, as MA-SNN's published code
            does for CIFAR10-DVS.
        backend: "fused" is C++ without the GIL, "reference" is NumPy; both give the same counts. "auto" is
            "fused" where it is built.

    Raises:
        ValueError: an argument does not fit; the message names it.
    """

    steps: int
    dt: int | None
    sensor: tuple[int, int] = (128, 128)
    downsample: int = 1
    axes: Axes = "yx"
    polarity: Polarity = "both"
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        value: Any  # as the caller gave it
        for name, value in (("steps", self.steps), ("dt", self.dt), ("downsample", self.downsample)):
            if value is None and name == "dt":
                continue
            unit = ", a number of microseconds" if name == "dt" else ""
            try:
                operator.index(value)
            except TypeError:
                raise ValueError(f"{name} must be an integer{unit}; got {value!r}: int(...) it") from None
            if not 1 <= value <= MOST:
                raise ValueError(f"{name} must be from 1 to {MOST}{unit}; got {value}")
        height, width = self.sensor
        if not all(0 < side <= SIDE and side % self.downsample == 0 for side in (height, width)):
            raise ValueError(
                f"downsample must divide the sensor's sides, which are at most {SIDE} pixels; got "
                f"{self.downsample} for {height} x {width}"
            )
        if self.axes not in ("yx", "xy"):
            raise ValueError(f"axes must be 'yx' or 'xy', got {self.axes!r}")
        if self.polarity not in ("both", "collapsed"):
            raise ValueError(f"polarity must be 'both' or 'collapsed', got {self.polarity!r}")

    @property
    def keywords(self) -> dict[str, Any]:
        """All fields but the backend, as JSON values and as keywords for `framed`."""
        names = ("steps", "dt", "sensor", "downsample", "axes", "polarity")
        return {name: list(v) if isinstance(v := getattr(self, name), tuple) else v for name in names}

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of the frames of a sample."""
        rows, columns = (side // self.downsample for side in self.sensor)
        return (self.steps, 2, *((columns, rows) if self.axes == "xy" else (rows, columns)))

    def count(
        self,
        columns: Sequence[np.ndarray],
        first: Sequence[int],
        last: Sequence[int],
        origin: Sequence[int],
        *,
        types: Sequence[type] = COUNTS,
        threads: int = 1,
    ) -> np.ndarray:
        """Counts the events of many samples into frames `[samples, *shape]`.

        A sample holds the events first <= i < last of the columns t, x, y, p (types as in `events.COLUMNS`),
        and its first bin starts at the time `origin`. The counts have the first of `types` (of uint8, int16,
        int32) that holds them all. Raises DataFormatError for an event outside of the sensor.
        """
        bounds = [np.ascontiguousarray(values, np.int64) for values in (first, last, origin)]
        if len(bounds[0]) and (bounds[1] - bounds[0]).max() > MOST:
            raise ValueError(f"a sample holds at most {MOST} events (int32 counts)")
        frames, bad = self._counts(columns, bounds, types, threads)
        if bad >= 0:
            height, width = self.sensor
            where = ", ".join(f"{name} = {c[bad]}" for name, c in zip("xyp", columns[1:], strict=True))
            raise DataFormatError(
                f"event {bad} has {where}; wanted 0 <= x < {width}, 0 <= y < {height}, p in 0, 1"
            )
        return frames

    def _counts(
        self, columns: Sequence[np.ndarray], bounds: Sequence[np.ndarray], types: Sequence[type], threads: int
    ) -> tuple[np.ndarray, int]:
        if not use_fused(self.backend, "cpu"):
            return self._reference(columns, bounds, types)
        columns = [np.ascontiguousarray(column) for column in columns]
        flags = (self.axes == "xy", self.polarity == "collapsed")
        for kind in types:
            frames: np.ndarray = np.empty((len(bounds[0]), *self.shape), kind)
            grid = (self.steps, self.dt or 0, *self.sensor, self.downsample, *flags)
            bad, wrapped = compiled().frame_events(*columns, *bounds, *grid, frames, threads)
            if not wrapped:
                break
        return frames, bad

    def _reference(
        self, columns: Sequence[np.ndarray], bounds: Sequence[np.ndarray], types: Sequence[type]
    ) -> tuple[np.ndarray, int]:
        frames = np.zeros((len(bounds[0]), *self.shape), np.int64)
        for sample, (first, last, origin) in zip(frames, zip(*bounds, strict=True), strict=True):
            t, x, y, p = (np.asarray(column[first:last]).astype(np.int64) for column in columns)
            outside = (x < 0) | (x >= self.sensor[1]) | (y < 0) | (y >= self.sensor[0]) | (p > 1)
            if outside.any():
                return frames, int(first + outside.argmax())
            if self.dt is None:
                share = max(len(t) // self.steps, 1)
                short = len(t) < self.steps  # then the last step takes all of them
                step = np.minimum(np.arange(len(t)) // share + short * self.steps, self.steps - 1)
            else:
                step = np.where(t < origin, -1, (t - origin) // self.dt)
            rows, across = y // self.downsample, x // self.downsample
            if self.axes == "xy":
                rows, across = across, rows
            channel = np.ones_like(p) if self.polarity == "collapsed" else p
            cell = np.ravel_multi_index((step, channel, rows, across), self.shape, mode="clip")
            inside = (step >= 0) & (step < self.steps)
            sample += np.bincount(cell[inside], minlength=sample.size).reshape(self.shape)
        most = frames.max(initial=0)
        return frames.astype(next(kind for kind in types if most <= np.iinfo(kind).max)), -1
