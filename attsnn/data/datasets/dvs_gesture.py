"""DVS128 Gesture (IBM, CVPR 2017, CC BY 4.0): eleven gestures of 29 people in front of a DVS128 sensor.

`prepare` turns the raw files `userNN_<light>.aedat` and `userNN_<light>_labels.csv` into a store, which
`DVSGesture` opens as a map-style data set of frames: 1176 train and 288 test clips. The rules by which
samples are taken are those of MA-SNN (Yao et al., TPAMI 2023).
"""

import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from attsnn._extension import Backend
from attsnn.data.core.contract import STRICT, DataSet, File
from attsnn.data.core.decoding import Recording
from attsnn.data.core.files import plain
from attsnn.data.core.preparing import Entry, write_recordings
from attsnn.data.core.raw import Listing, Raw, list_raw, open_raw
from attsnn.data.core.recordings import EventFrames
from attsnn.data.core.store import SPLITS, StoreWriter, describe, verifier
from attsnn.data.errors import DataError, DataFormatError, DataMissingError, warn
from attsnn.data.formats import aedat3, columns
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
USER = re.compile(r"user(\d{2,3})_.*", re.DOTALL)
ARRAYS = re.compile(r"(?:train|test)/[0-9]{1,2}/[^/]+\.npz")  # SpikingJelly's events_np
FILES = (
    File(
        "DvsGesture.tar.gz",
        md5="8a5c71fb11e24e5ca5b11866ca6c00a1",
        urls=("https://www.dropbox.com/s/cct5kyilhtsliup/DvsGesture.tar.gz?dl=1",),  # snnTorch's copy
    ),
)
WHERE = (
    "get DvsGesture.tar.gz (2.7 GB, CC BY 4.0) from https://research.ibm.com/interactive/dvsgesture/ (or a "
    "third party's copy with `python -m attsnn.data download dvs_gesture RAW`) and run "
    "`python -m attsnn.data prepare dvs_gesture DvsGesture.tar.gz OUT`"
)
# The one label known to be wrong: recording, label, end as published (in the next interval), end corrected.
KNOWN_LABEL = ("user22_led", 8, 110590564, 104000000)


def prepare(
    raw: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    strict: bool = False,
    fix_known_labels: bool = False,
    progress: bool = True,
    about: dict[str, Any] | None = None,
    backend: Backend = "auto",
) -> Path:
    """Writes the store `out` from the published files. `raw` is their folder, the one above, or the .tar.gz.

    `strict` refuses times that decrease anywhere. `fix_known_labels` corrects the end of class 9 in
    user22_led. `about` is kept in the manifest. Raises DataMissingError, or DataFormatError with the file and
    the place in it.
    """
    listing = list_raw(raw, WHERE)
    if (arrays := _events_np(listing)) is not None:
        if fix_known_labels:
            raise DataError("labels can be fixed in the recordings as published alone, not in events_np")
        return _prepare_arrays(arrays, out, strict=strict, progress=progress)
    source = open_raw(listing, RAW_FILES, folder="DvsGesture", kinds=(".aedat",), missing=WHERE)
    if not any(name.endswith(".aedat") for name in source.names):
        raise DataMissingError(f"{raw}: there are no recordings; {WHERE}")
    texts = source.texts(name for name in source.names if not name.endswith(".aedat"))
    classes: tuple[str, ...] = CLASSES
    if "gesture_mapping.csv" in texts:
        classes = read_classes(texts["gesture_mapping.csv"], source.where("gesture_mapping.csv"))
    split = _splits(source, texts)
    intervals = {name: _intervals(source, texts, name, len(classes), fix_known_labels) for name in split}
    if classes == CLASSES:
        _warn_of_counts(Counter(split[name] for name in split for _ in intervals[name]))
    manifest: dict[str, Any] = {
        "dataset": "dvs_gesture",
        "source": plain(Path(raw).name),
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
                    warn(f"{source.where(file)}: no events from {start} to {end}")
                writer.append(clip, label=label, recording=name, split=split[name])
    return Path(out)


def _events_np(listing: Listing) -> Raw | None:
    """SpikingJelly's arrays, if there are some and no recordings as published."""
    if any(name.endswith(".aedat") for name in Raw(listing, RAW_FILES, "DvsGesture").names):
        return None
    arrays = Raw(listing, ARRAYS, "events_np", depth=3)
    return arrays if arrays.names else None


def _prepare_arrays(source: Raw, out: str | os.PathLike[str], *, strict: bool, progress: bool) -> Path:
    parts = {name: name.split("/") for name in source.names}
    entries = [Entry(n, int(label), Path(file).stem, split) for n, (split, label, file) in parts.items()]
    strange = [entry.file for entry in entries if entry.label >= len(CLASSES)]
    if strange:
        raise DataFormatError(f"found a class above {len(CLASSES) - 1}", path=source.where(strange[0]))

    _warn_of_counts(Counter(entry.split for entry in entries))

    def decode(name: str, data: np.ndarray) -> Recording:
        return columns.decode(data, path=source.where(name), sensor=SENSOR, strict=strict)

    about = {"dataset": "dvs_gesture"}
    return write_recordings(
        source, out, entries, decode, classes=CLASSES, sensor=SENSOR, about=about, progress=progress
    )


def _splits(source: Raw, texts: dict[str, bytes]) -> dict[str, str]:
    """The split of each recording, from the trial lists if there are any. Otherwise users
    1-23 train, 24-29 test.
    """
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
        warn(f"{source.path}: no trial list names {', '.join(unused)}")
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


def _warn_of_counts(found: Mapping[str, int]) -> None:
    for part, wanted in CLIPS.items():
        if found[part] != wanted:
            warn(f"found {found[part]} {part} clips; the published data set has {wanted}")


class DVSGesture(EventFrames):
    """DVS128 Gesture (IBM, CVPR 2017), by default as in MA-SNN: 60 steps of 15 ms on 32 x 32 pixels.

    Other arguments and errors are those of `EventFrames`.
    """

    where = WHERE

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: Literal["train", "test"],
        *,
        steps: int = 60,
        dt_ms: float | None = 15.0,
        downsample: int = 4,
        **how: Any,
    ):
        super().__init__(root, split, steps=steps, dt_ms=dt_ms, downsample=downsample, **how)

    def person(self, recording: str) -> int | None:
        """7 for user07_led, and for the array user07_led_3."""
        match = USER.fullmatch(recording)
        return match and int(match.group(1))


DVS_GESTURE = DataSet(
    name="dvs_gesture",
    title="DVS128 Gesture (IBM, CVPR 2017): eleven gestures of 29 people, 1176 + 288 clips",
    where=WHERE,
    licence="CC BY 4.0",
    classes=CLASSES,
    splits=SPLITS,
    open=DVSGesture,
    prepare=prepare,
    verify=verifier("dvs_gesture", CLIPS),
    describe=describe,
    files=FILES,
    raw="the folder or .tar.gz as published, or SpikingJelly's events_np",
    flags=STRICT | {"fix_known_labels": "correct the end of class 9 in user22_led"},
)
