"""A split of a set of images below a root, as class folders or as shards, and what to say if it is not there.

    ROOT/train/<class>/*, ROOT/val/<class>/*            folders (val, validation or valid)
    ROOT/*train*.tar, ROOT/*val*.tar, ROOT/train/*.tar  shards, by the last word of a split in their names

What lies there and is not read is counted in a warning.
"""

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from attsnn.data.core.decode import SUFFIXES
from attsnn.data.core.files import is_junk, plain
from attsnn.data.core.images import EncodedSource
from attsnn.data.core.places import COMPRESSED_TARS
from attsnn.data.errors import DataFormatError, DataMissingError, warn
from attsnn.data.formats.folders import Folders, class_names
from attsnn.data.formats.shards import Shards

SPLITS = ("train", "val")
FOLDERS = {"train": ("train",), "val": ("val", "validation", "valid")}
# Words in a shard's name, between digits and other signs: "retrieval" does not contain "val" as a word.
WORDS = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "valset"), "val"),
}
PACKED = (*COMPRESSED_TARS, ".tar.zst")


def open_split(
    root: str | os.PathLike[str],
    split: str,
    *,
    classes: Sequence[str] | int | None = None,
    but: Sequence[str] = (),
    keep: bool = True,
    missing: str,
) -> EncodedSource:
    """The source of the images of a split.

    Args:
        classes: their names, or for shards their number; None: those of ROOT/train, or of the labels.
        but: names of .tar files that are not shards.
        keep: use the index of shards, and leave it there.
        missing: where to get the set.

    Raises DataMissingError or DataFormatError.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be 'train' or 'val', got {split!r}")
    root = Path(root)
    if not root.is_dir():
        what = "is a file; wanted its folder" if root.exists() else "no such folder"
        raise DataMissingError(f"{plain(root)}: {what}; {missing}")
    folder, further = _folder(root, split)
    beside = _shards(root, but)[split]
    within = _tars(folder, but)
    if class_names(folder) and (_has_classes(folder) or not within):
        found = Folders(folder, _names(root, classes))
        _say_left(root, [*further, *within, *beside], "besides class folders")
        if isinstance(classes, int) and len(found.classes) != classes:
            raise DataFormatError(f"found {len(found.classes)} class folders; wanted {classes}", path=folder)
        return found
    if shards := within or beside:
        _say_left(root, [*further, *(beside if within else ())], "besides shards")
        index = shards[0].parent / f".attsnn-{split}.index"
        return Shards(shards, classes, index=index if keep else None)
    raise DataMissingError(f"{_what_else(root, folder)}; {missing}")


def _folder(root: Path, split: str) -> tuple[Path, list[Path]]:
    """The folder of a split, preferably one with classes or shards, and its further folders
    that are not empty.
    """
    there = [root / name for name in FOLDERS[split] if (root / name).is_dir()]
    filled = [folder for folder in there if class_names(folder) or any(folder.glob("*.tar"))]
    first = (filled or there or [root / split])[0]
    return first, [folder for folder in filled if folder != first]


def _has_classes(folder: Path) -> bool:
    """Whether anything is in a class folder."""
    return any(any((folder / name).iterdir()) for name in class_names(folder))


def _shards(root: Path, but: Sequence[str]) -> dict[str, list[Path]]:
    """The shards of each split. A file without the word of a split in its name is left out and counted."""
    shards: dict[str, list[Path]] = {split: [] for split in SPLITS}
    left: list[Path] = []
    for tar in _tars(root, but):
        words = [WORDS[word] for word in re.split(r"[^a-z]+", tar.stem.lower()) if word in WORDS]
        (shards[words[-1]] if words else left).append(tar)
    _say_left(root, left, "whose names say neither train nor val")
    return shards


def _say_left(root: Path, left: Sequence[Path], why: str) -> None:
    if left:
        what = f"{len(left)} .tar files and folders" if len(left) > 1 else "1 .tar file or folder"
        warn(f"{plain(root)}: {what}, {why}, left out, e.g. {plain(left[0].relative_to(root))}")


def _names(root: Path, classes: Sequence[str] | int | None) -> Sequence[str] | None:
    """The classes of a split: as given, or the training set's, because a validation set may lack some."""
    if classes is None or isinstance(classes, int):
        return class_names(root / "train") or None
    return classes


def _tars(folder: Path, but: Sequence[str]) -> list[Path]:
    if not folder.is_dir():
        return []
    files = sorted(path for path in folder.iterdir() if path.name not in but and not is_junk(path.name))
    packed = [path for path in files if path.name.lower().endswith(PACKED)]
    if packed:
        warn(
            f"{plain(folder)}: {len(packed)} compressed archives are left out, e.g. "
            f"{plain(packed[0].name)}; shards are read at any place: unpack them to .tar"
        )
    return [path for path in files if path.suffix.lower() == ".tar"]


def _what_else(root: Path, folder: Path) -> str:
    """Why a split was not found, as far as can be seen."""
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    flat = [name for name in names if name.lower().endswith(SUFFIXES)]
    if flat:
        return f"{plain(folder)}: found {flat[0]} in no class folder; wanted {folder.name}/<class>/{flat[0]}"
    splits = {name for names in FOLDERS.values() for name in names}
    if root.name in splits and class_names(root):
        return f"{plain(root)}: is a split itself; name the folder above"
    inner = []
    with contextlib.suppress(OSError):  # of a folder that cannot be listed
        inner = [name for name in class_names(root) if splits & set(class_names(root / name))]
    if inner:
        return f"{plain(root)}: holds no split itself; did you mean {plain(root / inner[0])}"
    return f"{plain(root)}: found neither {folder.name}/<class>/ with images nor shards of this split"
