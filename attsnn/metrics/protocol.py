"""How a distance of generated images is measured, whatever function makes features of them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .frechet import Moments, frechet_distance

Feature = Callable[[Tensor], Tensor]  # images [N, ...] to features [N, D]


@dataclass(frozen=True)
class Result:
    """A Frechet distance and what it was measured with; `dataclasses.asdict` of it is a row, or JSON."""

    distance: float
    relative: float | None  # to the trace of the real covariance; None where that is 0
    real: int | None  # samples; None where their statistics do not say it
    fake: int | None
    protocol: str = ""
    network: str | None = None  # SHA-256 of the file of the feature function's weights
    statistics: str | None = None  # SHA-256 of the file of the real moments


def generated(
    sample: Callable[[int], Tensor], count: int, batch: int = 256, *, whole: bool = False
) -> Iterator[Tensor]:
    """Images of a generator: ceil(count / batch) times `sample(batch)`, [batch, ...], without gradients.

    Exactly `count` images, the rest of the last batch is left out; with `whole` it is kept, as the
    autoencoder distance of FSVAE and PFA has it (5120 images for 5000 in batches of 256). Whether the
    generator is in its evaluation mode is the caller's concern.
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
    """The moments of the features of all images, batch after batch, without gradients. `dimensions`: how many
    the features must have; others raise ValueError at the first batch.
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
    """The distance of the features of generated images from those of real ones; each given as batches of
    images, or as moments gathered before.
    """
    if not isinstance(real, Moments):
        real = features_of(real, feature)
    if not isinstance(fake, Moments):
        fake = features_of(fake, feature, dimensions=real.dimensions)
    distance, spread = frechet_distance(real, fake), real.covariance.trace().item()
    return Result(distance, distance / spread if spread > 0 else None, real.count, fake.count)
