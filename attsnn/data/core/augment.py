"""Augmentation of event frames as in PFA (KBS 2024), after NDA (ECCV 2022), with one draw for all steps.

The published augmentation is a flip with probability 0.5, then one of rotation, shear, cutout and roll, with
the ranges that are the defaults here. The draws are a pure function of the seed; the published ones came from
Python's generator.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from attsnn.data.core.events import generator

Operation = Literal["rotation", "shear", "cutout", "roll"]
OPERATIONS: tuple[Operation, ...] = ("rotation", "shear", "cutout", "roll")
STREAM = 1  # not the stream that draws a sample's window


@dataclass(frozen=True)
class EventAugment:
    """Augments event frames: `augment(frames, seed)` changes frames `[T, 2, H, W]` in the same
    way at every step.

    The defaults are those of PFA (KBS 2024), after NDA (ECCV 2022). The flip comes first, then `pick` of the
    `operations`, in the order in which they are drawn. Pixels without a source become 0.

    - "rotation" turns by an integer from -`degrees` to `degrees` about the centre, to the nearest pixel.
    - "shear" shears the rows by an integer from -`shear` to `shear` degrees, to the nearest pixel.
    - "cutout" sets a square of side 1 to `cutout` to 0. Its first corner is at least half a side from every
      border.
    - "roll" shifts by -`shift` to `shift` pixels in each direction. What leaves on one side comes back on the
      other.

    Args:
        operations: the operations to choose from.
        pick: how many of them are applied.
        flip: the probability of mirroring the width.
        degrees: the largest rotation.
        shear: the largest shear, in degrees.
        cutout: the largest side of the square, in pixels.
        shift: the largest shift, in pixels.

    Raises ValueError for values that do not fit.
    """

    operations: tuple[Operation, ...] = OPERATIONS
    pick: int = 1
    flip: float = 0.5
    degrees: int = 15
    shear: int = 8
    cutout: int = 8
    shift: int = 5

    def __post_init__(self) -> None:
        unknown = [name for name in self.operations if name not in OPERATIONS]
        if unknown or not 0 <= self.pick <= len(self.operations) or not 0 <= self.flip <= 1:
            raise ValueError(
                f"wanted operations of {', '.join(OPERATIONS)}, as many or more than pick, and a probability "
                f"flip; got {self.operations}, {self.pick}, {self.flip}"
            )
        if min(self.degrees, self.shear, self.shift) < 0 or self.cutout < 1:
            raise ValueError(
                f"degrees, shear and shift must be at least 0, cutout 1; got {self.degrees}, {self.shear}, "
                f"{self.shift}, {self.cutout}"
            )

    def __call__(self, frames: Tensor, seed: int) -> Tensor:
        rng = generator((seed, STREAM))
        chosen = [self.operations[k] for k in rng.permutation(len(self.operations))[: self.pick]]
        if rng.random() < self.flip:
            frames = frames.flip(-1)
        for name in chosen:
            frames = getattr(self, f"_{name}")(frames, rng)
        return frames

    def _rotation(self, frames: Tensor, rng: np.random.Generator) -> Tensor:
        return rotate(frames, int(rng.integers(-self.degrees, self.degrees, endpoint=True)))

    def _shear(self, frames: Tensor, rng: np.random.Generator) -> Tensor:
        return shear(frames, int(rng.integers(-self.shear, self.shear, endpoint=True)))

    def _cutout(self, frames: Tensor, rng: np.random.Generator) -> Tensor:
        side = int(rng.integers(1, self.cutout, endpoint=True))
        half = -(-side // 2)
        y, x = (int(rng.integers(half, max(half, size - half), endpoint=True)) for size in frames.shape[-2:])
        frames = frames.clone()
        frames[..., y : y + side, x : x + side] = 0
        return frames

    def _roll(self, frames: Tensor, rng: np.random.Generator) -> Tensor:
        shifts = rng.integers(-self.shift, self.shift, 2, endpoint=True).tolist()
        return frames.roll(shifts, (-2, -1))


def rotate(frames: Tensor, degrees: float) -> Tensor:
    """Rotates counter-clockwise about the centre, to the nearest pixel, as torchvision's `rotate` does."""
    angle = math.radians(degrees)
    return _mapped(frames, math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle))


def shear(frames: Tensor, degrees: float) -> Tensor:
    """Moves each row in proportion to its height, to the nearest pixel, as torchvision's `affine` does."""
    return _mapped(frames, 1, math.tan(math.radians(degrees)), 0, 1)


def _mapped(frames: Tensor, xx: float, xy: float, yx: float, yy: float) -> Tensor:
    """Takes pixel (x, y) from (xx·x + xy·y, yx·x + yy·y), counted from the centre; 0 from outside."""
    height, width = frames.shape[-2:]
    y = torch.arange(height, dtype=torch.float64)[:, None] - (height - 1) / 2
    x = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    column = torch.round(xx * x + xy * y + (width - 1) / 2).long()
    row = torch.round(yx * x + yy * y + (height - 1) / 2).long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    source = frames[..., row.clamp(0, height - 1), column.clamp(0, width - 1)]
    return source * inside.to(frames.dtype)
