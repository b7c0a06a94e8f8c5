"""The official archives of ILSVRC 2012, as (wnid, name, bytes) of each image.

    ILSVRC2012_img_train.tar       <wnid>.tar of each class, in it <wnid>_<number>.JPEG
    ILSVRC2012_img_val.tar         ILSVRC2012_val_<number>.JPEG, without classes
    ILSVRC2012_devkit_t12.tar.gz   the classes of the validation images, by an ID; wnids have another order

Only regular files of these names are taken.
"""

import io
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from attsnn.data.core.files import FILE_BYTES
from attsnn.data.core.raw import Raw
from attsnn.data.core.tar import Stream, members
from attsnn.data.errors import DataFormatError, DataMissingError
from attsnn.data.formats.mat import check_size

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
WNID = re.compile(r"n[0-9]{8}")
VAL_IMAGE = re.compile(r"ILSVRC2012_val_([0-9]{8})\.JPEG")
META, TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
DEVKIT_BYTES = 1 << 25
META_BYTES = 1 << 27  # of its list of classes, unpacked
IMAGES_IN_CLASS = 100_000


def train_images(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """Yields (wnid, name, bytes) of the training archive, class after class."""
    seen = set()
    with open(path, "rb") as file:
        for outer in members(file, path.stat().st_size, path):
            wnid, suffix = outer.name[:9], outer.name[9:]
            if not (outer.isreg() and WNID.fullmatch(wnid) and suffix == ".tar") or wnid in seen:
                raise _stranger(path, outer, "each <wnid>.tar once")
            seen.add(wnid)
            place, names = f"{path}({outer.name})", re.compile(rf"{wnid}_[0-9]{{1,8}}\.JPEG")
            yield from _images(_Part(file, outer.offset_data), outer.size, place, wnid, names)


def _images(
    file: Stream, size: int, place: str, wnid: str, names: re.Pattern[str]
) -> Iterator[tuple[str, str, bytes]]:
    seen: set[str] = set()
    for member in members(file, size, place):
        good = member.isreg() and not member.issparse() and names.fullmatch(member.name)
        if not good or member.size > FILE_BYTES or member.name in seen or len(seen) >= IMAGES_IN_CLASS:
            raise _stranger(place, member, "the images of the class, each once")
        seen.add(member.name)
        file.seek(member.offset_data)
        yield wnid, member.name, file.read(member.size)


def val_images(path: Path, wnids: list[str]) -> Iterator[tuple[str, str, bytes]]:
    """The same for the validation archive; image n is of class wnids[n - 1]."""
    with open(path, "rb") as file:
        for _, name, data in _images(file, path.stat().st_size, str(path), "", VAL_IMAGE):
            match = VAL_IMAGE.fullmatch(name)
            assert match is not None  # `_images` yields only such names
            number = int(match.group(1))
            if not 1 <= number <= len(wnids):
                raise DataFormatError(f"found {name}; classes are known of 1 to {len(wnids)}", path=path)
            yield wnids[number - 1], name, data


def _stranger(path: str | os.PathLike[str], member: tarfile.TarInfo, wanted: str) -> DataFormatError:
    return DataFormatError(
        f"found {member.name[:80]!r} of {member.size} bytes; wanted {wanted}", path=path, offset=member.offset
    )


class _Part:
    """A part of a file, as a file with its own position."""

    def __init__(self, file: Stream, start: int):
        self._file, self._start, self._at = file, start, 0

    def seek(self, at: int) -> None:
        self._at = at

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        self._file.seek(self._start + self._at)
        data = self._file.read(size)
        self._at += len(data)
        return data


def val_wnids(raw: Path, val_labels: str | os.PathLike[str] | None) -> list[str]:
    """The wnid of each validation image.

    It comes from the development kit in `raw` (needs scipy, the extra `imagenet`) or from `val_labels`, a
    text with one wnid per line. Raises DataMissingError, DataFormatError or ImportError.
    """
    if val_labels is not None:
        path, lines = Path(val_labels), Path(val_labels).read_bytes()[:DEVKIT_BYTES].split()
        wnids = [line.decode("ascii", "replace") for line in lines]
        for number, wnid in enumerate(wnids, start=1):
            if not WNID.fullmatch(wnid):
                raise DataFormatError(f"found {wnid[:40]!r}; wanted a wnid", path=path, line=number)
        return wnids
    devkit = raw / DEVKIT
    if not devkit.is_file():
        raise DataMissingError(
            f"{devkit}: is missing; it holds the classes of {VAL}. Put it there, or give a text with a wnid "
            "a line as --val-labels"
        )
    names = re.compile("|".join(map(re.escape, (META, TRUTH))))
    kit = Raw(devkit, names, depth=2)
    lack = sorted({META, TRUTH} - set(kit.names))
    if lack:
        raise DataFormatError("is missing", path=kit.where(lack[0]))
    wnid_of = _read_meta(kit.text(META, DEVKIT_BYTES), kit.where(META))
    lines = kit.text(TRUTH, DEVKIT_BYTES).split()
    for number, line in enumerate(lines, start=1):
        if not (line.isdigit() and len(line) < 9 and int(line) in wnid_of):
            raise DataFormatError(
                f"found {line[:20]!r}; wanted the ID of a class", path=kit.where(TRUTH), line=number
            )
    return [wnid_of[int(line)] for line in lines]


def _read_meta(data: bytes, where: str) -> dict[int, str]:
    """The wnid of each ILSVRC2012_ID that has no children; these are the classes."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError(f"{where} needs scipy ({error}): pip install scipy, or pass --val-labels") from None
    try:
        check_size(data, META_BYTES)
        synsets = loadmat(io.BytesIO(data), squeeze_me=True, variable_names=["synsets"])["synsets"]
        columns = zip(synsets["ILSVRC2012_ID"], synsets["WNID"], synsets["num_children"], strict=True)
        wnid_of = {int(number): str(wnid) for number, wnid, children in columns if not children}
    except Exception as error:  # scipy may raise anything for broken bytes
        raise DataFormatError(f"cannot be read as MATLAB's synsets ({error})", path=where) from None
    if not wnid_of or not all(WNID.fullmatch(wnid) for wnid in wnid_of.values()):
        raise DataFormatError("found a class whose WNID is none, or no classes", path=where)
    return wnid_of
