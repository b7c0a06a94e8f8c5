"""Embedded recordings: what a DVS128 sensor sees of 1,797 real handwritten digits that move in front of it.

The digits are those of datasets/digits.py. As in N-MNIST (Orchard et al., 2015), each digit makes three
saccades. A pixel remembers the logarithm of the intensity at its last event, and fires once for each
threshold by which the intensity has changed since. The recordings are written in the format in which DVS128
Gesture is published, so they pass through `prepare` like real data.
"""

import csv
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from attsnn.data.core.events import Events, generator, make_events
from attsnn.data.core.staging import once
from attsnn.data.core.store import SPLITS, Store
from attsnn.data.datasets import dvs_gesture
from attsnn.data.datasets.digits import NAMES, digits, of_users
from attsnn.data.formats import aedat3
from attsnn.data.formats.labels import COLUMNS as LABEL_COLUMNS

VERSION = 1  # of the simulation and its draws; part of the names of kept files
SIDE = 128
PITCH = 11.0  # sensor pixels per pixel of the 8x8 digit, which covers 88 of 128
INK = 2.0  # intensity of full ink over a background of 1
THRESHOLD = 0.45  # of log intensity
# Corners (x, y) of the path, in pixels.
SACCADES = np.array([(0, 0), (6, 8), (12, 0), (0, 0)], np.float32)
JITTER = 0.5  # pixels, standard deviation of a corner; twice that of the whole path
STEPS, STEP_US = 24, 12_500  # of the simulation
PAUSE_US = 50_000  # between two digits of a recording
NOISE_HZ = 0.05  # of a pixel
LENGTH_US = STEPS * STEP_US
START_US = 1_000_000


def record(digit: np.ndarray, rng: np.random.Generator) -> Events:
    """What the sensor records of one 8x8 digit with values 0..16, in `LENGTH_US` microseconds from 0."""
    seen = _log_intensity(digit, _path(rng))
    memory = seen[0].copy()
    parts = [_noise(rng)]
    for step in range(STEPS):
        parts.append(_crossings(seen[step], seen[step + 1], memory, step * STEP_US))
    t, cell, p = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.argsort(t, kind="stable")
    y, x = np.divmod(cell[order], SIDE)
    return make_events(t[order], x, y, p[order])


def write_recordings(
    out_dir: str | os.PathLike[str], seed: int = 0, indices: Sequence[int] | None = None
) -> Path:
    """Writes AEDAT 3.1 recordings of ten "users", with label CSVs, trial lists and gesture_mapping.csv.

    The digits (all, or those at `indices`) are shuffled by `seed`, each class spread evenly over the users.
    Users 1-8 are for training, 24 and 25 for testing. The recording of a digit is a pure function of the seed
    and the digit's index.
    """
    chosen = None if indices is None else np.asarray(indices, np.int64)
    images, labels = digits()
    users = (
        (user, ((record(images[i], generator((seed, int(i)))), labels[i]) for i in written))
        for user, written in of_users(generator(seed), chosen).items()
    )
    return write_gestures(out_dir, users, NAMES)


def write_gestures(
    out_dir: str | os.PathLike[str],
    users: Iterable[tuple[int, Iterable[tuple[Events, int]]]],
    classes: Sequence[str],
) -> Path:
    """Writes the recordings of `record` in the format in which DVS128 Gesture is published.

    For each (user, [(events, label), ...]) that is userNN_led.aedat with its label CSV; in addition there are
    trial lists and gesture_mapping.csv.
    """
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    trials = dict.fromkeys(SPLITS, "")
    for user, clips in users:
        _write_user(out / f"user{user:02d}_led", *zip(*clips, strict=True))
        split = "train" if user <= dvs_gesture.LAST_TRAIN_USER else "test"
        trials[split] += f"user{user:02d}_led.aedat\n"
    for split, text in trials.items():
        (out / f"trials_to_{split}.txt").write_text(text)
    rows = "".join(f"{name},{number}\n" for number, name in enumerate(classes, start=1))
    (out / "gesture_mapping.csv").write_text("action,label\n" + rows)
    return out


