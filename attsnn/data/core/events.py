"""Events, windows of time, and frames, which every event data set shares.

An event is (t, x, y, p): the time in microseconds, the column, the row, and the polarity (1 = ON, brighter; 0
= OFF).
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.utils.data import Dataset

from attsnn._extension import Backend
from attsnn.data.core.framing import Axes, Framing, Polarity
from attsnn.data.errors import warn

COLUMNS: dict[str, np.dtype] = {
    "t": np.dtype("<i8"),
    "x": np.dtype("<i2"),
    "y": np.dtype("<i2"),
    "p": np.dtype("u1"),
}


@dataclass(frozen=True, eq=False)
class Events:
    """Events in time order, as four columns of one length. Slicing gives views.

    Args:
        t: times in microseconds, int64 `[N]`.
        x: columns of the sensor, int16 `[N]`.
        y: rows of the sensor, int16 `[N]`.
        p: polarities, uint8 `[N]`: 1 is ON (brighter), 0 is OFF.

    Raises ValueError for a column of another type or length.
    """

    t: np.ndarray
    x: np.ndarray
    y: np.ndarray
    p: np.ndarray

    def __post_init__(self) -> None:
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
        """The events with start <= t < stop, in microseconds. The events must be in time order."""
        first, last = np.searchsorted(self.t, (start, stop))
        return self[first:last]


def make_events(t: ArrayLike, x: ArrayLike, y: ArrayLike, p: ArrayLike, *, sort: bool = False) -> Events:
    """Makes `Events` from any four sequences of integers.

    Args:
        t: times in microseconds; they must not decrease, unless `sort` is set.
        x: columns of the sensor.
        y: rows of the sensor.
        p: polarities, 0 (OFF) or 1 (ON).
        sort: sort the events by time (a stable sort).

    Raises:
        ValueError: a column cannot hold a number, or times decrease without `sort`.
    """
    events = Events(*map(_column, COLUMNS, (t, x, y, p)))
    late = int(np.count_nonzero(np.diff(events.t) < 0))
    if late and not sort:
        raise ValueError(
            f"{late:,} of {len(events):,} events are earlier than the one before; wanted the order of time: "
            "pass sort=True, or look whether the columns are t, x, y, p"
        )
    if not late:
        return events
    order = np.argsort(events.t, kind="stable")
    return Events(*(getattr(events, name)[order] for name in COLUMNS))


def _column(name: str, values: ArrayLike) -> np.ndarray:
    given = np.asarray(values)
    if given.ndim != 1 or given.dtype.kind not in "biuf":
        raise ValueError(f"column {name} is {given.dtype}{list(given.shape)}; wanted a sequence of integers")
    with np.errstate(invalid="ignore"):  # of NaN, which is reported below
        column = given.astype(COLUMNS[name])
    changed = given[column != given]
    if name == "p" and changed.size == 0:
        changed = given[column > 1]
    if changed.size:
        hint = "; wanted 0 (OFF) or 1 (ON): pass p > 0" if name == "p" else ""
        raise ValueError(f"column {name} holds {COLUMNS[name]}, which {changed.flat[0]} is not{hint}")
    return column


class Draw(NamedTuple):
    """A key of a data set: sample `index`, with all randomness a pure function of `seed`.

    The keys decide everything, so workers, order and resumption need no hidden state.
    `dataset[Draw(7, seed)]` is the same tensor in every process. So is `dataset[7]`, which stands for a fixed
    draw or for none.

    Args:
        index: the number of the sample.
        seed: an integer of at least 0.
    """

    index: int  # type: ignore[assignment]  # a field, not tuple's method
    seed: int


def generator(seed: int | Sequence[int]) -> np.random.Generator:
    """The counter-based generator (Philox) of one or several seeds >= 0: the same
    stream on every platform.
    """
    return np.random.Generator(np.random.Philox(seed))


def random_start(first: int, last: int, window: int, rng: np.random.Generator) -> int:
    """The start of a random window of `window` microseconds between the first and the last event's times.

    It is uniform over first .. last - window - 1, the published rule. A recording too short for that starts
    at `first`.
    """
    return int(rng.integers(first, last - window)) if last - window > first else first


def clip_starts(duration: int, window: int, clips: int) -> list[int]:
    """The starts of the published test clips, in microseconds after the first event (MA-SNN's evaluation).

    The `clips` windows are spread over `duration`. They overlap if clips * window > duration, and otherwise
    leave gaps. None ends after `duration`, unless the recording is shorter than a window: then all start at
    0.
    """
    spare = duration - clips * window
    step = window + spare // clips if spare >= 0 else window - (-spare) // clips
    return [max(0, min(clip * step, duration - window)) for clip in range(clips)]


def frames(
    events: Events,
    *,
    steps: int,
    dt: int | None,
    sensor: tuple[int, int] = (128, 128),
    downsample: int = 1,
    axes: Axes = "yx",
    polarity: Polarity = "both",
    backend: Backend = "auto",
) -> np.ndarray:
    """Counts events into frames, int32 `[steps, 2, height/downsample, width/downsample]`.

    With `dt`, bins of that many microseconds start at the time of the first event. With `dt=None`, each step
    has equally many events. Warns if most events lie outside of all bins.

    Args:
        events: the events of a recording.
        steps, dt, sensor, downsample, axes, polarity, backend: see `Framing`.

    Raises:
        DataFormatError: an event lies outside of the sensor.
        ValueError: an argument does not fit.
    """
    framing = Framing(steps, dt, sensor, downsample, axes, polarity, backend)
    columns = [getattr(events, name) for name in COLUMNS]
    origin = int(events.t[0]) if len(events) else 0
    counts: np.ndarray = framing.count(columns, [0], [len(events)], [origin], types=(np.int32,))[0]
    inside = int(counts.sum())
    if dt is not None and 2 * inside < len(events):
        warn_outside(framing, inside, len(events), int(events.t.min()), int(events.t.max()))
    return counts


def framed(*, binary: bool = False, **how: Any) -> Callable[[Events], Tensor]:
    """Returns a function from a recording's `Events` to frames as `EventFrames` gives them, float32
    `[T, 2, H, W]`, from the first event on.

    Args:
        binary: gives 0 and 1 in place of counts.
        how: keywords of `frames`.
    """

    def transform(events: Events) -> Tensor:
        counts = torch.from_numpy(frames(events, **how))
        return (counts.clamp(max=1) if binary else counts).float()

    return transform


def warn_outside(framing: Framing, inside: int, number: int, first: int, last: int) -> None:
    """Warns that most of a recording's events are in no frame."""
    warn(
        f"{inside:,} of {number:,} events lie in the bins, {framing.steps} of {framing.dt:,} us from the "
        f"first event on; all take {last - first:,} us. Is dt in microseconds?"
    )


class Labelled(Protocol):
    """What `Selection` needs of a data set."""

    @property
    def classes(self) -> Sequence[str]:
        """The names of the classes."""

    @property
    def labels(self) -> np.ndarray:
        """The class of each sample, int64 `[N]`."""

    def __len__(self) -> int:
        """How many samples there are."""

    def __getitem__(self, key: Any, /) -> Any:
        """The sample of a key."""


class Selection(Dataset[Any]):
    """Some samples of a data set with `labels` and `classes`. Unlike torch's Subset it takes `Draw` keys.

    Args:
        dataset: the data set.
        indices: the indices of the samples, in order.

    Raises:
        ValueError: the indices are a boolean mask.
        IndexError: an index is outside of the data set.
    """

    def __init__(self, dataset: Labelled, indices: Sequence[int]):
        if np.asarray(indices).dtype == bool:
            raise ValueError("the indices are a mask: pass np.flatnonzero(mask)")
        self.dataset, self.indices = dataset, [int(index) for index in indices]
        outside = [index for index in self.indices if not 0 <= index < len(dataset)]
        if outside:
            raise IndexError(f"index {outside[0]} is outside a data set of {len(dataset)} samples")
        self.classes, self.labels = dataset.classes, dataset.labels[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def identity(self) -> str:
        """A hash that tells these samples from others."""
        dataset: Any = self.dataset  # if it has no identity, its selections have none
        text = json.dumps([dataset.identity, self.indices])
        return hashlib.sha256(text.encode()).hexdigest()

    def __getitem__(self, key: int | Draw) -> Any:
        return self.dataset[self._key(key)]

    def __getitems__(self, keys: Sequence[int | Draw]) -> Sequence[Any]:
        keys = [self._key(key) for key in keys]
        together = getattr(self.dataset, "__getitems__", None)
        return [self.dataset[key] for key in keys] if together is None else together(keys)

    def _key(self, key: int | Draw) -> int | Draw:
        return Draw(self.indices[key.index], key.seed) if isinstance(key, Draw) else self.indices[key]


def select(dataset: Labelled, indices: Sequence[int]) -> Selection:
    """The samples at `indices`, in this order, as a `Selection`: a validation split, a fold, a small run."""
    return Selection(dataset, indices)
