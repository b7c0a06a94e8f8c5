"""ImageNet-1k (ILSVRC 2012, gated): 1,281,167 training and 50,000 validation images of 1000 classes.

    DIR/train/<class>/*.JPEG, DIR/val/<class>/*.JPEG           folders, the class is the rank of its name
    DIR/imagenet1k-train-*.tar, DIR/imagenet1k-validation-*    WebDataset shards; or DIR/train/*.tar, ...

Any number of classes in this form will do. Nothing is downloaded: the terms (non-commercial research and
education) are between the user and image-net.org.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from attsnn.data.core.checking import bad_images, print_list
from attsnn.data.core.contract import DataSet, File
from attsnn.data.core.files import plain
from attsnn.data.core.images import EncodedSource, Images, Source
from attsnn.data.core.staging import staged
from attsnn.data.errors import DataError, DataFormatError, DataMissingError, warn
from attsnn.data.formats import ilsvrc, tree
from attsnn.data.formats.folders import class_names
from attsnn.data.formats.tree import SPLITS

CLASSES = 1000
IMAGES = {"train": 1_281_167, "val": 50_000}
FILES = (
    File(ilsvrc.TRAIN, 147_897_477_120, "1d675b47d978889d74fa0da5fadfb00e"),
    File(ilsvrc.VAL, 6_744_924_160, "29b22e2961454d5413ddabcf34fc5622"),
    File(ilsvrc.DEVKIT, None, "fa75699e90414af021442c21a62c3abf"),
)
ARCHIVES = {file.name: file for file in FILES}
WHERE = (
    "get it from https://image-net.org/download-images.php (log in and accept the terms): "
    + ", ".join(map(str, FILES))
    + " and run `python -m attsnn.data prepare imagenet RAW DIR`; or as shards from "
    "https://huggingface.co/datasets/timm/imagenet-1k-wds (gated too)"
)


class ImageNet(Images):
    """A split of ImageNet, as class folders or WebDataset shards: `dataset[Draw(index, seed)]` is a `Sample`.

    Any number of classes will do. Shards are indexed once. The index goes into
    `<folder>/.attsnn-<split>.index` next to the shards if that can be written, so let one process open them
    before many do.

    Args:
        root: the folder of the set.
        split: "train" or "val".
        transform: takes an RGB Pillow image; default: uint8 `[3, H, W]`.
        classes: the class names, or for shards their number. Default: those of `root/train` for folders, 0 ..
            the highest label for shards.
        substitute: whether another image replaces a bad one; if not, the bad one is left out. Default: True
            for "train", False for "val".

    Raises:
        DataMissingError: the set is not there; the message says where to get it.
        DataFormatError: a file is broken.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: Literal["train", "val"],
        transform: Callable[[Image.Image], Tensor] | None = None,
        *,
        classes: Sequence[str] | int | None = None,
        substitute: bool | None = None,
    ):
        source = open_split(root, split, classes=classes)
        super().__init__(source, transform, substitute=split == "train" if substitute is None else substitute)


def open_split(
    root: str | os.PathLike[str], split: str, *, classes: Sequence[str] | int | None = None, keep: bool = True
) -> EncodedSource:
    """The source of the images of a split; see `tree.open_split`."""
    archives = [name for name in ARCHIVES if (Path(root) / name).is_file()]
    missing = WHERE
    if archives:
        missing = (
            f"found {', '.join(archives)}; wanted them unpacked, run `python -m attsnn.data prepare imagenet "
            f"{plain(root)} OUT`; {WHERE}"
        )
    return tree.open_split(root, split, classes=classes, but=tuple(ARCHIVES), keep=keep, missing=missing)


def prepare(
    raw: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    val_labels: str | os.PathLike[str] | None = None,
) -> dict[str, int]:
    """Unpacks the image archives that `raw` holds; returns how many images were written for each split.

    The classes of the validation images come from the development kit (needs scipy, the extra `imagenet`), or
    from `val_labels`, a text with one wnid per line in the order of the images' numbers. Raises
    DataMissingError, DataFormatError, or ImportError in a sentence.
    """
    raw = Path(raw)
    found = [name for name in (ilsvrc.TRAIN, ilsvrc.VAL) if (raw / name).is_file()]
    if not found:
        done = "; its folders need no `prepare`" if class_names(raw / "train") else ""
        raise DataMissingError(f"{plain(raw)}: holds neither {ilsvrc.TRAIN} nor {ilsvrc.VAL}{done}; {WHERE}")
    for name in (ilsvrc.TRAIN, ilsvrc.VAL):
        size, wanted = (raw / name).stat().st_size if name in found else 0, ARCHIVES[name].size
        if size != wanted:
            warn(f"{raw / name}: found {size:,} bytes; published are {wanted:,}")
    wnids = ilsvrc.val_wnids(raw, val_labels) if ilsvrc.VAL in found else []
    written = {}
    with staged(out) as partial:
        if ilsvrc.TRAIN in found:
            written["train"] = _write(ilsvrc.train_images(raw / ilsvrc.TRAIN), partial / "train", "train")
        if ilsvrc.VAL in found:
            written["val"] = _write(ilsvrc.val_images(raw / ilsvrc.VAL, wnids), partial / "val", "val")
        empty = [split for split, number in written.items() if not number]
        if empty:
            raise DataFormatError(f"holds no image of {empty[0]}", path=raw)
        os.sync()
    return written


