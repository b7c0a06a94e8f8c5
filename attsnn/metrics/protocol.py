"""How a distance of generated images is measured, for any function that makes features of them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .frechet import Moments, frechet_distance

Feature = Callable[[Tensor], Tensor]  # images [N, ...] to features [N, D]


@dataclass(frozen=True)
class Result:
    """A Frechet distance and how it was measured; `dataclasses.asdict` turns it into a row, or JSON.

    Args:
        distance: the distance.
        relative: the distance relative to the trace of the real covariance; None if that is 0.
        real: the number of real samples; None if their statistics do not state it.
        fake: the number of generated samples.
        protocol: how it was measured, in words.
        network: SHA-256 of the file of the feature function's weights.
        statistics: SHA-256 of the file of the real moments.
    """

    distance: float
    relative: float | None
    real: int | None
    fake: int | None
    protocol: str = ""
    network: str | None = None
    statistics: str | None = None


def generated(
    sample: Callable[[int], Tensor], count: int, batch: int = 256, *, whole: bool = False
) -> Iterator[Tensor]:
    """Yields images of a generator, `[batch, ...]`, without gradients: it calls `sample(batch)`
    ceil(count / batch) times.

    The caller decides whether the generator is in its evaluation mode.

    Args:
        sample: maps a number to so many images.
        count: the number of images; the rest of the last batch is left out.
        batch: images per call.
        whole: keep the rest of the last batch, as the autoencoder distance of FSVAE and PFA does (5120 images
            for 5000 in batches of 256).

    Raises ValueError for a `count` or `batch` below 1, and if the generator makes another number of images.
    """
    if count < 1 or batch < 1:
        raise ValueError(f"count and batch must be at least 1, got {count} and {batch}")
    return _generated(sample, count, batch, whole)


def _generated(sample: Callable[[int], Tensor], count: int, batch: int, whole: bool) -> Iterator[Tensor]:
    for done in range(0, count, batch):
        with torch.no_grad():
            images = sample(batch)
        if len(images) != batch:
            raise ValueError(f"the generator was asked for {batch} images and made {len(images)}")
        yield images if whole else images[: count - done]


def features_of(images: Iterable[Tensor], feature: Feature, *, dimensions: int | None = None) -> Moments:
    """The `Moments` of the features of all images, batch after batch, without gradients.

    Args:
        images: batches of images.
        feature: maps a batch to features `[N, D]`.
        dimensions: D, if it is given; other features raise ValueError at the first batch.
    """
    moments = Moments(dimensions)
    for batch in images:
        with torch.no_grad():
            features = feature(batch)
        if len(features) != len(batch):
            raise ValueError(f"the feature function made {len(features)} rows of {len(batch)} images")
        moments.update(features)
    return moments


def frechet(feature: Feature, real: Moments | Iterable[Tensor], fake: Moments | Iterable[Tensor]) -> Result:
    """The Frechet distance of the features of generated images from those of real images, as a `Result`.

    Args:
        feature: maps images `[N, ...]` to features `[N, D]`.
        real: batches of images, or moments that were gathered before.
        fake: batches of images, or moments.

    Raises ValueError as `frechet_distance` and `features_of` do.
    """
    if not isinstance(real, Moments):
        real = features_of(real, feature)
    if not isinstance(fake, Moments):
        fake = features_of(fake, feature, dimensions=real.dimensions)
    distance, spread = frechet_distance(real, fake), real.covariance.trace().item()
    return Result(distance, distance / spread if spread > 0 else None, real.count, fake.count)
