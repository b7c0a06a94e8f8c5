"""Finds the files of small sets of images, unpacked or in an archive, in one of a few places."""

import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from attsnn.data.core.files import map_file, plain
from attsnn.data.core.raw import Raw
from attsnn.data.errors import DataFormatError, DataMissingError

MOST_BYTES = 1 << 28


class Layout(NamedTuple):
    """Files of these names in one of `folders` below a root ("" for the root), or in one of `archives`.

    A file may be compressed (.gz), and may have a dot before idx as some unpackers leave it. Each has at most
    MOST_BYTES.
    """

    names: tuple[str, ...]
    folders: tuple[str, ...]
    archives: tuple[str, ...] = ()

    def spelling(self, name: str) -> str:
        """A pattern of the names that such a file may have."""
        return re.escape(name).replace(r"\-idx", "[-.]idx") + r"(?:\.gz)?"


class Content(NamedTuple):
    """A file's own name, its name for messages, and its bytes."""

    name: str
    where: str
    data: np.ndarray


class Found(NamedTuple):
    """The layout of a root, the root's name for messages, and a function that reads a file by its name."""

    layout: Layout
    where: str
    read: Callable[[str], Content]


def find_files(root: str | os.PathLike[str], layouts: Sequence[Layout], missing: str) -> Found:
    """The first layout that is complete in `root`, which may be an archive itself.

    Raises DataMissingError, which says what of the set is there, what is not, and `missing`: where to get it.
    """
    root, lack = Path(root), []
    if not root.exists():
        raise DataMissingError(f"{plain(root)}: no such file or folder; {missing}")
    for layout in layouts:
        for folder in layout.folders if root.is_dir() else ():
            there = _in_folder(root / folder, layout)
            if len(there) == len(layout.names):
                return Found(layout, plain(root / folder), partial(_file, there))
            if there:
                missed = next(name for name in layout.names if name not in there)
                lack.append(f"{plain(root / folder)} lacks {missed}")
        for archive in filter(Path.is_file, map(root.joinpath, layout.archives) if root.is_dir() else [root]):
            found = _in_archive(archive, layout)
            if isinstance(found, Found):
                return found
            lack.append(found)
    said = "; ".join(lack[:2]) or f"{plain(root)}: none of the set's files is here"
    raise DataMissingError(f"{said}; {missing}")


def _file(there: dict[str, Path], name: str) -> Content:
    return Content(there[name].name, plain(there[name]), map_file(there[name]))


def _in_folder(folder: Path, layout: Layout) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    files = sorted(file for file in os.listdir(folder) if (folder / file).is_file())
    found = {name: _called(name, files, layout) for name in layout.names}
    return {name: folder / matches[0] for name, matches in found.items() if matches}


def _called(name: str, files: Sequence[str], layout: Layout) -> list[str]:
    return [file for file in files if re.fullmatch(layout.spelling(name), file)]


def _in_archive(archive: Path, layout: Layout) -> Found | str:
    """The files in an archive, or why they are not."""
    try:
        raw = Raw(archive, re.compile("|".join(map(layout.spelling, layout.names))), layout.folders[1])
        found = {name: _called(name, raw.names, layout) for name in layout.names}
        missed = [name for name, matches in found.items() if not matches]
        if missed:
            return f"{plain(archive)} does not hold {missed[0]}"
        contents = dict(raw.read((matches[0] for matches in found.values()), MOST_BYTES))
    except DataFormatError as error:
        return str(error)
    files = {
        name: Content(matches[0], raw.where(matches[0]), contents[matches[0]])
        for name, matches in found.items()
    }
    return Found(layout, plain(archive), files.__getitem__)
