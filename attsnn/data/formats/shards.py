"""WebDataset shards, tar files of `<key>.jpg` and `<key>.cls`, read at random places and never extracted.

The shards are indexed once (where each image lies, and its label), so that they are a list of samples like
any folder: the same order, resumption within an epoch, partition over ranks and exact validation apply. That
is why the webdataset package is not used to read them: it streams, and a shuffle buffer cannot be started at
sample n or hold an order that does not depend on the number of workers. What its writers write is read here.

    INDEX = one line of JSON {"format": ..., "shards": [[name, size, mtime_ns, ctime_ns, samples], ...]}, then
            for each sample three little-endian int64: offset of the image, its size, its label

An index whose shards have changed since is made anew.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from attsnn.data.core.decode import SUFFIXES
from attsnn.data.core.files import FILE_BYTES, plain, read_bytes, spread
from attsnn.data.core.images import Encoded
from attsnn.data.core.tar import members
from attsnn.data.errors import DataFormatError, DataMissingError

FORMAT = "attsnn shard index 2"
HEAD_BYTES = 1 << 24
LABEL = re.compile(rb"\s*([0-9]{1,6})\s*")
NAME = re.compile(r"((?:.*/)?[^/]+)\.([^./]+)")  # key and suffix; keys may have dots
FIRST_DOT = re.compile(r"((?:.*/)?[^./]+)\.[^/]*")  # webdataset's own rule


class Shards(Encoded):
    """The samples of some shards, in the order of the shards' names and of their bytes.

    `classes` is their number or their names; without it the classes are 0 .. the highest label. `index` is
    the file that keeps the index (None: it is made each time); where it cannot be written nothing is said.
    Raises DataFormatError, with file and offset, for a shard that is cut short or has a sample without image
    or label.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike],
        classes: Sequence[str] | int | None = None,
        *,
        index: str | os.PathLike | None = None,
    ):
        self.paths = sorted(map(Path, paths))
        if not self.paths:
            raise DataMissingError("no shards: wanted at least one .tar file")
        counts, rows = self._open(index)
        self._shards = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self._offsets, self._sizes, self.labels = (np.ascontiguousarray(column) for column in rows.T)
        if not len(rows):
            raise DataMissingError(f"{self.paths[0].parent}: the shards hold no samples")
        most = int(self.labels.max())
        if classes is None:
            classes = most + 1
        self.classes = tuple(map(str, range(classes)) if isinstance(classes, int) else classes)
        if most >= len(self.classes):
            at = int(self.labels.argmax())
            raise DataFormatError(
                f"found the label {most}; wanted at most {len(self.classes) - 1}", path=self.where(at)
            )

    def read(self, index: int) -> bytes:
        """The bytes of an image."""
        path = self.paths[self._shards[index]]
        return read_bytes(path, int(self._offsets[index]), int(self._sizes[index]))

    def where(self, index: int) -> str:
        """The shard, and where in it the image begins."""
        return f"{plain(self.paths[self._shards[index]])} at byte {self._offsets[index]}"

    def identity(self) -> str:
        """Of the shards' names, where in them the images lie, and some of their names."""
        hashed = hashlib.sha256("\0".join(plain(path.name) for path in self.paths).encode())
        for column in (self._shards, self._offsets, self._sizes):
            hashed.update(np.ascontiguousarray(column, "<i8").data)
        for index in spread(len(self.labels)):  # the names of some
            head = max(int(self._offsets[index]) - tarfile.BLOCKSIZE, 0)
            hashed.update(read_bytes(self.paths[self._shards[index]], head, tarfile.BLOCKSIZE))
        return hashed.hexdigest()

    def _open(self, index: str | os.PathLike | None) -> tuple[np.ndarray, np.ndarray]:
        """Samples of each shard, and (offset, size, label) of each sample: `[shards]`, `[N, 3]`."""
        status = [path.stat() for path in self.paths]
        stamps = [
            [plain(p.name), s.st_size, s.st_mtime_ns, s.st_ctime_ns]
            for p, s in zip(self.paths, status, strict=True)
        ]
        kept = None if index is None else _load(Path(index), stamps)
        if kept is not None:
            return kept
        progress = tqdm(self.paths, unit="shard", desc="index", disable=None)
        tables = [np.array(list(_samples(path)), "<i8").reshape(-1, 3) for path in progress]
        counts, rows = np.array([len(table) for table in tables]), np.concatenate(tables)
        if index is not None:
            _save(Path(index), [[*s, int(n)] for s, n in zip(stamps, counts, strict=True)], rows)
        return counts, rows


