"""Images with labels, what happens to a bad image, and batches that say which images were bad.

A bad image is missing, cut short or not an image; it does not end a run. `Images` puts another image in its
place and passes its name on with the sample. `collate` gathers the names of a batch. `BadImages`, in the
process that trains, reports each file once and ends the run if there are too many.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from torch.utils.data._utils.collate import default_collate_fn_map
from tqdm import tqdm

from attsnn.data.core.decode import decode
from attsnn.data.core.events import Draw, generator
from attsnn.data.core.files import plain, read_bytes
from attsnn.data.errors import DataError, DataFormatError, DataMissingError

TRIES = 16  # images tried in place of a bad one: at 10 % bad, all fail once in 10^16


class Source(Protocol):
    """Where images come from: folders of files, shards, an archive, or memory."""

    classes: tuple[str, ...]
    labels: np.ndarray  # int64 [N]

    def image(self, index: int) -> Image.Image:
        """A Pillow image; raises OSError or DataFormatError if it is missing or not an image."""

    def where(self, index: int) -> str:
        """Its name for messages."""

    def identity(self) -> str:
        """A hash that tells these images from others, without reading them all."""


class EncodedSource(Source, Protocol):
    """A source of encoded images."""

    def read(self, index: int) -> bytes:
        """The encoded image; raises OSError or DataFormatError if it is missing."""


class Encoded:
    """A source whose images are encoded: it has `read(index) -> bytes`."""

    def image(self: EncodedSource, index: int) -> Image.Image:
        return decode(fetch(self, index), self.where(index))


class Arrays:
    """Images in memory: uint8 `[N, H, W]`, or `[N, H, W, 3]` for RGB."""

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, classes: Sequence[str], path: str | os.PathLike[str]
    ):
        self.images, self.labels = images, np.asarray(labels, np.int64)
        self.classes, self._path = tuple(classes), plain(path)

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])

    def where(self, index: int) -> str:
        return f"{self._path}, image {index}"

    def identity(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self.images).data).hexdigest()


class Sample(NamedTuple):
    """An image, its label, and the bad images that were met on the way.

    Args:
        image: what the transform made; None if the image was bad and is left out.
        label: its class; that of the bad image if it is left out.
        bad: {name: sentence} of the bad images.
    """

    image: Tensor | None
    label: int
    bad: dict[str, str]


def pixels(image: Image.Image) -> Tensor:
    """An RGB image as uint8 `[3, H, W]`, a grey one as `[1, H, W]`."""
    array = np.array(image)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1).contiguous()


def unit(image: Image.Image) -> Tensor:
    """An image as float32 `[C, H, W]` in 0..1 (C = 3 for RGB, 1 for grey): a transform without torchvision.

    The bits are those of torchvision's `ToDtype(torch.float32, scale=True)`.
    """
    return pixels(image).float().mul_(1 / 255)


class Images(Dataset[Sample]):
    """The images of a source: `dataset[Draw(index, seed)]` is a `Sample`, the same in every process.

    `transform` makes a tensor of an RGB Pillow image. It may draw from torch's global generator, as
    torchvision's transforms do: the key seeds that generator, which is put back afterwards. An int is the key
    `Draw(index, 0)`.

    A bad image is replaced by another one, which is drawn from the key alone. With `substitute=False` it is
    left out, as an evaluation needs, which may count no image twice. Raises DataError if `TRIES` images in a
    row are bad.
    """

    def __init__(
        self,
        source: Source,
        transform: Callable[[Image.Image], Tensor] | None = None,
        *,
        substitute: bool = True,
    ):
        self.source, self.transform, self.substitute = source, transform or pixels, substitute
        self.classes, self.labels = source.classes, source.labels

    @property
    def identity(self) -> str:
        """A hash of these images (names, sizes, labels); a copy of them has the same hash."""
        labels = np.ascontiguousarray(self.labels, "<i8").tobytes()
        names = "\0".join(self.classes).encode("utf-8", "backslashreplace")
        return hashlib.sha256(labels + names + self.source.identity().encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int | Draw) -> Sample:
        index, seed = key if isinstance(key, Draw) else (key, 0)
        index = at = range(len(self))[index]
        bad: dict[str, str] = {}
        for attempt in range(1, TRIES + 1):
            try:
                image = self.source.image(at)
            except DataFormatError as error:
                bad[self.source.where(at)] = str(error)
                if not self.substitute:
                    return Sample(None, int(self.labels[at]), bad)
                at = int(generator((index, seed, attempt)).integers(len(self)))
                continue
            return Sample(seeded(self.transform, image, seed), int(self.labels[at]), bad)
        first = next(iter(bad.values()))
        raise DataError(f"{TRIES} images drawn at random are bad; the data is damaged or gone: {first}")


def seeded(transform: Callable[[Any], Tensor], image: Any, seed: int) -> Tensor:
    """`transform(image)`, with torch's global generator seeded by `seed` meanwhile
    and put back afterwards.
    """
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the GPUs' generators, which are not put back.
        torch.default_generator.manual_seed(int(seed))
        return transform(image)


def fetch(source: EncodedSource, index: int) -> bytes:
    """The encoded image. Raises DataFormatError, which begins with the image's name, if it cannot be read."""
    try:
        return source.read(index)
    except OSError as error:
        reason = error.strerror or error
        raise DataFormatError(f"cannot be read ({reason})", path=source.where(index)) from None


