"""Data sets that need no download: files in the published formats, of moving digits and of textures.

The recordings of an event set are what the sensor of samples.py sees of handwritten digits. They are written
in the format in which that set is published, and pass through its own `prepare`. The images of CIFAR and
CelebA are textures, those of MNIST and Fashion-MNIST enlarged digits. Only the format is that of the set
whose name they have.
"""

import io
import operator
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from attsnn._files import sync
from attsnn.data.core.events import Events, generator
from attsnn.data.core.staging import once, staged
from attsnn.data.core.store import Store
from attsnn.data.datasets import TABLE, celeba, cifar, cifar10_dvs, dvs_gesture, mnist, ncaltech101
from attsnn.data.datasets.digits import NAMES, TEST_USERS, TRAIN_USERS, Digits, digits
from attsnn.data.synthetic import writers
from attsnn.data.synthetic.samples import SIDE, VERSION, record, write_gestures
from attsnn.data.synthetic.textures import texture

CLASSES = len(NAMES)
LEAST, MOST = 10, 60_000  # training samples; every format has names for so many
HELD = 900  # the number of a class's first test recording: where first900 divides sets without a split
PORTRAIT = slice(20, 198)  # columns of a square that is as wide as CelebA's images are high
SHIFT = 2  # pixels by which a digit that is shown again may move
# The warning of readers about sets whose number of recordings is not the published one.
COUNTS = r".*: found .*(; published are \d+|, the published numbers)"


class Take(NamedTuple):
    """A recording to be made."""

    split: str
    user: int
    label: int
    number: int  # among those of its class
    digit: int  # one of `digits()`
    seeds: tuple[int, ...]


Clips = Iterable[tuple[Take, Events]]
Writer = Callable[[Path, Clips], None]