def _write(encoded: Iterator[tuple[str, str, bytes]], folder: Path, title: str) -> int:
    """Writes (wnid, name, bytes) as folder/wnid/name; returns how many."""
    number, known = 0, set()
    for wnid, name, data in tqdm(encoded, unit="image", desc=title, disable=None):
        if wnid not in known:
            (folder / wnid).mkdir(parents=True)
            known.add(wnid)
        with open(folder / wnid / name, "xb") as file:
            file.write(data)
        number += 1
    return number


def verify(root: str | os.PathLike[str], *, decode: bool = False, subset: bool = False) -> None:
    """Prints what is found, missing and corrupt; returns only if `root` is complete and every image sound.

    An image passes if it begins and ends as a JPEG or PNG does, or otherwise if it can be decoded; `decode`
    decodes all. `subset` accepts any number of classes and images. The index of shards is made anew.
    """
    root, faults, where = Path(root), [], ""
    for split in SPLITS:
        try:
            source = open_split(root, split, keep=False)
        except DataError as error:
            sentence = str(error).removesuffix(f"; {WHERE}")
            print(f"{split}: {sentence}")
            if subset and isinstance(error, DataMissingError):
                faults.append(f"{split} cannot be used: {sentence.removeprefix(f'{plain(root)}: ')}")
            else:
                faults.append(f"{split} cannot be used")
                where = f"; {WHERE}"
            continue
        counts = np.bincount(source.labels, minlength=len(source.classes))
        bad = dict(bad_images(source, decode, split))
        found, classes = len(source.labels), int((counts > 0).sum())
        print(
            f"{split}: {type(source).__name__.lower()}, {classes:,} classes{_of(classes, CLASSES, subset)}, "
            f"{found:,} images{_of(found, IMAGES[split], subset)}, {len(bad):,} corrupt"
        )
        missing = dict(_missing(source, counts, split, subset))
        print_list("missing", missing)
        print_list("corrupt", bad)
        if bad:
            faults.append(f"{len(bad):,} {split} {'images are' if len(bad) > 1 else 'image is'} corrupt")
        if missing and subset:
            empty = [source.classes[label] for label in np.flatnonzero(counts == 0)]
            noun = "class has" if len(empty) == 1 else "classes have"
            faults.append(f"{len(empty)} {split} {noun} no images: {', '.join(map(plain, empty[:5]))}")
        elif missing or not subset and (classes, found) != (CLASSES, IMAGES[split]):
            faults.append(f"{split} is not ImageNet's, whole (for classes of your own: --subset)")
            where = f"; {WHERE}"
    for name, size in ((file.name, file.size) for file in FILES):
        if (root / name).is_file():
            found = (root / name).stat().st_size
            print(f"{name}: {found:,} bytes{_of(found, size, size is None)}, not unpacked")
    if faults:
        raise DataFormatError(f"{'; '.join(faults)}{where}", path=root)


def _of(found: int, wanted: int | None, any_number: bool) -> str:
    return "" if any_number or found == wanted else f" of {wanted:,}"


def _missing(source: Source, counts: np.ndarray, split: str, subset: bool) -> Iterator[tuple[str, str]]:
    """Classes that have fewer images than they should, as far as the number is known."""
    wanted = 1 if split == "train" or subset else IMAGES["val"] // CLASSES
    for label in np.flatnonzero(counts < wanted):
        name = source.classes[label]
        yield name, f"class {name} has {counts[label]} images; wanted {wanted}{' or more' * (wanted == 1)}"


def describe(root: Path) -> str:
    """What `prepare` wrote."""
    found = [(split, open_split(root, split, keep=False)) for split in SPLITS if (root / split).is_dir()]
    counts = " and ".join(f"{len(source.labels):,} {split} images" for split, source in found)
    return f"{plain(root)}: {counts}; now run `python -m attsnn.data verify imagenet {plain(root)}`"


IMAGENET = DataSet(
    name="imagenet",
    title="ImageNet-1k (ILSVRC 2012): 1,281,167 training and 50,000 validation images of 1000 classes",
    where=WHERE,
    licence="non-commercial research and education, by image-net.org's terms",
    splits=SPLITS,
    open=ImageNet,
    prepare=prepare,
    verify=verify,
    describe=describe,
    files=FILES,
    raw="the folder of the official archives",
    out="the folder of train/ and val/ to write: a new one, or an empty one",
    path="class folders or shards",
    flags={
        "val_labels": "a text with a wnid a line, in place of the development kit",
        "decode": "decode every image, not only those that begin or end oddly",
        "subset": "any number of classes and images is complete",
    },
)
