"""CIFAR-10 and CIFAR-100 (A. Krizhevsky, 2009): 50,000 + 10,000 images of 32 x 32 pixels, 10 or 100 classes.

They are opened where they lie: the archive as downloaded (binary or Python version), its content, or the root
of torchvision's copy. The class names of CIFAR-100 are those of its `fine_label_names`.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from torch import Tensor

from attsnn.data.core.contract import DataSet, File
from attsnn.data.core.counts import check_counts, unpack
from attsnn.data.core.files import plain
from attsnn.data.core.find import Found, Layout, find_files
from attsnn.data.core.images import Arrays, Images
from attsnn.data.errors import DataError, DataMissingError
from attsnn.data.formats import cifar

SPLITS = ("train", "test")
COUNTS = {"train": 50_000, "test": 10_000}
URL = "https://www.cs.toronto.edu/~kriz/"
CLASSES_10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_NAMES_100 = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel
    can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
    dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
    lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter
    palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road
    rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower
    sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
    willow_tree wolf woman worm
"""
CLASSES_100 = tuple(_NAMES_100.split())
_TRAIN_10 = tuple(f"data_batch_{k}" for k in range(1, 6))
LAYOUTS = {  # binary, then pickled
    10: (
        Layout(
            tuple(f"{name}.bin" for name in (*_TRAIN_10, "test_batch")),
            ("", "cifar-10-batches-bin"),
            ("cifar-10-binary.tar.gz",),
        ),
        Layout((*_TRAIN_10, "test_batch"), ("", "cifar-10-batches-py"), ("cifar-10-python.tar.gz",)),
    ),
    100: (
        Layout(("train.bin", "test.bin"), ("", "cifar-100-binary"), ("cifar-100-binary.tar.gz",)),
        Layout(("train", "test"), ("", "cifar-100-python"), ("cifar-100-python.tar.gz",)),
    ),
}
FILES = {  # the binary archive is the one that is downloaded
    10: (
        File(
            "cifar-10-binary.tar.gz",
            170_052_171,
            "c32a1d4ab5d03f1284b67883e8d87530",
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            (f"{URL}cifar-10-binary.tar.gz",),
        ),
    ),
    100: (
        File(
            "cifar-100-binary.tar.gz",
            168_513_733,
            None,
            "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            (f"{URL}cifar-100-binary.tar.gz",),
        ),
    ),
}


def _where(classes: int) -> str:
    return (
        f"run `python -m attsnn.data download cifar{classes} DIR` ({FILES[classes][0]}, from "
        f"{URL}cifar.html), or give the folder of torchvision's copy"
    )


def _find(root: str | os.PathLike[str], classes: int) -> Found:
    return find_files(root, LAYOUTS[classes], _where(classes))


def _split(root: str | os.PathLike[str], classes: int, split: str) -> Arrays:
    if split not in SPLITS:
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    return _arrays(_find(root, classes), classes, split)


def _arrays(found: Found, classes: int, split: str) -> Arrays:
    decode = cifar.decode_binary if found.layout is LAYOUTS[classes][0] else cifar.decode_pickled
    parts = []
    for name in _names(found, split):
        file = found.read(name)
        parts.append(decode(file.data, classes, path=file.where))
    images, labels = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Arrays(images, labels, CLASSES_10 if classes == 10 else CLASSES_100, found.where)


def _names(found: Found, split: str) -> list[str]:
    return [name for name in found.layout.names if name.startswith("test") == (split == "test")]


class CIFAR10(Images):
    """A split of CIFAR-10 (A. Krizhevsky, 2009) as `Sample`s of 10 classes.

    Args:
        root: the archive, its folder, the folder of its content, or the root of torchvision's copy.
        split: "train" (50,000 images) or "test" (10,000).
        transform: takes an RGB Pillow image of 32 x 32 pixels; default: uint8 `[3, 32, 32]`.

    Raises:
        DataMissingError: the set is not there; the message says where to get it.
        DataFormatError: a file is broken.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: Literal["train", "test"],
        transform: Callable[[Image.Image], Tensor] | None = None,
    ):
        super().__init__(_split(root, 10, split), transform)


class CIFAR100(Images):
    """A split of CIFAR-100, with its 100 fine classes; otherwise as `CIFAR10`."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: Literal["train", "test"],
        transform: Callable[[Image.Image], Tensor] | None = None,
    ):
        super().__init__(_split(root, 100, split), transform)


def open_cifar(
    root: str | os.PathLike[str],
    split: Literal["train", "test"],
    transform: Callable[[Image.Image], Tensor] | None = None,
) -> CIFAR10 | CIFAR100:
    """Opens CIFAR-10 or CIFAR-100, whichever has its files in `root`; the arguments are those of `CIFAR10`.

    Raises:
        DataMissingError: neither set is there.
        DataError: both sets are there.
    """
    there, said = [], []
    for classes in LAYOUTS:
        try:
            there.append(_find(root, classes).layout)
        except DataMissingError as error:
            said.append(str(error))
    if not there:  # "one file is missing" is worth more than "no file is here"
        said.sort(key=lambda text: "none of the set's files" in text)
        raise DataMissingError(said[0])
    if len(there) > 1:
        raise DataError(f"{plain(root)}: CIFAR-10 and CIFAR-100 are both here; give the folder of one")
    return (CIFAR10 if there[0] in LAYOUTS[10] else CIFAR100)(root, split, transform)


def _contract(classes: int, kind: type, names: tuple[str, ...]) -> DataSet:
    name, where = f"cifar{classes}", _where(classes)

    def prepare(raw: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
        """Checks the files in `raw` and writes them unpacked. Training does not need this."""
        found = _find(raw, classes)
        for split in SPLITS:
            _arrays(found, classes, split)
        return unpack(found, out, found.layout.folders[1])

    def verify(path: str | os.PathLike[str]) -> None:
        """Compares the number of images of each class with the published ones."""
        per_class = {split: [COUNTS[split] // classes] * classes for split in SPLITS}
        found = _find(path, classes)
        check_counts(path, {s: _arrays(found, classes, s) for s in SPLITS}, per_class, where)

    def describe(path: Path) -> str:
        found = _find(path, classes)
        counts = " and ".join(f"{len(_arrays(found, classes, s).labels):,} {s} images" for s in SPLITS)
        return f"{plain(path)}: {counts} of {classes} classes"

    return DataSet(
        name=name,
        title=f"CIFAR-{classes}: 50,000 + 10,000 images of 32 x 32 pixels in {classes} classes",
        where=where,
        licence="none; cite Krizhevsky (2009)",
        classes=names,
        splits=SPLITS,
        open=kind,
        prepare=prepare,
        verify=verify,
        describe=describe,
        files=FILES[classes],
        raw="the archive, or the folder of it or of what is in it",
        out="the folder to write: a new one, or an empty one",
        path="the folder of the archive or of what is in it, or what `prepare` wrote",
    )


CIFAR_10 = _contract(10, CIFAR10, CLASSES_10)
CIFAR_100 = _contract(100, CIFAR100, CLASSES_100)
