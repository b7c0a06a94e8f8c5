"""DVS128 Gesture (IBM, CVPR 2017, CC BY 4.0): eleven gestures of 29 people before a DVS128 sensor.

Raw files `userNN_<light>.aedat` with `userNN_<light>_labels.csv` -> `prepare` -> a store -> `DVSGesture`, a
map-style data set of frames. 1176 train and 288 test clips; the sample rules are those of MA-SNN (Yao et al.,
TPAMI 2023).
"""

import os
import re
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from attsnn._extension import Backend
from attsnn.data.core.contract import DataSet, File
from attsnn.data.core.events import (
    Axes,
    Draw,
    Events,
    clip_starts,
    frames,
    generator,
    make_events,
    random_start,
)
from attsnn.data.core.raw import Raw, open_raw
from attsnn.data.core.store import MANIFEST, SPLITS, Store, StoreWriter, describe, verify
from attsnn.data.errors import DataFormatError, DataMissingError
from attsnn.data.formats import aedat3
from attsnn.data.formats.labels import Interval, read_classes, read_intervals, read_trials

CLASSES = (
    "hand_clapping",
    "right_hand_wave",
    "left_hand_wave",
    "right_arm_clockwise",
    "right_arm_counter_clockwise",
    "left_arm_clockwise",
    "left_arm_counter_clockwise",
    "arm_roll",
    "air_drums",
    "air_guitar",
    "other_gestures",
)
SENSOR = (128, 128)
CLIPS = {"train": 1176, "test": 288}
LAST_TRAIN_USER = 23
RAW_FILES = re.compile(
    r"user\d{2,3}_[a-z_]+(?:\.aedat|_labels\.csv)|trials_to_(?:train|test)\.txt|gesture_mapping\.csv"
)
FILES = (File("DvsGesture.tar.gz", md5="8a5c71fb11e24e5ca5b11866ca6c00a1"),)
WHERE = (
    "get DvsGesture.tar.gz (2.7 GB, CC BY 4.0) from https://research.ibm.com/interactive/dvsgesture/ and run "
    "`python -m attsnn.data prepare dvs_gesture DvsGesture.tar.gz OUT`"
)
# The one label known to be wrong: recording, label, end as published (in the next interval), as corrected.
KNOWN_LABEL = ("user22_led", 8, 110590564, 104000000)


def prepare(
    raw: str | os.PathLike,
    out: str | os.PathLike,
    *,
    strict: bool = False,
    fix_known_labels: bool = False,
    progress: bool = True,
    about: dict | None = None,
    backend: Backend = "auto",
) -> Path:
    """Writes the store `out` from the published files: `raw` is their folder, the one above, or the .tar.gz.

    `strict` refuses time that decreases anywhere; `fix_known_labels` corrects the end of class 9 in
    user22_led. `about` is kept in the manifest. Raises DataMissingError, or DataFormatError with the file and
    the place in it.
    """
    source = open_raw(raw, RAW_FILES, folder="DvsGesture", missing=WHERE)
    if not any(name.endswith(".aedat") for name in source.names):
        raise DataMissingError(f"{raw}: there are no recordings; {WHERE}")
    texts = source.texts(name for name in source.names if not name.endswith(".aedat"))
    classes = CLASSES
    if "gesture_mapping.csv" in texts:
        classes = read_classes(texts["gesture_mapping.csv"], source.where("gesture_mapping.csv"))
    split = _splits(source, texts)
    intervals = {name: _intervals(source, texts, name, len(classes), fix_known_labels) for name in split}
    if classes == CLASSES:
        _warn_of_counts(split, intervals)
    manifest = {
        "source": Path(raw).name,
        "fixed_labels": fix_known_labels,
        "sorted_events": 0,
        **(about or {}),
    }
    with StoreWriter(out, classes=classes, sensor=SENSOR, about=manifest) as writer:
        files = source.recordings([f"{name}.aedat" for name in split])
        for file, data in tqdm(files, total=len(split), unit="file", desc="prepare", disable=not progress):
            name = file.removesuffix(".aedat")
            recording = aedat3.decode(
                data, path=source.where(file), sensor=SENSOR, strict=strict, backend=backend
            )
            manifest["sorted_events"] += recording.disordered
            for label, start, end in intervals[name]:
                clip = recording.events.between(start, end)
                if not len(clip):
                    warnings.warn(f"{source.where(file)}: no events from {start} to {end}", stacklevel=2)
                writer.append(clip, label=label, recording=name, split=split[name])
    return Path(out)


