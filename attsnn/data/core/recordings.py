"""Frames of the clips of a store: what every set of event recordings gives once it is prepared."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data._utils.collate import default_collate_fn_map

from attsnn._extension import Backend
from attsnn.data.core.events import COLUMNS, Draw, Events, clip_starts, generator, random_start
from attsnn.data.core.files import plain
from attsnn.data.core.framing import Axes, Framing, Polarity
from attsnn.data.core.splits import canonical, in_train
from attsnn.data.core.store import MANIFEST, SPLITS, UNDIVIDED, Clip, Store
from attsnn.data.errors import DataError, DataMissingError, warn

Window = Literal["random", "clips", "first"]


class FrameSample(NamedTuple):
    """A sample of event frames.

    Args:
        frames: `[T, 2, H, W]`, or `[clips, T, 2, H, W]` for `window="clips"`.
        label: the number of its class.
    """

    frames: Tensor
    label: int


class FrameBatch(list[FrameSample]):
    """`FrameSample`s whose frames are parts of one tensor, `frames [N, ...]`; `labels` is int64 `[N]`."""

    def __init__(self, frames: Tensor, labels: Tensor):
        super().__init__(map(FrameSample, frames, labels.tolist()))
        self.frames, self.labels = frames, labels


def collate_frames(samples: Sequence[FrameSample], **_: Any) -> tuple[Tensor, Tensor]:
    """Makes a batch of `FrameSample`s: (frames `[N, ...]`, labels int64 `[N]`).

    Samples that `EventFrames` framed together as a batch are not copied. PyTorch's default collate function
    does the same.
    """
    if isinstance(samples, FrameBatch):
        return samples.frames, samples.labels
    frames = torch.stack([sample.frames for sample in samples])
    return frames, torch.tensor([sample.label for sample in samples], dtype=torch.int64)


default_collate_fn_map[FrameSample] = collate_frames


class EventFrames(Dataset[FrameSample]):
    """The clips of a store as `FrameSample`s: (float32 frames `[steps, 2, height, width]`, int label).

    Samples are pure functions of their keys, and the data set can be sent to workers. Data loaders call
    `__getitems__`, which frames a whole batch at once, on as many threads as PyTorch has.

    Args:
        root: the store, a folder of prepared recordings.
        split: "train" or "test".
        steps: time steps T of a sample.
        dt_ms: milliseconds of a step. None divides the whole clip into steps of equally many events
            (`Framing`).
        window: where a sample of `steps * dt_ms` lies in its clip. "first" starts at the clip's first event.
            "random" is the published training rule: uniform, drawn from the seed of a `Draw` key, and as
            "first" for any other key. "clips" is the published test rule: `clips` windows spread over the
            clip, for a vote; the frames are `[clips, steps, 2, height, width]`.
        clips: the number of windows of "clips".
        downsample: divides the sensor's sides.
        axes: "xy" gives published, transposed frames (row = x).
        binary: gives 0 and 1 in place of counts.
        polarity: "collapsed" counts both polarities in channel 1, as MA-SNN's code does for CIFAR10-DVS.
        split_rule: how to divide a store without a split: "first900", "last900", "name_order" or
            "random-SEED" (see `core/splits.py`). It is kept as `split_rule`; None if the store has a split of
            its own.
        augment: a function of (frames, seed), such as `EventAugment`. It is applied in the training split
            alone, whichever split it is given to, and for `Draw` keys alone.
        compact: gives uint8, int16 or int32 frames, the smallest type that holds the counts of all samples
            that are asked for at once. Convert them to float where they are used.
        backend: see `Framing`.

    Raises:
        DataMissingError: there is no store at `root`.
        DataError: the split is empty, or `split_rule` does not fit the store.
        ValueError: an argument does not fit.
    """

    where = "run `python -m attsnn.data prepare`"  # what to do if nothing is prepared

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: Literal["train", "test"],
        *,
        steps: int,
        dt_ms: float | None,
        window: Window = "first",
        clips: int = 10,
        downsample: int = 1,
        axes: Axes = "yx",
        binary: bool = False,
        polarity: Polarity = "both",
        split_rule: str | None = None,
        augment: Callable[[Tensor, int], Tensor] | None = None,
        compact: bool = False,
        backend: Backend = "auto",
    ):
        if split not in SPLITS:
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        if window not in ("random", "clips", "first"):
            raise ValueError(f"window must be 'random', 'clips' or 'first', got {window!r}")
        if clips < 1:
            raise ValueError(f"clips must be at least 1, got {clips}")
        if dt_ms is None and (window == "random" or (window == "clips" and clips > 1)):
            raise ValueError(
                f"steps of equally many events span the clip: wanted window='first', got {window!r}"
            )
        if not (Path(root) / MANIFEST).is_file():
            raise DataMissingError(f"{plain(root)}: no prepared data here; {self.where}")
        self.store, self.split = Store(root), split
        self.classes, self.split_rule = self.store.classes, split_rule and canonical(split_rule)
        self._clips = self._of_split()
        self.labels = np.array([clip.label for clip in self._clips], np.int64)
        self.window, self.clips, self.binary, self.compact = window, clips, binary, compact
        self.augment = augment if split == "train" else None
        self._says_of_keys = self.augment is not None or window == "random"
        if dt_ms is not None and not 0.001 <= dt_ms < 1e9:
            raise ValueError(f"dt_ms must be milliseconds, from 0.001 on, or None; got {dt_ms!r}")
        dt = None if dt_ms is None else round(dt_ms * 1000)
        self.framing = Framing(steps, dt, self.store.sensor, downsample, axes, polarity, backend)

    def _of_split(self) -> list[Clip]:
        clips = self.store.clips
        undivided = any(clip.split == UNDIVIDED for clip in clips)
        if self.split_rule is None:
            if undivided:
                raise DataError(
                    f"{plain(self.store.path)}: has no split of its own; name one, as split_rule='name_order'"
                )
            chosen = [clip for clip in clips if clip.split == self.split]
            if not chosen:
                raise DataError(f"{plain(self.store.path)}: holds no recording of the {self.split} split")
            return chosen
        if not undivided:
            raise DataError(
                f"{plain(self.store.path)}: has a split of its own; leave out split_rule={self.split_rule!r}"
            )
        labels = np.array([clip.label for clip in clips], np.int64)
        train = in_train(self.split_rule, [clip.recording for clip in clips], labels)
        chosen = [clip for clip, first in zip(clips, train, strict=True) if first == (self.split == "train")]
        if not chosen:
            raise DataError(
                f"{plain(self.store.path)}: {self.split_rule} leaves the {self.split} split of its "
                f"{len(clips)} recordings empty; choose another split_rule, or prepare from train/ and test/"
            )
        return chosen

    def __len__(self) -> int:
        return len(self._clips)

    @property
    def identity(self) -> str:
        """A hash of the events, names and labels of these clips. It is the same for a copy of the store,
        and for a store prepared from another archive of the same files.
        """
        clips = sorted((c.recording, c.stop - c.start, c.label) for c in self._clips)
        known = [clips, self.classes, self.store.sensor, self.store.manifest.get("contents")]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()

    @property
    def people(self) -> np.ndarray | None:
        """Who moves in each clip, int64 `[N]`; None if the set, or a name in it, does not say."""
        found = [self.person(clip.recording) for clip in self._clips]
        return None if None in found else np.array(found, np.int64)

    def person(self, recording: str) -> int | None:
        """The number of the person who moves in a recording, by its name; None if the set does not say."""
        return None

    def events(self, index: int) -> Events:
        """All events of clip `index`; their times are those of its recording."""
        return self.store.events(self._clips[index])

    def __getitem__(self, key: int | Draw) -> FrameSample:
        return self._frames([key])[0]

    def __getitems__(self, keys: Sequence[int | Draw]) -> Sequence[FrameSample]:
        if type(self).__getitem__ is not EventFrames.__getitem__:  # a subclass has its own, which is used
            return [self[key] for key in keys]
        return self._frames(keys)

    def _frames(self, keys: Sequence[int | Draw]) -> FrameBatch:
        draws = [key if isinstance(key, Draw) else Draw(key, -1) for key in keys]
        draws = [Draw(range(len(self))[index], seed) for index, seed in draws]
        windows = [window for draw in draws for window in self._windows(draw)]
        columns = [getattr(self.store.columns, name) for name in COLUMNS]
        first, last, origin = zip(*windows, strict=True) if windows else ((), (), ())
        counts = self.framing.count(columns, first, last, origin, threads=torch.get_num_threads())
        frames = torch.from_numpy(counts)
        if self.window == "clips":
            frames = frames.view(len(keys), self.clips, *frames.shape[1:])
        if self.binary:
            frames = frames.clamp_(max=1)
        if not self.compact:
            frames = frames.float()
        if self._says_of_keys and any(seed < 0 for _, seed in draws):
            self._says_of_keys = False
            warn(
                "plain indices draw nothing at random: there is no augmentation, and window='random' is "
                "'first'; ask for data.Draw(index, seed), as attsnn.engine.Batches(dataset, batch, seed, "
                "key=data.Draw) does"
            )
        if self.augment is not None and len(frames):
            frames = torch.stack(
                [
                    self.augment(f, seed) if seed >= 0 else f
                    for f, (_, seed) in zip(frames, draws, strict=True)
                ]
            )
        return FrameBatch(frames, torch.from_numpy(self.labels[[index for index, _ in draws]]))

    def _windows(self, draw: Draw) -> list[tuple[int, int, int]]:
        """(first, last, origin) of each window of a sample; the first two index the store's columns."""
        clip = self._clips[draw.index]
        if clip.start == clip.stop or self.framing.dt is None:
            return [(clip.start, clip.stop, 0)] * (self.clips if self.window == "clips" else 1)
        t = self.store.columns.t[clip.start : clip.stop]
        first, last, length = int(t[0]), int(t[-1]), self.framing.steps * self.framing.dt
        starts = [first]
        if self.window == "random" and draw.seed >= 0:
            starts = [random_start(first, last, length, generator(draw.seed))]
        elif self.window == "clips":
            starts = [first + start for start in clip_starts(last - first, length, self.clips)]
        windows = []
        for start in starts:
            a, b = np.searchsorted(t, (start, start + length)).tolist()
            windows.append((clip.start + a, clip.start + b, int(t[a]) if a < b else 0))
        return windows