def synthesise(
    name: str, out: str | os.PathLike[str], count: int, seed: int = 0, *, progress: bool = False
) -> Path:
    """Writes a synthetic set in the format of the data set `name`; returns a path that the set's class opens.

    Event sets are recordings of moving handwritten digits. The images of CIFAR and CelebA are textures, those
    of MNIST and Fashion-MNIST enlarged digits. An event set is written as a store, like prepared real data;
    an image set is written as its files are published. Labels are 0 to 9 in turn; celeba has none.
    cifar10_dvs and ncaltech101 have no split; `split_rule="first900"` gives the one asked for, up to a
    `count` of 8,990. A store of dvs_gesture has the first ten classes, one of ncaltech101 names all 101.

    The set lies in `out`/NAME-vVERSION-COUNT-seedSEED, is a function of these, and appears as a whole. If it
    is there already, it is verified and used.

    Args:
        name: dvs_gesture, cifar10_dvs, ncaltech101, dvs_gait, recordings, cifar10, cifar100, mnist, fashion
            or celeba.
        out: the folder to write into.
        count: the number of training samples, 10 to 60,000. There are max(count // 5, 10) test samples, and
            for celeba as many for its validation, too.
        seed: the seed of all draws, at least 0.
        progress: show the progress.

    Raises:
        ValueError: an argument does not fit.
        DataError: the set cannot be written.
    """
    count, seed = operator.index(count), operator.index(seed)
    if name not in (known := (*EVENTS, *UNLABELLED, *IMAGES)):
        raise ValueError(f"no synthetic set is called {name!r}; there are {', '.join(known)}")
    if not LEAST <= count <= MOST:
        raise ValueError(f"count must be from {LEAST} to {MOST} training samples, got {count}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    path = Path(out) / f"{name}-v{VERSION}-{count}-seed{seed}"
    if name in EVENTS:
        write = partial(_write_store, name, count, seed, progress)
        return once(path, write, lambda path: Store(path).verify())
    describe = TABLE[name].describe
    assert describe is not None  # sets of images have one
    return once(path, partial(_write_images, name, count, seed), describe)


def _counts(count: int, splits: Iterable[str] = ("train", "test")) -> dict[str, int]:
    return {split: count if split == "train" else max(count // 5, LEAST) for split in splits}


def _shown(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Which of the digits with these labels are shown, int64 `[count]`: classes 0 to 9 in turn, and the
    digits of a class in a random order that starts again at its end.
    """
    by_class = [rng.permutation(np.flatnonzero(labels == label)) for label in range(CLASSES)]
    rounds = ((by_class[i % CLASSES], i // CLASSES) for i in range(count))
    return np.array([places[turn % len(places)] for places, turn in rounds], np.int64)


# Recordings


def _takes(count: int, seed: int) -> list[Take]:
    """Takes, sorted by user. Each user makes every gesture if there are enough; no user is in both splits."""
    takes = []
    for part, (split, number) in enumerate(_counts(count).items()):
        written, users = Digits("test" if part else "train"), TEST_USERS if part else TRAIN_USERS
        shown = written.indices[_shown(written.labels, number, generator((seed, part)))]
        first = max(HELD, -(-count // CLASSES)) if part else 0
        for i, digit in enumerate(shown.tolist()):
            turn, label = divmod(i, CLASSES)
            user = users[(turn + label) % len(users)]
            takes.append(Take(split, user, label, first + turn, digit, (seed, part, i + 1)))
    return sorted(takes, key=lambda take: take.user)


def _recorded(takes: list[Take], progress: bool) -> Iterator[tuple[Take, Events]]:
    for take in tqdm(takes, unit="recording", desc="record", disable=None if progress else True):
        yield take, record(digits()[0][take.digit], generator(take.seeds))


def _write_store(name: str, count: int, seed: int, progress: bool, path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", COUNTS, UserWarning)
        raw = Path(folder, path.name)
        write, how = EVENTS[name]
        write(raw, _recorded(_takes(count, seed), progress))
        prepare = TABLE[name].prepare
        assert prepare is not None  # sets of events have one
        prepare(raw, path, progress=progress, **how)


def _gestures(raw: Path, clips: Clips) -> None:
    by_user = groupby(clips, key=lambda clip: clip[0].user)
    users = ((user, ((events, take.label) for take, events in made)) for user, made in by_user)
    write_gestures(raw, users, dvs_gesture.CLASSES[:CLASSES])


def _files(write: Callable[[Path, Events], None], place: Callable[[Take], str]) -> Writer:
    """A writer of one file per recording: `write(path, events)`, at the path that `place` gives."""

    def write_all(raw: Path, clips: Clips) -> None:
        for take, events in clips:
            path = raw / place(take)
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, events)

    return write_all


def _of_cifar10_dvs(take: Take) -> str:
    name = cifar10_dvs.CLASSES[take.label]
    return f"{name}/cifar10_{name}_{take.number}.aedat"


def _on_its_side(path: Path, events: Events) -> None:
    """Writes events the way the sensor of CIFAR10-DVS was held; `upright` is its own inverse."""
    writers.write_aedat2(path, cifar10_dvs.upright(events, x="y", y="x", turned="xyp"))


def _in_the_middle(path: Path, events: Events) -> None:
    """Writes events in the middle of the larger canvas of N-Caltech101."""
    down, across = ((side - SIDE) // 2 for side in ncaltech101.SENSOR)
    x, y = events.x + np.int16(across), events.y + np.int16(down)
    writers.write_atis(path, Events(events.t, x, y, events.p))


# How the recordings of each set are written, and further arguments of its `prepare`.
EVENTS: dict[str, tuple[Writer, dict[str, Any]]] = {
    "dvs_gesture": (_gestures, {}),
    "cifar10_dvs": (_files(_on_its_side, _of_cifar10_dvs), {}),
    "ncaltech101": (
        _files(_in_the_middle, lambda t: f"{ncaltech101.CLASSES[t.label]}/image_{t.number + 1:04d}.bin"),
        {},
    ),
    "dvs_gait": (_files(writers.write_text, lambda t: f"{t.split}/{t.label}/{t.number:04d}.txt"), {}),
    "recordings": (
        _files(writers.write_arrays, lambda t: f"{t.split}/{NAMES[t.label]}/{t.number:04d}.npz"),
        {"sensor": (SIDE, SIDE)},
    ),
}


# Images


def _textures(part: int, number: int, seed: int, side: int = 32) -> np.ndarray:
    """uint8 `[number, side, side, 3]`."""
    drawn = [texture(i % CLASSES, side, generator((seed, part, i + 1))) for i in range(number)]
    images: np.ndarray = np.rint(np.stack(drawn) * 255).astype(np.uint8)
    return images.transpose(0, 2, 3, 1)


def _enlarged(part: int, number: int, seed: int) -> np.ndarray:
    """Digits of one split, uint8 `[number, 28, 28]`; a digit that is shown again is shifted a little."""
    written = Digits("test" if part else "train")
    shown = _shown(written.labels, number, generator((seed, part)))
    images: np.ndarray = np.rint(written.images[shown, 0].numpy() * 255).astype(np.uint8)
    again = np.setdiff1d(np.arange(number), np.unique(shown, return_index=True)[1])
    for i in again.tolist():
        down, right = generator((seed, part, i + 1)).integers(0, 2 * SHIFT, 2, endpoint=True)
        images[i] = np.pad(images[i], SHIFT)[down : down + 28, right : right + 28]
    return images


def _cifar(classes: int, folder: Path, drawn: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    *train, test = cifar.LAYOUTS[classes][0].names  # of the binary version
    parts = (np.array_split(column, len(train)) for column in drawn["train"])
    for name, images, labels in [*zip(train, *parts, strict=True), (test, *drawn["test"])]:
        writers.write_cifar_binary(folder / name, images, labels, classes)


def _idx(name: str, folder: Path, drawn: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    arrays = (array for columns in drawn.values() for array in columns)
    for file, array in zip(mnist.FILES[name], arrays, strict=True):
        writers.write_idx(folder / file.name, array)


def _portraits(folder: Path, drawn: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Writes the middle of each image into an archive, and the partition."""
    rows: list[str] = []
    with zipfile.ZipFile(folder / celeba.ARCHIVE, "w") as archive:
        for part, (images, _) in enumerate(drawn.values()):
            for image in images:
                name, encoded = f"{len(rows) + 1:06d}.jpg", io.BytesIO()
                Image.fromarray(image[:, PORTRAIT]).save(encoded, "jpeg", quality=95)
                # Dated 1980, as zipfile does by default: the bytes do not depend on a clock.
                archive.writestr(zipfile.ZipInfo(f"{celeba.FOLDER}/{name}"), encoded.getvalue())
                rows.append(f"{name} {part}\n")
    (folder / celeba.PARTITION).write_text("".join(rows))


IMAGES = {  # what is drawn, and how it is written
    "cifar10": (_textures, partial(_cifar, 10)),
    "cifar100": (_textures, partial(_cifar, 100)),
    "mnist": (_enlarged, partial(_idx, "mnist")),
    "fashion": (_enlarged, partial(_idx, "fashion")),
}
NAMED = (*EVENTS, *IMAGES)  # with labels 0 to 9
UNLABELLED = {"celeba": (partial(_textures, side=218), _portraits)}


def _write_images(name: str, count: int, seed: int, path: Path) -> None:
    draw, write = (IMAGES | UNLABELLED)[name]
    drawn = {
        split: (draw(part, number, seed), (np.arange(number) % CLASSES).astype(np.uint8))
        for part, (split, number) in enumerate(_counts(count, TABLE[name].splits).items())
    }
    with staged(path) as folder:
        write(folder, drawn)
        for file in folder.iterdir():
            with file.open("rb") as written:
                sync(written.fileno())