def _splits(source: Raw, texts: dict[str, bytes]) -> dict[str, str]:
    """The split of each recording: from the trial lists if there are, else users 1-23 train, 24-29 test."""
    names = {name.removesuffix(".aedat") for name in source.names if name.endswith(".aedat")}
    lists = {s: f"trials_to_{s}.txt" for s in SPLITS if f"trials_to_{s}.txt" in texts}
    if not lists:
        return {n: "train" if int(n[4:].split("_")[0]) <= LAST_TRAIN_USER else "test" for n in sorted(names)}
    if len(lists) == 1:
        raise DataFormatError(
            "one of trials_to_train.txt and trials_to_test.txt is missing", path=source.path
        )
    train, test = (read_trials(texts[lists[s]], source.where(lists[s]), names) for s in SPLITS)
    twice = sorted(set(train) & set(test))
    if twice:
        raise DataFormatError(f"{twice[0]} is also in {lists['train']}", path=source.where(lists["test"]))
    unused = sorted(names - set(train) - set(test))
    if unused:
        warnings.warn(f"{source.path}: no trial list names {', '.join(unused)}", stacklevel=3)
    return dict.fromkeys(train, "train") | dict.fromkeys(test, "test")


def _intervals(source: Raw, texts: dict[str, bytes], name: str, classes: int, fix: bool) -> list[Interval]:
    file = f"{name}_labels.csv"
    if file not in texts:
        raise DataFormatError("is missing; each recording needs its label CSV", path=source.where(file))
    intervals = read_intervals(texts[file], source.where(file), classes)
    recording, label, wrong, right = KNOWN_LABEL
    if fix and name == recording:
        return [i._replace(end=right) if (i.label, i.end) == (label, wrong) else i for i in intervals]
    return intervals


def _warn_of_counts(split: dict[str, str], intervals: dict[str, list[Interval]]) -> None:
    for part, wanted in CLIPS.items():
        found = sum(len(intervals[name]) for name in split if split[name] == part)
        if found != wanted:
            warnings.warn(f"found {found} {part} clips; the published data set has {wanted}", stacklevel=3)


class DVSGesture(Dataset):
    """Clips of a prepared store as (float32 frames `[steps, 2, height, width]`, int label).

    `split` is "train" or "test". A sample covers `steps` bins of `dt_ms` milliseconds; `window` says where:
      "random": the published training rule, uniform by the seed of a `Draw` key; "first" without one;
      "first":  from the clip's first event;
      "clips":  the published test rule, `clips` windows spread over the clip, to be counted by `vote`:
                frames `[clips, steps, 2, height, width]`.
    `downsample` divides the sensor's sides, `axes="xy"` gives published, transposed frames (row = x),
    `binary` gives 0 and 1 for counts. Samples are pure functions of their keys; the data set can be sent to
    workers.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        split: Literal["train", "test"],
        *,
        steps: int = 60,
        dt_ms: float = 15.0,
        downsample: int = 4,
        window: Literal["random", "clips", "first"] = "first",
        clips: int = 10,
        axes: Axes = "yx",
        binary: bool = False,
        backend: Backend = "auto",
    ):
        if split not in SPLITS:
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        if window not in ("random", "clips", "first"):
            raise ValueError(f"window must be 'random', 'clips' or 'first', got {window!r}")
        if clips < 1:
            raise ValueError(f"clips must be at least 1, got {clips}")
        if not (Path(root) / MANIFEST).is_file():
            raise DataMissingError(f"{root}: no prepared data here; {WHERE}")
        self.store = Store(root)
        self.classes = self.store.classes
        self._clips = [clip for clip in self.store.clips if clip.split == split]
        self.labels = np.array([clip.label for clip in self._clips], np.int64)
        self.window, self.clips, self.binary = window, clips, binary
        self._frames = {"steps": steps, "dt": round(dt_ms * 1000), "downsample": downsample}
        self._frames |= {"axes": axes, "sensor": self.store.sensor, "backend": backend}
        frames(make_events([], [], [], []), **self._frames)  # refuses bad settings now

    def __len__(self) -> int:
        return len(self._clips)

    def events(self, index: int) -> Events:
        """All events of clip `index`; times are those of its recording."""
        return self.store.events(self._clips[index])

    def __getitem__(self, key: int | Draw) -> tuple[torch.Tensor, int]:
        index, seed = key if isinstance(key, Draw) else (key, None)
        clip = self.events(index)
        first, last = (int(clip.t[0]), int(clip.t[-1])) if len(clip) else (0, 0)
        length = self._frames["steps"] * self._frames["dt"]
        starts = [first]
        if self.window == "random" and seed is not None:
            starts = [random_start(first, last, length, generator(seed))]
        elif self.window == "clips":
            starts = [first + start for start in clip_starts(last - first, length, self.clips)]
        counts = [frames(clip.between(start, start + length), **self._frames) for start in starts]
        sample = torch.from_numpy(np.stack(counts) if self.window == "clips" else counts[0]).float()
        return sample.clamp_(max=1) if self.binary else sample, int(self.labels[index])


DVS_GESTURE = DataSet(
    name="dvs_gesture",
    title="DVS128 Gesture (IBM, CVPR 2017): eleven gestures of 29 people, 1176 + 288 clips",
    where=WHERE,
    licence="CC BY 4.0",
    classes=CLASSES,
    splits=SPLITS,
    open=DVSGesture,
    prepare=prepare,
    verify=verify,
    describe=describe,
    files=FILES,
    raw="the folder or .tar.gz as published",
    flags={
        "strict": "refuse any time that decreases",
        "fix_known_labels": "correct the end of class 9 in user22_led",
    },
)
