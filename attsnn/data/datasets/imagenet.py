"""ImageNet-1k (ILSVRC 2012): 1,281,167 training and 50,000 validation images of 1000 classes. Gated.

    DIR/train/<class>/*.JPEG, DIR/val/<class>/*.JPEG           folders, the class is the rank of its name
    DIR/imagenet1k-train-*.tar, DIR/imagenet1k-validation-*    WebDataset shards; or DIR/train/*.tar, ...

Any number of classes in this form will do. Nothing is downloaded: the terms (non-commercial research and
education) are between you and image-net.org.
"""

import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from attsnn.data.core.checking import bad_images, print_list
from attsnn.data.core.contract import DataSet, File
from attsnn.data.core.decode import SUFFIXES
from attsnn.data.core.files import is_junk, plain
from attsnn.data.core.images import Images, Source
from attsnn.data.core.staging import staged
from attsnn.data.errors import DataError, DataFormatError, DataMissingError
from attsnn.data.formats import ilsvrc
from attsnn.data.formats.folders import Folders, class_names
from attsnn.data.formats.shards import Shards

SPLITS = ("train", "val")
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
    + "; or as shards from https://huggingface.co/datasets/timm/imagenet-1k-wds (gated too)"
)
SPLIT_NAMES = {"train": ("train",), "val": ("val", "validation")}
# Words of a shard's name, between digits and other signs: "retrieval-train-000.tar" is of one split.
WORDS = {"train": {"train", "training", "trainset"}, "val": {"val", "valid", "validation", "valset"}}


