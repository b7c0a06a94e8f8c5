"""CIFAR10-DVS (Li et al., 2017): 10,000 images of CIFAR-10, moved in front of a DVS128, 1,000 per class.

`prepare` takes the recordings as published (AEDAT 2.0), as MATLAB matrices of dat2mat.m (.mat, either kind),
or as SpikingJelly's `events_np`. It brings all of them to one orientation: upright, as SpikingJelly has them,
with ON = 1. No split was published, so the store has none; `CIFAR10DVS(..., split_rule=...)` chooses one.
"""

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np

from attsnn._extension import Backend
from attsnn.data.core.contract import STRICT, DataSet, File
from attsnn.data.core.decoding import Recording
from attsnn.data.core.events import Events
from attsnn.data.core.files import plain
from attsnn.data.core.preparing import Entry, write_recordings
from attsnn.data.core.raw import open_raw
from attsnn.data.core.recordings import EventFrames
from attsnn.data.core.store import SPLITS, UNDIVIDED, describe, verifier
from attsnn.data.errors import warn
from attsnn.data.formats import aedat2, columns, mat

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
RECORDINGS = 1000  # of a class
SIDE = 128
_CLASS = "|".join(CLASSES)
KINDS = (".aedat", ".mat", ".npz")
PATTERNS = tuple(re.compile(rf"(?:{_CLASS})/[^/]+(?i:\{kind})") for kind in KINDS)
_FIGSHARE = {
    "airplane": (7712788, "0afd5c4bf9ae06af762a77b180354fdd"),
    "automobile": (7712791, "8438dfeba3bc970c94962d995b1b9bdd"),
    "bird": (7712794, "a9c207c91c55b9dc2002dc21c684d785"),
    "cat": (7712812, "52c63c677c2b15fa5146a8daf4d56687"),
    "deer": (7712815, "b6bf21f6c04d21ba4e23fc3e36c8a4a3"),
    "dog": (7712818, "f379ebdf6703d16e0a690782e62639c3"),
    "frog": (7712842, "cad6ed91214b1c7388a5f6ee56d08803"),
    "horse": (7712851, "e7cbbf77bec584ffbf913f00e682782a"),
    "ship": (7712836, "41c7bd7d6b251be82557c6cce9a7d5c9"),
    "truck": (7712839, "89f3922fd147d9aeff89e76a2b0b70a7"),
}
FILES = tuple(
    File(f"{name}.zip", md5=md5, urls=(f"https://ndownloader.figshare.com/files/{number}",))
    for name, (number, md5) in _FIGSHARE.items()
)
WHERE = (
    "run `python -m attsnn.data download cifar10_dvs RAW` (ten archives, 7.8 GB, from "
    "https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671), then "
    "`python -m attsnn.data prepare cifar10_dvs RAW OUT`"
)


def prepare(
    raw: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    strict: bool = False,
    progress: bool = True,
    backend: Backend = "auto",
) -> Path:
    """Writes the store `out`. `raw` is a folder with the archives or their content, or with `<class>/`
    folders of .aedat, .mat or .npz files.

    `strict` refuses times that decrease. Raises DataMissingError, DataFormatError, or DataError if the disk
    is too small.
    """
    source = open_raw(raw, *PATTERNS, folder="events_np", depth=2, kinds=KINDS, missing=WHERE)
    counts = Counter(name.partition("/")[0] for name in source.names)
    odd = [f"{counts[name]} of {name}" for name in CLASSES if counts[name] != RECORDINGS]
    if odd:
        warn(f"{plain(source.path)}: found {', '.join(odd)}; published are {RECORDINGS} of each")
    entries = [
        Entry(name, CLASSES.index(name.partition("/")[0]), name.rpartition(".")[0], UNDIVIDED)
        for name in source.names
    ]

    def decode(name: str, data: np.ndarray) -> Recording:
        how: dict[str, Any] = {"path": source.where(name), "sensor": (SIDE, SIDE), "strict": strict}
        kind = name[name.rindex(".") :].lower()
        if kind == ".aedat":
            found = aedat2.decode(data, **how, backend=backend)
            return found._replace(events=upright(found.events, x="y", y="x", turned="xyp"))
        if kind == ".mat":
            found = mat.decode(data, **how)
            return found._replace(events=upright(found.events, x="y", y="x", turned="x"))
        return columns.decode(data, **how)

    about = {"dataset": "cifar10_dvs"}
    return write_recordings(
        source, out, entries, decode, classes=CLASSES, sensor=(SIDE, SIDE), about=about, progress=progress
    )


def upright(events: Events, *, x: str, y: str, turned: str) -> Events:
    """Turns events upright. `x` and `y` say which column each of the two is; `turned` names those of x, y, p
    that count from the other end.
    """
    parts = {"x": getattr(events, x), "y": getattr(events, y), "p": events.p}
    last = {"x": SIDE - 1, "y": SIDE - 1, "p": 1}
    for name in turned:
        parts[name] = (last[name] - parts[name]).astype(parts[name].dtype)
    return Events(events.t, **parts)


class CIFAR10DVS(EventFrames):
    """CIFAR10-DVS (Li et al., 2017), by default as in MA-SNN: 20 steps of 10 ms on 128 x 128 pixels.

    The first 900 recordings of each class are for training by default. For PFA use
    `steps=12, dt_ms=None, split_rule="name_order"`. Other arguments and errors are those of `EventFrames`.
    """

    where = WHERE

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: Literal["train", "test"],
        *,
        steps: int = 20,
        dt_ms: float | None = 10.0,
        split_rule: str = "first900",
        **how: Any,
    ):
        super().__init__(root, split, steps=steps, dt_ms=dt_ms, split_rule=split_rule, **how)


CIFAR10_DVS = DataSet(
    name="cifar10_dvs",
    title="CIFAR10-DVS: 10,000 images of CIFAR-10 that moved before a DVS128 sensor, ten classes",
    where=WHERE,
    licence="that of its figshare record, 4724671; CIFAR-10 has none",
    classes=CLASSES,
    splits=SPLITS,
    open=CIFAR10DVS,
    prepare=prepare,
    verify=verifier("cifar10_dvs", {UNDIVIDED: RECORDINGS * len(CLASSES)}),
    describe=describe,
    files=FILES,
    raw="the folder of the archives, or of <class>/ with .aedat, .mat or SpikingJelly's .npz files",
    flags=STRICT,
)
