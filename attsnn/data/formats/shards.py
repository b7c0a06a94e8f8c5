"""WebDataset shards, tar files of `<key>.jpg` and `<key>.cls`, read at random places and never extracted.

The shards are indexed once (where each image lies, and its label). They then are a list of samples like any
folder, with the same order, resumption within an epoch, partition over ranks and exact validation. That is
why the webdataset package does not read them: it streams, and a shuffle buffer can neither start at sample n
nor keep an order that is independent of the number of workers. What the package's writers write is read here.

    INDEX = one line of JSON {"format": ..., "shards": [[name, size, mtime_ns, ctime_ns, samples], ...]}, then
            for each sample three little-endian int64: offset of the image, its size, its label

An index is made anew if its shards have changed since.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from attsnn.data.core.decode import SUFFIXES
from attsnn.data.core.files import FILE_BYTES, is_junk, plain, read_bytes, spread
from attsnn.data.core.images import Encoded
from attsnn.data.core.tar import members
from attsnn.data.errors import DataFormatError, DataMissingError, warn

FORMAT = "attsnn shard index 2"
LABELS = 1_000_000  # the most that a .cls may name
LABEL = re.compile(rb"\s*([0-9]{1,6})\s*")
NAME = re.compile(r"((?:.*/)?[^/]+)\.([^./]+)")  # key and suffix; keys may have dots


class Shards(Encoded):
    """The samples of some shards, in the order of the shards' names and of their bytes.

    `classes` is their number or their names; without it the classes are 0 .. the highest label. `index` is
    the file that keeps the index (None: it is made each time); if it cannot be written, nothing is said.
    Raises DataFormatError, with file and offset, for a shard that is cut short or that has a sample without
    image or label.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        classes: Sequence[str] | int | None = None,
        *,
        index: str | os.PathLike[str] | None = None,
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
        lacking = len(self.classes) - len(np.unique(self.labels))
        if lacking > 0:
            where = plain(self.paths[0].parent)
            warn(f"{where}: no images of {lacking:,} of {len(self.classes):,} classes")
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
        """A hash of the shards' names, of where the images lie in them, and of some of the images' names."""
        hashed = hashlib.sha256("\0".join(plain(path.name) for path in self.paths).encode())
        for column in (self._shards, self._offsets, self._sizes):
            hashed.update(np.ascontiguousarray(column, "<i8").data)
        for index in spread(len(self.labels)):  # the names of some
            head = max(int(self._offsets[index]) - tarfile.BLOCKSIZE, 0)
            hashed.update(read_bytes(self.paths[self._shards[index]], head, tarfile.BLOCKSIZE))
        return hashed.hexdigest()

    def _open(self, index: str | os.PathLike[str] | None) -> tuple[np.ndarray, np.ndarray]:
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


def _save(path: Path, shards: list[list[Any]], rows: np.ndarray) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with contextlib.suppress(OSError):  # a read-only folder: the next run makes it again
        try:
            with open(partial, "wb") as file:
                file.write(json.dumps({"format": FORMAT, "shards": shards}).encode() + b"\n")
                file.write(rows.tobytes())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def _load(path: Path, stamps: list[list[Any]]) -> tuple[np.ndarray, np.ndarray] | None:
    """What `_save` kept, if it is complete and belongs to these shards as they are now."""
    try:
        content = read_bytes(path, most=1 << 34)
        first, _, body = content.partition(b"\n")
        head = json.loads(first)
        if head["format"] != FORMAT or [shard[:4] for shard in head["shards"]] != stamps:
            return None
        numbers = [shard[4] for shard in head["shards"]]
        if not all(type(n) is int and 0 <= n <= stamp[1] for n, stamp in zip(numbers, stamps, strict=True)):
            return None
        if sum(numbers) * 24 != len(body):
            return None
        rows, counts = np.frombuffer(body, "<i8").reshape(-1, 3), np.array(numbers, np.int64)
    except (DataFormatError, OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None
    ends = np.repeat([stamp[1] for stamp in stamps], counts)
    offset, size, label = rows.T
    inside = (offset >= 0) & (size >= 0) & (size <= FILE_BYTES) & (offset <= ends - size)
    return (counts, rows) if (inside & (label >= 0) & (label < LABELS)).all() else None


def _samples(path: Path) -> Iterator[tuple[int, int, int]]:
    """(offset, size, label) of each sample of a shard, in the order of the images."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    keys: set[str] = set()  # of the images
    with open(path, "rb") as file:
        for member in members(file, os.fstat(file.fileno()).st_size, path):
            match = NAME.fullmatch(member.name)
            key, suffix = match.groups() if match else ("", "")
            suffix = suffix.lower()
            unread = suffix != "cls" and f".{suffix}" not in SUFFIXES
            if unread or any(map(is_junk, member.name.removeprefix("./").split("/"))):
                continue  # .json, .txt, what would need unpickling, what a Mac leaves
            twice = key in (labels if suffix == "cls" else keys)
            if not member.isreg() or member.issparse() or member.size > FILE_BYTES or twice:
                raise DataFormatError(
                    f"found {member.name[:80]!r}: a second one, no regular file, or {member.size} bytes",
                    path=path,
                    offset=member.offset,
                )
            if suffix == "cls":
                labels[key] = _label(path, file, member)
            else:
                keys.add(key)
                images[member.name] = member.offset_data, member.size
    chosen, left = _chosen(images, labels, path)
    if left:
        warn(
            f"{plain(path)}: {len(left)} images are left out, further ones of their samples, e.g. "
            f"{plain(left[0])}"
        )
    for name, (offset, size) in images.items():
        if name in chosen:
            yield offset, size, labels[chosen[name]]


def _chosen(images: Iterable[str], labels: Iterable[str], path: Path) -> tuple[dict[str, str], list[str]]:
    """({name of an image: key of its label}, names of further images of a sample).

    An image `7.b.jpg` belongs to the label of its own key, `7.b`, or else of what precedes a dot in the key,
    `7` (webdataset's rule). If several images belong to a label, the first one with the longest key is the
    sample's.
    """
    keys, left = set(labels), []
    owned: dict[str, list[tuple[int, int, str]]] = {}
    for name in images:
        parts = name.rpartition(".")[0].split(".")
        prefixes = [".".join(parts[:k]) for k in range(len(parts), 0, -1)]
        key = next((prefix for prefix in prefixes if prefix in keys), None)
        if key is None:
            raise DataFormatError(f"sample {prefixes[0][:80]!r} has no label (.cls)", path=path)
        owned.setdefault(key, []).append((prefixes.index(key), len(owned.get(key, [])), name))
    chosen = {}
    for key, found in owned.items():
        (_, _, name), *others = sorted(found)
        chosen[name] = key
        left += [other for *_, other in others]
    lacking = sorted(keys - owned.keys())
    if lacking:
        more = f", nor have {len(lacking) - 1} more" * (len(lacking) > 1)
        wanted = ", ".join(SUFFIXES)
        raise DataFormatError(f"sample {lacking[0][:80]!r} has no image ({wanted}){more}", path=path)
    return chosen, left


def _label(path: Path, file: IO[bytes], member: tarfile.TarInfo) -> int:
    text = os.pread(file.fileno(), min(member.size, 32), member.offset_data)
    match = LABEL.fullmatch(text)
    if not match:
        raise DataFormatError(
            f"found {text[:20]!r} as {member.name[:80]!r}; wanted the number of a class",
            path=path,
            offset=member.offset_data,
        )
    return int(match.group(1))