def collate(samples: Sequence[Sample]) -> tuple[Tensor, Tensor, dict[str, str]]:
    """Makes a batch of `Sample`s.

    Returns (images `[N, ...]`, labels int64 `[N]`, {name: sentence} of the bad images). Samples without an
    image are left out; if all are, the images are an empty tensor `[0]`. PyTorch's default collate function
    does the same with `Sample`s.
    """
    good = [sample for sample in samples if sample.image is not None]
    bad = {name: reason for sample in samples for name, reason in sample.bad.items()}
    images = default_collate([sample.image for sample in good]) if good else torch.empty(0)
    return images, torch.tensor([sample.label for sample in good], dtype=torch.int64), bad


# PyTorch's default collate function would end at the first bad image, with a KeyError.
default_collate_fn_map[Sample] = lambda samples, **_: collate(samples)


class BadImages:
    """Counts the distinct bad images of a run, over batches, workers and epochs.

    It also counts over processes, if each process counts what any of them noted. Each image is printed once,
    on stderr. `reasons` maps the name of a counted image to its sentence; `noted` has those that are not
    counted yet.

    Args:
        most: how many bad images are allowed; more raise DataError.
        report: whether to print them; False in every process but the first.
    """

    def __init__(self, most: int, *, report: bool = True):
        if most < 0:
            raise ValueError(f"The most bad images allowed is {most}; it must be at least 0.")
        self.most, self.report = most, report
        self.reasons: dict[str, str] = {}
        self.noted: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.reasons)

    def count(self, bad: Mapping[str, str]) -> None:
        """Counts what was noted, here or in other processes. Raises DataError if there are too many."""
        self.noted = {}
        for name, reason in bad.items():
            if name in self.reasons:
                continue
            self.reasons[name] = reason
            if self.report:
                tqdm.write(f"bad image {len(self)} (at most {self.most}): {reason}", file=sys.stderr)
        if len(self) > self.most:
            first = "; ".join(list(self.reasons.values())[:3])
            raise DataError(f"found {len(self)} bad images, more than the {self.most} allowed: {first}")

    def take(self, batch: tuple[Any, Any, Mapping[str, str]]) -> tuple[Any, Any]:
        """The (images, labels) of a batch of `collate`; its bad images are noted."""
        images, labels, bad = batch
        self.noted |= {name: reason for name, reason in bad.items() if name not in self.reasons}
        return images, labels


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """The RGB image in a file, turned as its EXIF says. (Images of data sets are not turned.)

    Raises DataMissingError or DataFormatError, which names the file.
    """
    try:
        return decode(read_bytes(path), plain(path), turn=True)
    except FileNotFoundError:
        raise DataMissingError(f"{plain(path)}: no such file; wanted a JPEG or PNG") from None
    except OSError as error:
        raise DataFormatError(f"cannot be read ({error.strerror or error})", path=path) from None
