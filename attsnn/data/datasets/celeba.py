"""CelebA, aligned (Liu et al., ICCV 2015): 202,599 faces of 178 x 218 pixels, here without labels.

It is opened where it lies: `img_align_celeba.zip`, or the folder of that name, with `list_eval_partition.txt`
next to it. No other list is needed. torchvision's folder `celeba/` is found from its root.
"""

import codecs
import hashlib
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from attsnn.data.core.checking import bad_images, print_list
from attsnn.data.core.contract import DataSet, File
from attsnn.data.core.files import FILE_BYTES, is_junk, look, map_file, plain, read_bytes
from attsnn.data.core.images import Encoded, Images
from attsnn.data.core.places import UNSOUND_ZIP
from attsnn.data.core.staging import staged
from attsnn.data.errors import DataFormatError, DataMissingError

SPLITS = ("train", "val", "test")  # 0, 1 and 2 of the partition
COUNTS = {"train": 162_770, "val": 19_867, "test": 19_962}
ARCHIVE, FOLDER, PARTITION = "img_align_celeba.zip", "img_align_celeba", "list_eval_partition.txt"
ROW = re.compile(rb"([^\s/\0]{1,80}\.jpg)[ \t]+([0-9]{1,3})[ \t\r]*")
TEXT_BYTES = 1 << 24
FILES = (
    File(
        ARCHIVE,
        1_443_490_838,
        "00d2c5bc6d35e252742224ab0c1e8fcb",
        "46fb89443c578308acf364d7d379fe1b9efb793042c0af734b6112e4fd3a8c74",
    ),
    File(PARTITION, 2_836_386, "d32c9cbf5e040fd4025c592c306e6668"),
)
WHERE = (
    "by hand, from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html follow Google Drive to "
    f"Img/{ARCHIVE} and Eval/{PARTITION} ({', '.join(map(str, FILES))}) and put both into DIR, "
    "then run `python -m attsnn.data verify celeba DIR`"
)


class _Faces(Encoded):
    """The images of a split, in the order of the partition. Each process opens the zip file for itself."""

    classes: tuple[str, ...] = ("face",)

    def __init__(self, place: Path, names: list[str]):
        self._place, self.names = place, names
        self.labels = np.zeros(len(names), np.int64)
        self._members: dict[str, str] = {}
        if place.is_file():
            with _opened(place) as archive:
                paths = [info.filename for info in archive.infolist() if not info.is_dir()]
            for path in (path for path in paths if not any(map(is_junk, path.split("/")))):
                name = path.rpartition("/")[2]
                if name in self._members:
                    raise DataFormatError(f"found {name} twice, also as {path}", path=place)
                self._members[name] = path
            if names[0] not in self._members:
                raise DataFormatError(f"holds no {names[0]}, which the partition names first", path=place)
        self._archive: tuple[int, zipfile.ZipFile] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_archive": None}

    def read(self, index: int) -> bytes:
        """The bytes of an image."""
        name = self.names[index]
        if not self._members:
            return read_bytes(self._place / name)
        if self._archive is None or self._archive[0] != os.getpid():
            self._archive = os.getpid(), _opened(self._place)
        try:
            info = self._archive[1].getinfo(self._members.get(name, name))
            if info.file_size > FILE_BYTES:
                raise DataFormatError(f"found {info.file_size} bytes", path=self.where(index))
            return self._archive[1].read(info)
        except KeyError:
            raise DataFormatError("is not there", path=self.where(index)) from None
        except UNSOUND_ZIP as error:
            raise DataFormatError(f"cannot be read ({error})", path=self.where(index)) from None

    def where(self, index: int) -> str:
        """Its path, or the archive and its name in it."""
        name = self.names[index]
        return plain(f"{self._place}({name})" if self._members else self._place / name)

    def identity(self) -> str:
        """A hash of the names, and of all checksums in an archive or some sizes in a folder."""
        hashed = hashlib.sha256("\0".join(map(plain, self.names)).encode())
        if self._members:
            with _opened(self._place) as archive:
                hashed.update(str([(i.filename, i.file_size, i.CRC) for i in archive.infolist()]).encode())
        else:
            hashed.update(look(lambda index: self._place / self.names[index], len(self.names)))
        return hashed.hexdigest()


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except UNSOUND_ZIP as error:
        raise DataFormatError(f"not a sound .zip ({error})", path=plain(path)) from None


def _places(root: str | os.PathLike[str]) -> tuple[Path, Path]:
    """(The folder or archive of the images, the partition), next to each other or as in Google Drive."""
    root = Path(root)
    if root.name in (FOLDER, ARCHIVE) and root.exists():
        images, tops = [root], [root.parent, root.parent.parent]
    else:
        tops = [root, root / "celeba", root / "CelebA"]
        images = [top / inner / name for top in tops for inner in ("", "Img") for name in (FOLDER, ARCHIVE)]
    there = [inner if (inner := image / FOLDER).is_dir() else image for image in images if image.exists()]
    filled = [place for place in there if place.is_file() or any(place.glob("*.jpg"))]
    lists = [path for top in tops for inner in ("", "Eval") if (path := top / inner / PARTITION).is_file()]
    if not filled or not lists:
        lack = PARTITION if filled else f"{there[0]} with images" if there else f"{FOLDER}/ or {ARCHIVE}"
        raise DataMissingError(f"{plain(root)}: does not hold {plain(lack)}; {WHERE}")
    return filled[0], lists[0]


