"""1,797 real handwritten digits that come with the package: the test set of UCI's "Optical Recognition of
Handwritten Digits" (E. Alpaydin, C. Kaynak, CC BY 4.0; digits.csv.gz, see digits.md).

`synthetic/samples.py` makes event recordings of them, by ten "users". The test split of the images is what
the test users have with seed 0, so that images and recordings share one split.
"""

import gzip
import hashlib
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from attsnn.data.core.contract import DataSet
from attsnn.data.core.events import Draw, generator
from attsnn.data.core.images import Sample, seeded
from attsnn.data.errors import DataFormatError

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPLITS = ("train", "test")
TRAIN_USERS = tuple(range(1, 9))
TEST_USERS = (24, 25)  # those of DVS128 Gesture's test split
SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
WHERE = "it comes with the package: attsnn.data.Digits('train')"


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """The embedded digits: grey values 0..16 `[1797, 8, 8]` and labels 0..9 `[1797]`, uint8."""
    with gzip.open(Path(__file__).with_name("digits.csv.gz"), "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8, comments="#")
    return table[:, :64].reshape(-1, 8, 8), table[:, 64]


def of_users(rng: np.random.Generator, chosen: np.ndarray | None = None) -> dict[int, np.ndarray]:
    """The digits (all, or those at `chosen`) that each user writes, shuffled, each class spread evenly."""
    labels, users = digits()[1], TRAIN_USERS + TEST_USERS
    shuffled = rng.permutation(np.arange(len(labels)) if chosen is None else chosen)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    return {user: rng.permutation(by_class[turn :: len(users)]) for turn, user in enumerate(users)}


class Digits(Dataset[Sample]):
    """A split of 1,797 real handwritten digits, as `Sample`s: float32 `[1, size, size]` in 0..1, label 0..9.

    They come with the package, and are the test set of UCI's "Optical Recognition of Handwritten Digits" (E.
    Alpaydin, C. Kaynak, CC BY 4.0). The 8 x 8 grey values are divided by 16 and enlarged bilinearly.

    Args:
        split: "train" or "test".
        size: the side of an image in pixels, such as 28 or 32.
        transform: takes such a tensor. It may draw from torch's global generator, which the key of the sample
            seeds and which is put back afterwards.

    Raises ValueError for an argument that does not fit.
    """

    def __init__(
        self,
        split: Literal["train", "test"],
        *,
        size: int = 28,
        transform: Callable[[Tensor], Tensor] | None = None,
    ):
        if split not in SPLITS:
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        users = TRAIN_USERS if split == "train" else TEST_USERS
        written = of_users(generator(0))
        self.indices = np.sort(np.concatenate([written[user] for user in users]))
        images, labels = digits()
        grey = torch.from_numpy(images[self.indices]).float()[:, None] / 16
        self.images = F.interpolate(grey, (size, size), mode="bilinear", align_corners=False)
        self.labels, self.classes, self.transform = labels[self.indices].astype(np.int64), NAMES, transform

    @classmethod
    def open(cls, _: str | os.PathLike[str] | None, split: Literal["train", "test"], **how: Any) -> "Digits":
        """Opens it as other sets are opened: by a root, which is ignored here, and a split."""
        return cls(split, **how)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def identity(self) -> str:
        """A hash that tells this split from others."""
        return hashlib.sha256(self.indices.astype("<i8").tobytes()).hexdigest()

    def __getitem__(self, key: int | Draw) -> Sample:
        index, seed = key if isinstance(key, Draw) else (key, 0)
        image = self.images[range(len(self))[index]]
        if self.transform is not None:
            image = seeded(self.transform, image, seed)
        return Sample(image, int(self.labels[index]), {})


def verify() -> None:
    """Compares the embedded digits with their checksum."""
    images, labels = digits()
    found = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    if found != SHA256:
        raise DataFormatError(
            f"found {len(labels)} digits of SHA-256 {found}; install the package again",
            path=Path(__file__).with_name("digits.csv.gz"),
        )
    print(f"{len(labels):,} digits, {len(Digits('train')):,} train and {len(Digits('test')):,} test")


DIGITS_SET = DataSet(
    name="digits",
    title="1,797 handwritten digits of UCI, 8 x 8 pixels, which come with the package",
    where=WHERE,
    licence="CC BY 4.0",
    classes=NAMES,
    splits=SPLITS,
    open=Digits.open,
    prepare=None,
    verify=verify,
    describe=None,
    path=None,
)
