"""Images that need no file: textures whose classes can be learned, as pure functions of their index."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from attsnn.data.core.events import Draw, generator
from attsnn.data.core.images import Sample
from attsnn.data.core.transforms import MEAN, STD

GOLDEN = (0.6180339887, 0.7548776662, 0.5698402910)  # additive recurrences keep any number of classes apart
NOISE = 0.08


class SyntheticImages(Dataset[Sample]):
    """`n` normalised float32 images `[3, size, size]` in `classes` classes, as `Sample`s, without any file.
    The label of image i is i % classes.

    A class is a texture (stripes, checks or rings, in turn) with an angle, a frequency and a hue. Each image
    has its own phase, place, contrast and noise. It is a pure function of its index: the seed of a `Draw` key
    changes nothing.

    Args:
        n: the number of images.
        size: their side, in pixels.
        classes: the number of classes.
        start: the first index, so that images `start` to `start + n` are made. A validation set starts after
            the training set.
        mean: the mean of each channel that images are normalised with.
        std: the standard deviation of each channel.

    Raises ValueError for a number that is too small.
    """

    def __init__(
        self,
        n: int,
        size: int = 224,
        classes: int = 1000,
        *,
        start: int = 0,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
    ):
        if min(n, size, classes) < 1 or start < 0:
            raise ValueError(
                f"n, size, classes must be at least 1, start at least 0; got {n}, {size}, {classes}, {start}"
            )
        self.size, self.start = size, start
        self.mean, self.std = (np.array(values, np.float32)[:, None, None] for values in (mean, std))
        self.classes = tuple(f"texture_{number}" for number in range(classes))
        self.labels = np.arange(start, start + n) % classes

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def identity(self) -> str:
        """Tells these images from others; their size is not part of it."""
        return f"textures {self.start}:{self.start + len(self)} of {len(self.classes)}"

    def __getitem__(self, key: int | Draw) -> Sample:
        index = range(len(self))[key.index if isinstance(key, Draw) else key]
        label = int(self.labels[index])
        image = texture(label, self.size, generator(self.start + index))
        return Sample(torch.from_numpy((image - self.mean) / self.std), label, {})


def texture(label: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """One image of a class, float32 `[3, size, size]` in 0..1."""
    turn, tempo, hue = ((label + 0.5) * step % 1 for step in GOLDEN)
    angle = math.pi * turn + rng.normal(0, 0.05)
    wave = 2 * math.pi * (3 + 5 * tempo)  # radians across the image
    x = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    along = x * math.cos(angle) + x[:, None] * math.sin(angle)
    across = x[:, None] * math.cos(angle) - x * math.sin(angle)
    phase = rng.uniform(0, 2 * math.pi, 2)
    if label % 3 == 0:
        pattern = np.sin(wave * along + phase[0])
    elif label % 3 == 1:
        pattern = np.sin(wave * along + phase[0]) * np.sin(wave * across + phase[1])
    else:
        centre = rng.uniform(-0.25, 0.25, 2)
        pattern = np.sin(wave * np.hypot(along - centre[0], 1.5 * (across - centre[1])) + phase[0])
    colour = 0.5 + 0.5 * np.cos(2 * math.pi * (hue + np.arange(3) / 3))
    light = 0.5 + rng.uniform(0.3, 0.5) * pattern
    image = light * colour[:, None, None] + (1 - light) * (1 - colour[:, None, None])
    noise = rng.standard_normal((3, size, size), np.float32)
    clipped: np.ndarray = np.clip(image.astype(np.float32) + np.float32(NOISE) * noise, 0, 1)
    return clipped
