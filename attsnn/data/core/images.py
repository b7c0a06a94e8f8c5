"""Images with labels, what becomes of a bad image, and batches that say which were bad.

An image that is missing, cut short or no image does not end a run. `Images` puts another in its place and
hands its name on with the sample; `collate` gathers the names of a batch, and `BadImages`, in the process
that trains, reports each file once and ends the run when there are too many.
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

TRIES = 16  # images in the place of a bad one: at 10 % bad, all fail once in 10^16


class Source(Protocol):
    """Where images are: folders of files, shards, an archive, or memory."""

    classes: tuple[str, ...]
    labels: np.ndarray  # int64 [N]

    def image(self, index: int) -> Image.Image:
        """A Pillow image; OSError or DataFormatError if it is not there, or none."""

    def where(self, index: int) -> str:
        """Its name for messages."""

    def identity(self) -> str:
        """A hash that tells these images from others, without reading them all."""


class EncodedSource(Source, Protocol):
    """A source of encoded images."""

    def read(self, index: int) -> bytes:
        """The image as it is encoded; OSError or DataFormatError if it is not there."""


class Encoded:
    """A source of encoded images: those with `read(index) -> bytes`."""

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
    """An image, its label, and the bad images met on the way: {name: sentence}.

    Where a bad image is left out, `image` is None and `label` that of the bad one.
    """

    image: Tensor | None
    label: int
    bad: dict[str, str]


def pixels(image: Image.Image) -> Tensor:
    """uint8 `[3, H, W]` of an RGB image, `[1, H, W]` of a grey one."""
    array = np.array(image)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1).contiguous()


def unit(image: Image.Image) -> Tensor:
    """float32 `[C, H, W]` in 0..1 of an image as `pixels` takes it: a transform without torchvision, of the
    same bits as its `ToDtype(torch.float32, scale=True)`.
    """
    return pixels(image).float().mul_(1 / 255)


class Images(Dataset[Sample]):
    """The images of a source: `dataset[Draw(index, seed)]` is a `Sample`, the same in every process.

    `transform` makes a tensor of an RGB Pillow image and may draw from torch's global generator, as
    torchvision's do: that is seeded by the key, then put back. An int is the key `Draw(index, 0)`. A bad
    image is replaced by one that the key alone chooses at random; with `substitute=False` it is left out, as
    an evaluation must, which may count no image twice. Raises DataError if `TRIES` in a row are bad.
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
        """A hash that tells these images from others (names, sizes, labels), not from a copy of them."""
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
    """`transform(image)`; what it draws from torch's global generator, which is put back, is the seed's."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the GPUs' generators, which are not put back.
        torch.default_generator.manual_seed(int(seed))
        return transform(image)


def fetch(source: EncodedSource, index: int) -> bytes:
    """The encoded image; DataFormatError, the name first, if it is not there."""
    try:
        return source.read(index)
    except OSError as error:
        reason = error.strerror or error
        raise DataFormatError(f"cannot be read ({reason})", path=source.where(index)) from None


def collate(samples: Sequence[Sample]) -> tuple[Tensor, Tensor, dict[str, str]]:
    """(images `[N, ...]`, labels int64 `[N]`, {name: sentence} of the bad images) of a batch.

    Samples without an image are left out; if all are, the images are an empty tensor `[0]`.
    """
    good = [sample for sample in samples if sample.image is not None]
    bad = {name: reason for sample in samples for name, reason in sample.bad.items()}
    images = default_collate([sample.image for sample in good]) if good else torch.empty(0)
    return images, torch.tensor([sample.label for sample in good], dtype=torch.int64), bad


# PyTorch's default collate function would end at the first bad image, with a KeyError.
default_collate_fn_map[Sample] = lambda samples, **_: collate(samples)


class BadImages:
    """The distinct bad images of a run, over batches, workers and epochs, and over processes where each
    counts what any of them noted.

    Each is printed once, on stderr, unless `report` is False (every process but the first). More than `most`
    raise DataError. `reasons` maps a name to its sentence; `noted` those that are not counted yet.
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
        """Enters what was noted, here or in other processes."""
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
        """(images, labels) of a batch of `collate`, its bad images noted."""
        images, labels, bad = batch
        self.noted |= {name: reason for name, reason in bad.items() if name not in self.reasons}
        return images, labels


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """The RGB image in a file, turned as its camera says (a data set's are taken as they lie);
    DataMissingError or DataFormatError names it.
    """
    try:
        return decode(read_bytes(path), plain(path), turn=True)
    except FileNotFoundError:
        raise DataMissingError(f"{plain(path)}: no such file; wanted a JPEG or PNG") from None
    except OSError as error:
        raise DataFormatError(f"cannot be read ({error.strerror or error})", path=path) from None