def _save(path: Path, shards: list, rows: np.ndarray) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with contextlib.suppress(OSError):  # a read-only folder: the next run makes it again
        try:
            with open(partial, "wb") as file:
                file.write(json.dumps({"format": FORMAT, "shards": shards}).encode() + b"\n")
                file.write(rows.tobytes())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def _load(path: Path, stamps: list) -> tuple[np.ndarray, np.ndarray] | None:
    """What `_save` kept, if it is whole and of these shards as they are now."""
    try:
        with open(path, "rb") as file:
            head = json.loads(file.readline(HEAD_BYTES))
            if head["format"] != FORMAT or [shard[:4] for shard in head["shards"]] != stamps:
                return None
            counts = np.array([shard[4] for shard in head["shards"]], np.int64)
            left = os.fstat(file.fileno()).st_size - file.tell()
            if (counts < 0).any() or int(counts.sum()) * 24 != left:
                return None
            rows = np.frombuffer(file.read(left), "<i8").reshape(-1, 3)
    except (OSError, ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError):
        return None
    ends = np.repeat([stamp[1] for stamp in stamps], counts)
    offset, size, label = rows.T
    inside = (offset >= 0) & (size >= 0) & (size <= FILE_BYTES) & (offset <= ends - size)
    return (counts, rows) if (inside & (label >= 0)).all() else None


def _samples(path: Path) -> Iterator[tuple[int, int, int]]:
    """(offset, size, label) of each sample of a shard, in the order of the images."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    with open(path, "rb") as file:
        for member in members(file, os.fstat(file.fileno()).st_size, path):
            match = NAME.fullmatch(member.name)
            key, suffix = match.groups() if match else ("", "")
            suffix = suffix.lower()
            if suffix != "cls" and f".{suffix}" not in SUFFIXES:
                continue  # .json, .txt, and what would have to be unpickled
            table = labels if suffix == "cls" else images
            if not member.isreg() or member.issparse() or member.size > FILE_BYTES or key in table:
                raise DataFormatError(
                    f"found {member.name[:80]!r}: a second one, no regular file, or {member.size} bytes",
                    path=plain(path),
                    offset=member.offset,
                )
            table[key] = _label(path, file, member) if suffix == "cls" else (member.offset_data, member.size)
    others = _other_images(images, labels)
    if others:
        warnings.warn(
            f"{plain(path)}: {len(others)} images are left out, further ones of their samples, e.g. "
            f"{plain(min(others))}",
            stacklevel=2,
        )
    alone = sorted((images.keys() ^ labels.keys()) - others)
    if alone:
        lack = "label (.cls)" if alone[0] in images else f"image ({', '.join(SUFFIXES)})"
        raise DataFormatError(
            f"sample {alone[0][:80]!r} has no {lack}, nor have {len(alone) - 1} more", path=plain(path)
        )
    for key, (offset, size) in images.items():
        if key not in others:
            yield offset, size, labels[key]


def _other_images(images: dict[str, tuple[int, int]], labels: dict[str, int]) -> set[str]:
    """Keys of images that have no label of their own, but that of another image: 7.depth.png beside 7.jpg."""
    firsts = {key: match.group(1) for key in images if (match := FIRST_DOT.fullmatch(f"{key}."))}
    return {k for k, first in firsts.items() if k not in labels and first in labels and first in images}


def _label(path: Path, file, member: tarfile.TarInfo) -> int:
    text = os.pread(file.fileno(), min(member.size, 32), member.offset_data)
    match = LABEL.fullmatch(text)
    if not match:
        raise DataFormatError(
            f"found {text[:20]!r} as {member.name[:80]!r}; wanted the number of a class",
            path=path,
            offset=member.offset_data,
        )
    return int(match.group(1))