def prepare_samples(root: str | os.PathLike[str], seed: int = 0, *, progress: bool = True) -> Path:
    """The path of a store of all recordings, under `root`. It is written once for each
    seed, then only verified.
    """

    def write(path: Path) -> None:
        with tempfile.TemporaryDirectory() as raw:
            write_recordings(raw, seed)
            about = {"source": f"samples {VERSION}, seed {seed}"}
            dvs_gesture.prepare(raw, path, progress=progress, about=about)

    path = Path(root) / f"digits-v{VERSION}-seed{seed}"
    return once(path, write, lambda path: Store(path).verify())


def _write_user(path: Path, clips: Sequence[Events], labels: Sequence[int]) -> None:
    starts = START_US + (LENGTH_US + PAUSE_US) * np.arange(len(clips))
    columns = [np.concatenate([getattr(clip, name) for clip in clips]) for name in ("t", "x", "y", "p")]
    columns[0] += np.repeat(starts, [len(clip) for clip in clips])
    aedat3.write(path.with_suffix(".aedat"), make_events(*columns))
    rows = zip(np.array(labels) + 1, starts, starts + LENGTH_US, strict=True)
    with open(path.with_name(f"{path.name}_labels.csv"), "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([LABEL_COLUMNS, *rows])


def _path(rng: np.random.Generator) -> np.ndarray:
    """(x, y) of the digit's upper left corner at each step, float32 `[STEPS + 1, 2]`: straight saccades."""
    centred = (SIDE - 8 * PITCH - SACCADES.max(axis=0)) / 2
    corners = SACCADES + centred + rng.normal(0, JITTER, SACCADES.shape) + rng.normal(0, 2 * JITTER, 2)
    when = np.linspace(0, len(corners) - 1, STEPS + 1)
    axes = [np.interp(when, range(len(corners)), axis) for axis in corners.T]
    return np.stack(axes, axis=1).astype(np.float32)


def _log_intensity(digit: np.ndarray, path: np.ndarray) -> np.ndarray:
    """log(1 + INK * ink) of the digit, interpolated, at each place: float32 `[places, SIDE * SIDE]`."""
    centres = PITCH * (np.arange(8, dtype=np.float32) + 0.5)
    away = np.arange(SIDE, dtype=np.float32)[:, None] + 0.5 - path.T[:, :, None, None] - centres
    across, down = np.maximum(0, 1 - np.abs(away) / PITCH)  # [places, SIDE, 8] each
    light = down @ (digit.astype(np.float32) * (INK / 16)) @ across.swapaxes(1, 2)
    light += 1
    logarithm: np.ndarray = np.log(light, out=light)
    return logarithm.reshape(len(path), -1)


def _crossings(
    before: np.ndarray, after: np.ndarray, memory: np.ndarray, start: int
) -> tuple[np.ndarray, ...]:
    """The (t, pixel, polarity) of the thresholds crossed in one step; `memory` moves to the last one."""
    change = after - memory
    pixel = np.flatnonzero(np.abs(change) >= THRESHOLD)
    sign, number = np.sign(change[pixel]), (np.abs(change[pixel]) / THRESHOLD).astype(np.int64)
    nth = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number) + 1
    source, direction = np.repeat(pixel, number), np.repeat(sign, number)
    level = memory[source] + THRESHOLD * nth * direction
    share = np.clip((level - before[source]) / (after[source] - before[source]), 0, 1)
    memory[pixel] += THRESHOLD * number * sign
    return start + (share * (STEP_US - 1)).astype(np.int64), source, direction > 0


def _noise(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """The (t, pixel, polarity) of noise events."""
    number = rng.poisson(NOISE_HZ * SIDE * SIDE * LENGTH_US * 1e-6)
    pixels, polarities = rng.integers(0, SIDE * SIDE, number), rng.integers(0, 2, number).astype(bool)
    return rng.integers(0, LENGTH_US, number), pixels, polarities
