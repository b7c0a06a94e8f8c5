"""Images in folders, `FOLDER/<class>/<name>.JPEG`: the layout of torchvision's ImageFolder."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from attsnn.data.core.decode import SUFFIXES
from attsnn.data.core.files import is_folder, is_junk, look, plain, read_bytes
from attsnn.data.core.images import Encoded
from attsnn.data.errors import DataFormatError, DataMissingError, warn

# Files that lie next to images and are none.
NOTES = (".txt", ".md", ".csv", ".tsv", ".json", ".xml", ".html", ".ini", ".db", ".py", ".sh", ".log")


def pictures(folder: str | os.PathLike[str]) -> list[Path]:
    """The image files in a folder, sorted by name. Raises DataMissingError if there is none."""
    names = [name for name in sorted(os.listdir(folder)) if name.lower().endswith(SUFFIXES)]
    found = [Path(folder, name) for name in names if not is_junk(name)]
    if not found:
        raise DataMissingError(f"{plain(folder)}: no picture here; wanted {', '.join(SUFFIXES)}")
    return found


def class_names(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """The sorted names of the folders in `folder`; empty if it does not exist."""
    try:
        with os.scandir(folder) as entries:
            return tuple(sorted(e.name for e in entries if is_folder(e) and not is_junk(e.name)))
    except (FileNotFoundError, NotADirectoryError):
        return ()


class Folders(Encoded):
    """The images of a folder of class folders, sorted by class and name.

    One pass over the directories lists them without opening any file, so there is no index to keep: 1.28
    million names take seconds. `classes` gives the classes and their order if the folder may lack some (a
    split of a set). A class folder that it does not name is an error. A class without images is a warning,
    and so are files of kinds that are not read, except `NOTES`.
    """

    def __init__(self, path: str | os.PathLike[str], classes: Sequence[str] | None = None):
        self.path = Path(path)
        found = class_names(path)
        with os.scandir(path) as entries:
            loose = [e.name for e in entries if e.name.lower().endswith(SUFFIXES) and not is_junk(e.name)]
        if loose:
            warn(
                f"{plain(path)}: {len(loose)} images lie in no class folder and are left out, e.g. "
                f"{plain(min(loose))}"
            )
        self.classes = tuple(found if classes is None else classes)
        strange = sorted(set(found) - set(self.classes))
        if strange:
            raise DataFormatError(
                f"found class folder {strange[0]!r} (and {len(strange) - 1} more); wanted only the "
                f"{len(self.classes)} known classes, e.g. {', '.join(self.classes[:2])}",
                path=path,
            )
        self._left: list[str] = []
        names = [self._list(name) if name in set(found) else [] for name in self.classes]
        self.labels = np.repeat(np.arange(len(names)), [len(images) for images in names])
        # One block of bytes: each worker would copy a list of a million strings, because reading it
        # changes the strings' reference counts.
        encoded = [os.fsencode(image) for images in names for image in images]
        self._names, self._ends = b"".join(encoded), np.cumsum([0, *map(len, encoded)])
        empty = [name for name, images in zip(self.classes, names, strict=True) if not images]
        if not encoded:
            classes = f"{len(names)} classes have" if len(names) > 1 else "1 class has"
            listed = ", ".join(map(plain, self.classes[:5]))
            raise DataMissingError(f"{plain(path)}: {classes} no images: {listed}")
        if self._left:
            warn(
                f"{plain(path)}: {len(self._left)} files are left out, of kinds that are not read, e.g. "
                f"{plain(self._left[0])}"
            )
        if empty:
            warn(f"{path}: no images of {len(empty)} classes, e.g. {empty[0]}")

    def _list(self, name: str) -> list[str]:
        # Links and odd files too: what cannot be read must be counted as bad, not overlooked.
        with os.scandir(self.path / name) as entries:
            found = sorted((e.name, is_folder(e)) for e in entries if not is_junk(e.name))
        self._left += [f"{name}/{inner}/" for inner, folder in found if folder]
        names = [n for n, folder in found if not folder]
        images = [image for image in names if image.lower().endswith(SUFFIXES)]
        self._left += [f"{name}/{n}" for n in names if not n.lower().endswith((*SUFFIXES, *NOTES))]
        return images

    def _path(self, index: int) -> str:
        name = os.fsdecode(self._names[self._ends[index] : self._ends[index + 1]])
        return f"{self.path}/{self.classes[self.labels[index]]}/{name}"

    def read(self, index: int) -> bytes:
        """The bytes of a file."""
        return read_bytes(self._path(index))

    def where(self, index: int) -> str:
        """The path of a file; bytes that are not text are escaped."""
        return plain(self._path(index))

    def identity(self) -> str:
        """A hash of all names and of some sizes."""
        hashed = hashlib.sha256(self._names)
        hashed.update(look(self._path, len(self.labels)))
        return hashed.hexdigest()
