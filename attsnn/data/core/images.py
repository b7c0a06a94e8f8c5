"""Images with labels: decoding, what becomes of a bad image, and batches that say which were bad.

An image that is missing, cut short or no image does not end a run. `Images` puts another in its place and
hands its name on with the sample; `collate` gathers the names of a batch, and `BadImages`, in the process
that trains, reports each file once and ends the run when there are too many.
"""

import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from tqdm import tqdm

from attsnn.data.core.events import Draw, generator
from attsnn.data.core.files import read_bytes
from attsnn.data.errors import DataError, DataFormatError, DataMissingError

PIXELS = 89_478_485  # Pillow's MAX_IMAGE_PIXELS, above which it warns; here it is an error
TRIES = 16  # images in the place of a bad one: at 10 % bad, all fail once in 10^16


class Source(Protocol):
    """Where encoded images are: folders of files, or shards."""

    classes: tuple[str, ...]
    labels: np.ndarray  # int64 [N]

    def read(self, index: int) -> bytes:
        """The encoded image; OSError or DataFormatError if it is not there."""

    def where(self, index: int) -> str:
        """Its name for messages."""


class Sample(NamedTuple):
    """An image, its label, and the bad images met on the way: {name: sentence}.

    Where a bad image is left out, `image` is None and `label` that of the bad one.
    """

    image: Tensor | None
    label: int
    bad: dict[str, str]


def decode(data: bytes, where: str = "<bytes>") -> Image.Image:
    """The RGB image in the bytes of a JPEG or PNG, told apart by content; DataFormatError names `where`."""
    if not data:
        raise DataFormatError("found 0 bytes; wanted a JPEG or PNG", path=where)
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if image.width * image.height > PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, more than {PIXELS}")
            return _rgb(image)
    except UnidentifiedImageError:
        raise DataFormatError("is neither JPEG nor PNG", path=where) from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plug-ins raise what the broken bytes lead them to
        reason = str(error) or type(error).__name__
        raise DataFormatError(f"cannot be decoded ({reason})", path=where) from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bit, which Pillow would cut to 255 instead of scaling it
        image = Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
    return image.convert("RGB")


def pixels(image: Image.Image) -> Tensor:
    """uint8 `[3, H, W]` of an RGB image."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


class Images(Dataset):
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

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int | Draw) -> Sample:
        index, seed = key if isinstance(key, Draw) else (key, 0)
        index = at = range(len(self))[index]
        bad: dict[str, str] = {}
        for attempt in range(1, TRIES + 1):
            try:
                image = decode(fetch(self.source, at), self.source.where(at))
            except DataFormatError as error:
                bad[self.source.where(at)] = str(error)
                if not self.substitute:
                    return Sample(None, int(self.labels[at]), bad)
                at = int(generator((index, seed, attempt)).integers(len(self)))
                continue
            return Sample(self._transformed(image, seed), int(self.labels[at]), bad)
        first = next(iter(bad.values()))
        raise DataError(f"{TRIES} images drawn at random are bad; the data is damaged or gone: {first}")

    def _transformed(self, image: Image.Image, seed: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also seed the GPUs' generators, which are not put back.
            torch.default_generator.manual_seed(seed)
            return self.transform(image)


def fetch(source: Source, index: int) -> bytes:
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


def open_image(path: str | os.PathLike) -> Image.Image:
    """The RGB image in a JPEG or PNG file, turned as its camera says (a data set's are taken as they lie);
    DataMissingError or DataFormatError names it.
    """
    try:
        return ImageOps.exif_transpose(decode(read_bytes(path), str(path)))
    except FileNotFoundError:
        raise DataMissingError(f"{path}: no such file; wanted a JPEG or PNG") from None
