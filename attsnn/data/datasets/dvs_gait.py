"""DVS128 Gait (Wang et al., CVPR 2019 and TPAMI 2021): who is it that walks in front of a DVS128 sensor?

The files are `{train,test}/<number>/*.txt`, with a row `t x y p` for each event. The class of a folder is the
rank of its number among all numbers. The version of TPAMI (Day or Night) has 20 people, that of CVPR has 21;
Attention SNN used the latter.
"""

import os
import re
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np

from attsnn._extension import Backend
from attsnn.data.core.contract import STRICT, DataSet
from attsnn.data.core.decoding import Recording
from attsnn.data.core.files import plain
from attsnn.data.core.preparing import Entry, write_recordings
from attsnn.data.core.raw import open_raw
from attsnn.data.core.recordings import EventFrames
from attsnn.data.core.store import SPLITS, describe, verifier
from attsnn.data.errors import DataFormatError, warn
from attsnn.data.formats import text

SENSOR = (128, 128)
PEOPLE = {20: "the version of TPAMI 2021", 21: "the version of CVPR 2019"}
PATTERN = re.compile(r"(?:train|test)/[0-9]{1,6}/[^/]+(?i:\.txt)")
WHERE = (
    "follow https://github.com/zhangxiann/TPAMI_Gait_Identification to Baidu Pan, which no program can: "
    "DVS128-Gait-Day pan.baidu.com/s/1F3Uo-fVy1S7n5plmEXFl4w (code mk55), DVS128-Gait-Night "
    "pan.baidu.com/s/1vijraYQshlURRqF2I1zE8A (code ih83); unpack it and run "
    "`python -m attsnn.data prepare dvs_gait RAW OUT`, where RAW holds train/<number>/*.txt and test/"
)


def prepare(
    raw: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    strict: bool = False,
    progress: bool = True,
    backend: Backend = "auto",
) -> Path:
    """Writes the store `out` from `raw`, the folder or archive of train/ and test/, and prints how many
    people it holds.

    `strict` refuses times that decrease. Raises DataMissingError, DataFormatError, or DataError if the disk
    is too small.
    """
    source = open_raw(raw, PATTERN, folder="origin", depth=3, kinds=(".txt", ".csv"), missing=WHERE)
    parts = {name: name.split("/") for name in source.names}
    if (splits := {split for split, *_ in parts.values()}) != set(SPLITS):
        raise DataFormatError(
            f"found {splits.pop()}/ alone; wanted train/ and test/", path=plain(source.path)
        )
    people = sorted({int(number) for _, number, _ in parts.values()})
    known = PEOPLE.get(len(people), "neither 20 nor 21, the published numbers")
    if len(people) not in PEOPLE:
        warn(f"{plain(source.path)}: found {len(people)} people, {known}")
    elif progress:
        print(f"{plain(source.path)}: {len(people)} people, {known}", file=sys.stderr)
    entries = [
        Entry(name, people.index(int(number)), f"{number}/{Path(file).stem}", split)
        for name, (split, number, file) in parts.items()
    ]

    def decode(name: str, data: np.ndarray) -> Recording:
        return text.decode(data, path=source.where(name), sensor=SENSOR, strict=strict, backend=backend)

    classes = [str(number) for number in people]
    about = {"dataset": "dvs_gait"}
    return write_recordings(
        source, out, entries, decode, classes=classes, sensor=SENSOR, about=about, progress=progress
    )


class DVSGait(EventFrames):
    """DVS128 Gait (Wang et al., CVPR 2019 and TPAMI 2021), by default as in MA-SNN: 8 steps of 500 ms.

    The frames have 128 x 128 pixels. Other arguments and errors are those of `EventFrames`.
    """

    where = WHERE

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: Literal["train", "test"],
        *,
        steps: int = 8,
        dt_ms: float | None = 500.0,
        **how: Any,
    ):
        super().__init__(root, split, steps=steps, dt_ms=dt_ms, **how)


DVS_GAIT = DataSet(
    name="dvs_gait",
    title="DVS128 Gait: 20 or 21 people who walk before a DVS128 sensor, some 4,000 recordings",
    where=WHERE,
    licence="none is stated; how people walk is biometric data",
    splits=SPLITS,
    open=DVSGait,
    prepare=prepare,
    verify=verifier("dvs_gait"),
    describe=describe,
    raw="the folder of train/<number>/*.txt and test/<number>/*.txt",
    flags=STRICT,
)
