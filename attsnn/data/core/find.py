"""Small sets of images where they lie: their files, unpacked or in an archive, in one of a few places."""

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


class Layout(NamedTuple):
    """Files of these names in one of `folders` below a root ("" for the root), or in one of `archives`.

    A name may stand for several spellings, a regular expression.
    """

    names: tuple[str, ...]
    folders: tuple[str, ...]
    archives: tuple[str, ...] = ()


class File(NamedTuple):
    """A file's own name, its name for messages, and its bytes."""

    name: str
    where: str
    data: np.ndarray


class Found(NamedTuple):
    """The layout that a root has, and what reads the file of each of its names."""

    layout: Layout
    where: str
    read: Callable[[str], File]


def find_files(root: str | os.PathLike, layouts: Sequence[Layout], missing: str) -> Found:
    """The first layout that `root` has whole; `root` may be an archive itself.

    Raises DataMissingError, with what of the set is there and what is not, and `missing`, where to get it.
    """
    root, lack = Path(root), []
    if not root.exists():
        raise DataMissingError(f"{plain(root)}: no such file or folder; {missing}")
    for layout in layouts:
        for folder in layout.folders if root.is_dir() else ():
            there = _in_folder(root / folder, layout.names)
            if len(there) == len(layout.names):
                return Found(layout, plain(root / folder), partial(_file, there))
            if there:
                lack += [f"{plain(root / folder)} lacks {n}" for n in layout.names if n not in there][:1]
        archives = [root / name for name in layout.archives] if root.is_dir() else [root]
        for archive in filter(Path.is_file, archives):
            found = _in_archive(archive, layout)
            if found is not None:
                return found
            lack.append(f"{plain(archive)} does not hold {layout.names[0]} and what belongs to it")
    said = "; ".join(lack[:2]) or f"{plain(root)}: none of the set's files is here"
    raise DataMissingError(f"{said}; {missing}")


def _file(there: dict[str, Path], name: str) -> File:
    return File(there[name].name, plain(there[name]), map_file(there[name]))


def _in_folder(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    files = sorted(os.listdir(folder))
    found = {name: [f for f in files if re.fullmatch(name, f) and (folder / f).is_file()] for name in names}
    return {name: folder / matches[0] for name, matches in found.items() if matches}


def _in_archive(archive: Path, layout: Layout) -> Found | None:
    try:
        raw = Raw(archive, re.compile("|".join(layout.names)))
    except DataFormatError:
        if archive.name in layout.archives:
            raise
        return None  # a file that is no archive of this set
    found = {name: [n for n in raw.names if re.fullmatch(name, n)] for name in layout.names}
    if not all(found.values()):
        return None
    chosen = {name: matches[0] for name, matches in found.items()}
    contents = dict(raw.read(chosen.values()))
    files = {name: File(file, raw.where(file), contents[file]) for name, file in chosen.items()}
    return Found(layout, plain(archive), files.__getitem__)