class ImageNet(Images):
    """A split of ImageNet in `root`, as folders or shards: `dataset[Draw(index, seed)]` is a `Sample`.

    `classes`: the class names, or for shards their number; by default those of `root/train` (folders) or
    0 .. the highest label (shards). A bad image of "train" is substituted, one of "val" left out (see
    `Images`), unless `substitute` says otherwise. Shards are indexed once, into `.attsnn-<split>.index`
    beside them if that can be written: let one process open them before many do. Raises DataMissingError,
    with where to get it, or DataFormatError.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        split: Literal["train", "val"],
        transform: Callable[[Image.Image], Tensor] | None = None,
        *,
        classes: Sequence[str] | int | None = None,
        substitute: bool | None = None,
    ):
        source = open_split(root, split, classes=classes)
        super().__init__(source, transform, substitute=split == "train" if substitute is None else substitute)


def open_split(
    root: str | os.PathLike, split: str, *, classes: Sequence[str] | int | None = None, keep: bool = True
) -> Source:
    """Where the images of a split are. `keep` uses and leaves the index of shards."""
    if split not in SPLITS:
        raise ValueError(f"split must be 'train' or 'val', got {split!r}")
    root = Path(root)
    if not root.is_dir():
        raise DataMissingError(f"{root}: no such folder; {WHERE}")
    folder = next((root / n for n in SPLIT_NAMES[split] if (root / n).is_dir()), root / split)
    if class_names(folder):
        found = Folders(folder, _names(root, classes))
        if isinstance(classes, int) and len(found.classes) != classes:
            raise DataFormatError(f"found {len(found.classes)} class folders; wanted {classes}", path=folder)
        return found
    shards = _tars(folder) or _shards(root)[split]
    if shards:
        index = shards[0].parent / f".attsnn-{split}.index"
        return Shards(shards, classes, index=index if keep else None)
    raise DataMissingError(f"{_what_else(root, folder)}; {WHERE}")


def _shards(root: Path) -> dict[str, list[Path]]:
    """The shards of each split, by the words of their names; what has no such word, or those of both, is left
    out and counted.
    """
    shards, left = {split: [] for split in SPLITS}, []
    for tar in _tars(root):
        words = set(re.split(r"[^a-z]+", tar.stem.lower()))
        found = [split for split in SPLITS if words & WORDS[split]]
        (shards[found[0]] if len(found) == 1 else left).append(tar)
    if left:
        warnings.warn(
            f"{plain(root)}: {len(left)} .tar files are left out, whose names say neither train nor val, "
            f"e.g. {plain(left[0].name)}",
            stacklevel=4,
        )
    return shards


def _names(root: Path, classes: Sequence[str] | int | None) -> Sequence[str] | None:
    """The classes of a split: as given, or those of the training set, which a validation set may not span."""
    if classes is None or isinstance(classes, int):
        return class_names(root / "train") or None
    return classes


def _tars(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = sorted(p for p in folder.iterdir() if p.suffix == ".tar" and p.name not in ARCHIVES)
    return [path for path in files if not is_junk(path.name)]


def _what_else(root: Path, folder: Path) -> str:
    """Why a split was not found, as far as can be seen."""
    archives = [name for name in ARCHIVES if (root / name).is_file()]
    if archives:
        return (
            f"{root}: found {', '.join(archives)}; wanted them unpacked, run "
            f"`python -m attsnn.data prepare imagenet {root} OUT`"
        )
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    flat = [name for name in names if name.lower().endswith(SUFFIXES)]
    if flat:
        return f"{folder}: found {flat[0]} in no class folder; wanted {folder.name}/<class>/{flat[0]}"
    return f"{root}: found neither {folder.name}/<class>/ with images nor shards of this split"


def prepare(
    raw: str | os.PathLike, out: str | os.PathLike, *, val_labels: str | os.PathLike | None = None
) -> dict[str, int]:
    """Unpacks what `raw` holds of the two image archives; the images written of each split.

    The classes of the validation images come from the development kit (needs scipy, the extra `imagenet`) or
    from `val_labels`, a text with a wnid a line in the order of the images' numbers. Raises DataMissingError,
    DataFormatError, or ImportError in a sentence.
    """
    raw = Path(raw)
    found = [name for name in (ilsvrc.TRAIN, ilsvrc.VAL) if (raw / name).is_file()]
    if not found:
        raise DataMissingError(f"{raw}: holds neither {ilsvrc.TRAIN} nor {ilsvrc.VAL}; {WHERE}")
    for name in (ilsvrc.TRAIN, ilsvrc.VAL):
        size, wanted = (raw / name).stat().st_size if name in found else 0, ARCHIVES[name].size
        if size != wanted:
            warnings.warn(f"{raw / name}: found {size:,} bytes; published are {wanted:,}", stacklevel=2)
    wnids = ilsvrc.val_wnids(raw, val_labels) if ilsvrc.VAL in found else []
    written = {}
    with staged(out) as partial:
        if ilsvrc.TRAIN in found:
            written["train"] = _write(ilsvrc.train_images(raw / ilsvrc.TRAIN), partial / "train", "train")
        if ilsvrc.VAL in found:
            written["val"] = _write(ilsvrc.val_images(raw / ilsvrc.VAL, wnids), partial / "val", "val")
        os.sync()
    return written


def _write(encoded: Iterator[tuple[str, str, bytes]], folder: Path, title: str) -> int:
    """Writes (wnid, name, bytes) as folder/wnid/name; how many."""
    number, known = 0, set()
    for wnid, name, data in tqdm(encoded, unit="image", desc=title, disable=None):
        if wnid not in known:
            (folder / wnid).mkdir(parents=True)
            known.add(wnid)
        with open(folder / wnid / name, "xb") as file:
            file.write(data)
        number += 1
    return number


def verify(root: str | os.PathLike, *, decode: bool = False, subset: bool = False) -> None:
    """Prints what is found, missing and corrupt; returns only if `root` is complete and every image sound.

    An image passes if it begins and ends as a JPEG or PNG does, or else if it can be decoded; `decode`
    decodes all. `subset` asks for no particular number of classes and images. The index of shards is made
    anew.
    """
    root, faults, where = Path(root), [], ""
    for split in SPLITS:
        try:
            source = open_split(root, split, keep=False)
        except DataError as error:
            print(f"{split}: {plain(str(error).removesuffix(f'; {WHERE}'))}")
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
            faults.append(f"{len(bad):,} {split} images are corrupt")
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
    """Classes that have fewer images than they should, as far as that is known."""
    wanted = 1 if split == "train" or subset else IMAGES["val"] // CLASSES
    for label in np.flatnonzero(counts < wanted):
        name = source.classes[label]
        yield name, f"class {name} has {counts[label]} images; wanted {wanted}{' or more' * (wanted == 1)}"


def describe(root: Path) -> str:
    """What `prepare` wrote."""
    found = [(split, open_split(root, split, keep=False)) for split in SPLITS if (root / split).is_dir()]
    counts = " and ".join(f"{len(source.labels):,} {split} images" for split, source in found)
    return f"{root}: {counts}; now run `python -m attsnn.data verify imagenet {root}`"


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
    out="the folder of train/ and val/ to write, which must not be there yet",
    path="class folders or shards",
    flags={
        "val_labels": "a text with a wnid a line, in place of the development kit",
        "decode": "decode every image, not only odd ones",
        "subset": "any number of classes and images is complete",
    },
)
