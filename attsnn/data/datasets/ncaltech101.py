"""N-Caltech101 (Orchard et al., 2015): 8,709 images of Caltech101 that moved in front of an ATIS sensor.

There are 101 classes, 100 objects and the background; `Faces` was removed, `Faces_easy` stays. Coordinates
stay on the canvas of 180 x 240 pixels, whose upper left part a recording fills. No split was published, so
the store has none; `NCaltech101(..., split_rule=...)` chooses one.
"""

import os
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np

from attsnn._extension import Backend
from attsnn.data.core.contract import STRICT, DataSet, File
from attsnn.data.core.decoding import Recording
from attsnn.data.core.files import plain
from attsnn.data.core.preparing import Entry, write_recordings
from attsnn.data.core.raw import open_raw
from attsnn.data.core.recordings import EventFrames
from attsnn.data.core.store import SPLITS, UNDIVIDED, describe, verifier
from attsnn.data.errors import DataMissingError, warn
from attsnn.data.formats import atis

_NAMES = """
    BACKGROUND_Google Faces_easy Leopards Motorbikes accordion airplanes anchor ant barrel bass beaver
    binocular bonsai brain brontosaurus
    buddha butterfly camera cannon car_side ceiling_fan cellphone chair chandelier
    cougar_body cougar_face crab crayfish crocodile crocodile_head cup dalmatian dollar_bill dolphin dragonfly
    electric_guitar elephant emu euphonium ewer ferry flamingo flamingo_head garfield gerenuk gramophone
    grand_piano hawksbill headphone hedgehog helicopter ibis inline_skate joshua_tree kangaroo ketch lamp
    laptop llama lobster lotus mandolin mayfly menorah metronome minaret nautilus octopus okapi pagoda panda
    pigeon pizza platypus pyramid revolver rhino rooster saxophone schooner scissors scorpion sea_horse snoopy
    soccer_ball stapler starfish stegosaurus stop_sign strawberry sunflower tick trilobite umbrella watch
    water_lilly wheelchair wild_cat windsor_chair wrench yin_yang
"""
CLASSES = tuple(_NAMES.split())  # in the order of ASCII
SENSOR = (180, 240)
RECORDINGS = 8709
PATTERN = re.compile(r"[^/]+/image_[0-9]{4}(?i:\.bin)")
FILES = (
    File(
        "N-Caltech101-archive.zip",
        md5="66201824eabb0239c7ab992480b50ba3",
        urls=(
            "https://data.mendeley.com/public-files/datasets/cy6cvx3ryv/files/"
            "36b5c52a-b49d-4853-addb-a836a8883e49/file_downloaded",
        ),
    ),
)
WHERE = (
    "run `python -m attsnn.data download ncaltech101 RAW` (3.7 GB, https://doi.org/10.17632/cy6cvx3ryv.1), "
    "then `python -m attsnn.data prepare ncaltech101 RAW OUT`"
)


def prepare(
    raw: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    strict: bool = False,
    progress: bool = True,
    backend: Backend = "auto",
) -> Path:
    """Writes the store `out` from `raw`: the archive, the archive inside it, or the folder of <class>/*.bin.

    `strict` refuses times that decrease. Raises DataMissingError, DataFormatError, or DataError if the disk
    is too small.
    """
    source = open_raw(raw, PATTERN, folder="Caltech101", depth=2, kinds=(".bin",), missing=WHERE)
    place = {name: label for label, name in enumerate(CLASSES)}
    known = [name for name in source.names if name.partition("/")[0] in place]
    if not known:
        raise DataMissingError(f"{plain(source.path)}: no folder is one of the 101 classes; {WHERE}")
    others = sorted({name.partition("/")[0] for name in source.names} - set(CLASSES))
    if others:
        number = len(source.names) - len(known)
        warn(
            f"{plain(source.path)}: {number} recordings are left out, of no class of this set: "
            f"{', '.join(map(plain, others[:5]))}"
        )
    if len(known) != RECORDINGS:
        warn(f"{plain(source.path)}: found {len(known)} recordings; published are {RECORDINGS}")
    entries = [
        Entry(name, place[name.partition("/")[0]], name.rpartition(".")[0], UNDIVIDED) for name in known
    ]

    def decode(name: str, data: np.ndarray) -> Recording:
        return atis.decode(data, path=source.where(name), sensor=SENSOR, strict=strict, backend=backend)

    about = {"dataset": "ncaltech101"}
    return write_recordings(
        source, out, entries, decode, classes=CLASSES, sensor=SENSOR, about=about, progress=progress
    )


class NCaltech101(EventFrames):
    """N-Caltech101 (Orchard et al., 2015), by default as in PFA: 14 steps of equally many events.

    The frames have 180 x 240 pixels. The first nine tenths of each class's names are for training by default.
    Other arguments and errors are those of `EventFrames`.
    """

    where = WHERE

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: Literal["train", "test"],
        *,
        steps: int = 14,
        dt_ms: float | None = None,
        split_rule: str = "name_order",
        **how: Any,
    ):
        super().__init__(root, split, steps=steps, dt_ms=dt_ms, split_rule=split_rule, **how)


NCALTECH101 = DataSet(
    name="ncaltech101",
    title="N-Caltech101: 8,709 images of Caltech101 that moved before an ATIS sensor, 101 classes",
    where=WHERE,
    licence="CC BY 4.0",
    classes=CLASSES,
    splits=SPLITS,
    open=NCaltech101,
    prepare=prepare,
    verify=verifier("ncaltech101", {UNDIVIDED: RECORDINGS}),
    describe=describe,
    files=FILES,
    raw="the archive, or the folder of <class>/image_NNNN.bin",
    flags=STRICT,
)
