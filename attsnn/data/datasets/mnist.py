"""MNIST (LeCun et al., 1998) and Fashion-MNIST (Xiao et al., 2017): 60,000 + 10,000 grey images of 28 x 28.

The files of both have the same names; `verify` tells the sets apart by the number of images in each class.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from torch import Tensor

from attsnn.data.core.contract import DataSet, File
from attsnn.data.core.counts import check_counts, mixed_up, unpack
from attsnn.data.core.files import plain
from attsnn.data.core.find import Found, Layout, find_files
from attsnn.data.core.images import Arrays, Images
from attsnn.data.errors import DataFormatError
from attsnn.data.formats import idx

SPLITS = ("train", "test")
CLASSES = {
    "mnist": tuple("0123456789"),
    "fashion": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
}
COUNTS = {
    "mnist": {
        "train": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        "test": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    },
    "fashion": {"train": [6000] * 10, "test": [1000] * 10},
}
_NAMES = {
    split: tuple(f"{prefix}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1"))
    for split, prefix in (("train", "train"), ("test", "t10k"))
}
_FILE_NAMES = tuple(f"{name}.gz" for names in _NAMES.values() for name in names)
_FACTS = {  # size, md5, sha256 of each of these files
    "mnist": (
        (
            9912422,
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        (
            28881,
            "d53e105ee54ea40749a09fcbcd1e9432",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
        (
            1648877,
            "9fb629c4189551a2d022fa330f9573f3",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        (
            4542,
            "ec29112dd5afa0611ce80d1b7f02629c",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
    "fashion": (
        (
            26421880,
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        (
            29515,
            "25c81989df183df01b3e8a0aad5dffbe",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        ),
        (
            4422102,
            "bef4ecab320f06d8554ea6380940ec79",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        ),
        (
            5148,
            "bb300cfdad3c16e7a12a480ee83cd310",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    ),
}
MIRRORS = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    # Its own host serves only plain http.
    "fashion": ("https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",),
}
FILES = {
    name: tuple(
        File(file, *facts, tuple(f"{mirror}{file}" for mirror in MIRRORS[name]))
        for file, facts in zip(_FILE_NAMES, _FACTS[name], strict=True)
    )
    for name in CLASSES
}
_FOLDERS = {"mnist": "MNIST/raw", "fashion": "FashionMNIST/raw"}  # torchvision's


def _layouts(name: str) -> tuple[Layout, ...]:
    return (Layout((*_NAMES["train"], *_NAMES["test"]), ("", _FOLDERS[name], "raw")),)


def _where(name: str) -> str:
    return (
        f"run `python -m attsnn.data download {name} DIR` (four files, from {MIRRORS[name][0]}), or give the "
        "folder of torchvision's copy"
    )


def _find(root: str | os.PathLike[str], name: str) -> Found:
    return find_files(root, _layouts(name), _where(name))


def _split(root: str | os.PathLike[str], name: str, split: str) -> Arrays:
    if split not in SPLITS:
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    return _arrays(_find(root, name), name, split)


def _arrays(found: Found, name: str, split: str) -> Arrays:
    files = [found.read(part) for part in _NAMES[split]]
    images, labels = (idx.decode(file.data, path=file.where) for file in files)
    if images.dtype != np.uint8 or images.shape[1:] != (28, 28):
        raise DataFormatError(
            f"found {images.dtype}{list(images.shape)}; wanted uint8 [N, 28, 28]", path=files[0].where
        )
    if labels.dtype != np.uint8 or labels.shape != images.shape[:1] or (labels > 9).any():
        raise DataFormatError(
            f"found {labels.dtype}{list(labels.shape)} up to {labels.max(initial=0)}; wanted {len(images)} "
            "labels from 0 to 9",
            path=files[1].where,
        )
    return Arrays(images, labels, CLASSES[name], found.where)


class MNIST(Images):
    """A split of MNIST (LeCun et al., 1998) as `Sample`s of 10 classes.

    Args:
        root: the folder of the four files, compressed or not, or the root of torchvision's copy.
        split: "train" (60,000 images) or "test" (10,000).
        transform: takes a grey Pillow image; default: uint8 `[1, 28, 28]`.

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
        super().__init__(_split(root, "mnist", split), transform)


class FashionMNIST(Images):
    """A split of Fashion-MNIST (Xiao et al., 2017); otherwise as `MNIST`."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: Literal["train", "test"],
        transform: Callable[[Image.Image], Tensor] | None = None,
    ):
        super().__init__(_split(root, "fashion", split), transform)


def _contract(name: str, title: str, licence: str, kind: type) -> DataSet:
    where = _where(name)

    def prepare(raw: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
        """Checks the four files in `raw` and writes them unpacked to OUT. Training does not need this."""
        found = _find(raw, name)
        mixed_up(raw, {split: _arrays(found, name, split) for split in SPLITS}, name, where, COUNTS)
        return unpack(found, out, _FOLDERS[name])

    def verify(path: str | os.PathLike[str]) -> None:
        """Compares the number of images of each class with the published numbers and with the other set's."""
        found = _find(path, name)
        splits = {split: _arrays(found, name, split) for split in SPLITS}
        mixed_up(path, splits, name, where, COUNTS)
        check_counts(path, splits, COUNTS[name], where)

    def describe(path: Path) -> str:
        found = _find(path, name)
        counts = " and ".join(f"{len(_arrays(found, name, s).labels):,} {s} images" for s in SPLITS)
        return f"{plain(path)}: {counts}"

    return DataSet(
        name=name,
        title=f"{title}: 60,000 + 10,000 grey images of 28 x 28 pixels in ten classes",
        where=where,
        licence=licence,
        classes=CLASSES[name],
        splits=SPLITS,
        open=kind,
        prepare=prepare,
        verify=verify,
        describe=describe,
        files=FILES[name],
        raw="the folder of the four files, compressed or not",
        out="the folder to write: a new one, or an empty one",
        path="the folder of the four files, or what `prepare` wrote",
    )


MNIST_SET = _contract("mnist", "MNIST, handwritten digits", "CC BY-SA 3.0", MNIST)
FASHION_SET = _contract("fashion", "Fashion-MNIST, pictures of clothes", "MIT", FashionMNIST)
