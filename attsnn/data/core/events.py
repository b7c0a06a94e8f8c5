"""Events, windows of time, and frames: what every event data set shares.

An event is (t, x, y, p): the time in microseconds, the column, the row, and the polarity (1 = ON, brighter; 0
= OFF). Frames are event counts `[T, 2, H, W]`: channel 0 = OFF, row = y, column = x. The published networks
were trained on transposed frames; `axes="xy"` gives those.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from attsnn._extension import Backend, compiled, use_fused
from attsnn.data.errors import DataFormatError

Axes = Literal["yx", "xy"]
COLUMNS = {"t": np.dtype("<i8"), "x": np.dtype("<i2"), "y": np.dtype("<i2"), "p": np.dtype("u1")}


@dataclass(frozen=True, eq=False)
class Events:
    """Events in order of time: four columns of one length, dtypes as in `COLUMNS`. Slicing gives views."""

    t: np.ndarray
    x: np.ndarray
    y: np.ndarray
    p: np.ndarray

    def __post_init__(self):
        for name, dtype in COLUMNS.items():
            column = getattr(self, name)
            if column.dtype != dtype or column.shape != self.t.shape or column.ndim != 1:
                raise ValueError(
                    f"column {name} is {column.dtype}{list(column.shape)}; wanted {dtype}[{len(self.t)}]"
                )

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, part: slice) -> "Events":
        return Events(self.t[part], self.x[part], self.y[part], self.p[part])

    def between(self, start: int, stop: int) -> "Events":
        """Those with start <= t < stop, in microseconds; the events must be in order of time."""
        first, last = np.searchsorted(self.t, (start, stop))
        return self[first:last]


def make_events(t, x, y, p) -> Events:
    """`Events` of any four integer sequences. Raises ValueError for a number that its column cannot hold."""
    return Events(*map(_column, COLUMNS, (t, x, y, p)))


def _column(name: str, values) -> np.ndarray:
    given = np.asarray(values)
    column = given.astype(COLUMNS[name])
    changed = given[column != given]
    if changed.size:
        raise ValueError(f"column {name} holds {COLUMNS[name]}, which {changed.flat[0]} is not")
    return column


class Draw(NamedTuple):
    """A key of a data set: sample `index`, its randomness a pure function of `seed`.

    Whoever picks the keys decides everything, so workers, order and resumption need no hidden state:
    `dataset[Draw(7, seed)]` is the same tensor in every process, and `dataset[7]` draws nothing at random.
    """

    index: int
    seed: int


def generator(seed: int | Sequence[int]) -> np.random.Generator:
    """The counter-based generator of one or several seeds >= 0; the same stream on every platform."""
    return np.random.Generator(np.random.Philox(seed))


def random_start(first: int, last: int, window: int, rng: np.random.Generator) -> int:
    """Start of a random window of `window` microseconds between the times of the first and the last event.

    Uniform over first .. last - window - 1, the published rule; a recording too short for that starts at
    `first`.
    """
    return int(rng.integers(first, last - window)) if last - window > first else first


def clip_starts(duration: int, window: int, clips: int) -> list[int]:
    """Starts of the published test clips, in microseconds after the first event (MA-SNN's evaluation).

    `clips` windows spread over `duration`: they overlap where clips * window > duration and leave gaps where
    not. None ends after `duration`, unless the recording is shorter than a window: then all start at 0.
    """
    spare = duration - clips * window
    step = window + spare // clips if spare >= 0 else window - (-spare) // clips
    return [max(0, min(clip * step, duration - window)) for clip in range(clips)]


def check_frames(*, steps: int, dt: int, sensor: tuple[int, int], downsample: int) -> None:
    """Raises ValueError, naming the argument, if these cannot describe frames."""
    height, width = sensor
    for name, value in (("steps", steps), ("dt", dt), ("downsample", downsample)):
        if not 1 <= value < 1 << 31:
            raise ValueError(f"{name} must be from 1 to {(1 << 31) - 1}, got {value}")
    if not (0 < height <= 1 << 15 and 0 < width <= 1 << 15) or height % downsample or width % downsample:
        raise ValueError(f"downsample must divide the sensor, at most 32768 wide; got {downsample}, {sensor}")


def frames(
    events: Events,
    *,
    steps: int,
    dt: int,
    sensor: tuple[int, int] = (128, 128),
    downsample: int = 1,
    axes: Axes = "yx",
    backend: Backend = "auto",
) -> np.ndarray:
    """Counts of events, int32 `[steps, 2, height/downsample, width/downsample]`.

    Bin k holds t0 + k*dt <= t < t0 + (k+1)*dt, where t0 is the time of the first event and dt is in
    microseconds; events outside all bins are left out. `sensor` is (height, width). With `axes="xy"` the last
    two axes are exchanged. The "fused" backend is C++ without the GIL, "reference" is NumPy; both give the
    same counts. Raises DataFormatError for an event outside the sensor.
    """
    check_frames(steps=steps, dt=dt, sensor=sensor, downsample=downsample)
    height, width = sensor
    if axes not in ("yx", "xy"):
        raise ValueError(f"axes must be 'yx' or 'xy', got {axes!r}")
    if len(events) >= 1 << 31:
        raise ValueError(f"a window holds at most {(1 << 31) - 1} events (int32 counts), got {len(events)}")
    if use_fused(backend, "cpu"):
        columns = (np.ascontiguousarray(getattr(events, name)) for name in COLUMNS)
        counts, bad = compiled().integrate_frames(*columns, steps, dt, height, width, downsample)
    else:
        counts, bad = _reference_frames(events, steps, dt, height, width, downsample)
    if bad >= 0:
        where = ", ".join(f"{name} = {getattr(events, name)[bad]}" for name in ("x", "y", "p"))
        raise DataFormatError(
            f"event {bad} has {where}; wanted 0 <= x < {width}, 0 <= y < {height}, p in 0, 1"
        )
    return np.ascontiguousarray(counts.swapaxes(2, 3)) if axes == "xy" else counts


def _reference_frames(events, steps, dt, height, width, downsample) -> tuple[np.ndarray, int]:
    """Counts and -1, or anything and the index of the first event outside the sensor."""
    x, y, p = (np.asarray(column).astype(np.int64) for column in (events.x, events.y, events.p))
    outside = (x < 0) | (x >= width) | (y < 0) | (y >= height) | (p > 1)
    shape = (steps, 2, height // downsample, width // downsample)
    if outside.any():
        return np.zeros(shape, np.int32), int(outside.argmax())
    since = np.asarray(events.t) - (events.t[0] if len(events) else 0)
    cell = np.ravel_multi_index((since // dt, p, y // downsample, x // downsample), shape, mode="clip")
    inside = (since >= 0) & (since < steps * dt)
    counts = np.bincount(cell[inside], minlength=int(np.prod(shape)))
    return counts.reshape(shape).astype(np.int32), -1


class Selection(Dataset):
    """Some samples of a data set with `labels` and `classes`; unlike torch's Subset it takes `Draw` keys."""

    def __init__(self, dataset: Dataset, indices: Sequence[int]):
        self.dataset, self.indices = dataset, [int(index) for index in indices]
        outside = [index for index in self.indices if not 0 <= index < len(dataset)]
        if outside:
            raise IndexError(f"index {outside[0]} is outside a data set of {len(dataset)} samples")
        self.classes, self.labels = dataset.classes, dataset.labels[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: int | Draw):
        if isinstance(key, Draw):
            return self.dataset[Draw(self.indices[key.index], key.seed)]
        return self.dataset[self.indices[key]]


def select(dataset: Dataset, indices: Sequence[int]) -> Selection:
    """The samples at `indices`, in this order: a validation split, a fold, a small run."""
    return Selection(dataset, indices)