def _partition(path: Path) -> dict[str, list[str]]:
    """The names of the images of each split."""
    text = map_file(path)
    if len(text) > TEXT_BYTES:
        raise DataFormatError(f"found {len(text)} bytes; wanted at most {TEXT_BYTES}", path=plain(path))
    names: dict[str, list[str]] = {split: [] for split in SPLITS}
    seen = set()
    rows = text.tobytes().removeprefix(codecs.BOM_UTF8).split(b"\n")  # the mark that spreadsheets write
    for number, line in enumerate(rows, start=1):
        if not line.strip():
            continue
        match = ROW.fullmatch(line)
        name, split = match.groups() if match else (b"", b"")
        if match is None or int(split) >= len(SPLITS) or name in seen:
            raise DataFormatError(
                f"found {line[:60]!r}; wanted the name of an image, once, and 0, 1 or 2",
                path=plain(path),
                line=number,
            )
        seen.add(name)
        names[SPLITS[int(split)]].append(name.decode("utf-8", "surrogateescape"))
    return names


def _source(root: str | os.PathLike[str], split: str) -> _Faces:
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    place, partition = _places(root)
    names = _partition(partition)[split]
    if not names:
        raise DataFormatError(f"names no image of {split}", path=plain(partition))
    return _Faces(place, names)


class CelebA(Images):
    """A split of CelebA, aligned (Liu et al., ICCV 2015), as `Sample`s of label 0.

    Args:
        root: the folder of the partition list and of the images or their zip file; or the folder above it.
        split: "train" (162,770 images), "val" (19,867) or "test" (19,962).
        transform: takes an RGB Pillow image of 178 x 218 pixels; default: uint8 `[3, 218, 178]`.
        substitute: whether another image replaces a bad one; if not, the bad one is left out. Default: True
            for "train", False for the others.

    Raises:
        DataMissingError: the set is not there; the message says where to get it.
        DataFormatError: a file is broken.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: Literal["train", "val", "test"],
        transform: Callable[[Image.Image], Tensor] | None = None,
        *,
        substitute: bool | None = None,
    ):
        substitute = split == "train" if substitute is None else substitute
        super().__init__(_source(root, split), transform, substitute=substitute)


def prepare(raw: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Unpacks the images to OUT/celeba/img_align_celeba. Training does not need this."""
    _, partition = _places(raw)
    with staged(out) as partial:
        folder = partial / "celeba" / FOLDER
        folder.mkdir(parents=True)
        shutil.copyfile(partition, folder.parent / PARTITION)
        for split in (split for split, names in _partition(partition).items() if names):
            source = _source(raw, split)
            for index, name in enumerate(tqdm(source.names, unit="image", desc=split, disable=None)):
                (folder / name).write_bytes(source.read(index))
        os.sync()
    return Path(out)


def verify(path: str | os.PathLike[str], *, decode: bool = False, subset: bool = False) -> None:
    """Prints what each split holds and what is corrupt. Raises DataFormatError unless all
    is there and sound.
    """
    faults = []
    for split in SPLITS:
        source = _source(path, split)
        bad = dict(bad_images(source, decode, split))
        found = len(source.labels)
        print(f"{split}: {found:,} images, {len(bad):,} missing or corrupt")
        print_list("corrupt", bad)
        if bad:
            faults.append(f"{len(bad):,} {split} images are missing or corrupt")
        if found != COUNTS[split] and not subset:
            faults.append(
                f"{split} has {found:,} images, published are {COUNTS[split]:,} (of a part: --subset)"
            )
    if faults:
        raise DataFormatError("; ".join(faults), path=plain(path))


def describe(path: Path) -> str:
    """What is there."""
    names = _partition(_places(path)[1])
    return f"{plain(path)}: " + ", ".join(f"{len(names[split]):,} {split} images" for split in SPLITS)


CELEBA = DataSet(
    name="celeba",
    title="CelebA, aligned: 202,599 faces of 178 x 218 pixels",
    where=WHERE,
    licence="non-commercial research, no redistribution",
    classes=_Faces.classes,
    splits=SPLITS,
    open=CelebA,
    prepare=prepare,
    verify=verify,
    describe=describe,
    files=FILES,
    raw=f"the folder of {ARCHIVE} or {FOLDER}/, and of {PARTITION}",
    out="the folder to write: a new one, or an empty one",
    path="the folder of img_align_celeba.zip or img_align_celeba/, and of the partition",
    flags={
        "decode": "decode every image, not only those that begin or end oddly",
        "subset": "any number of images is complete",
    },
)
