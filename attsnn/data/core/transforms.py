"""Transforms of RGB Pillow images to float32 `[3, H, W]`, from torchvision's v2 (the extra `vision`).

Published training (Att-Res-SNN, MS-ResNet): RandomResizedCrop(224), AutoAugment with ImageNet's policy,
normalised, no flip. Published evaluation: shorter side to 256, the middle 224; for 288, shorter side to 320.
"""

from collections.abc import Callable
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's RGB in 0..1
LONGEST = 8  # times the shorter side, above which the ends of an image are not resized
Transform = Callable[[Image.Image], Tensor]
Augment = Literal["imagenet", "randaugment", "trivial"]
Interpolation = Literal["bilinear", "bicubic"]


def train_transform(
    size: int = 224,
    *,
    auto_augment: Augment | None = "imagenet",
    hflip: float = 0.0,
    random_erasing: float = 0.0,
    scale: tuple[float, float] = (0.08, 1.0),
    magnitude: int = 9,
    interpolation: Interpolation = "bilinear",
) -> Transform:
    """The published training transform by default; all its draws are from torch's global generator.

    `hflip` and `random_erasing` are probabilities, `scale` the least and greatest share of the image's area
    in the crop, `magnitude` that of "randaugment" (two operations). Raises ImportError, in a sentence,
    without torchvision.
    """
    v2 = _v2()
    mode = v2.InterpolationMode(interpolation)
    augment = {
        None: lambda: [],
        "imagenet": lambda: [v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET)],
        "randaugment": lambda: [v2.RandAugment(magnitude=magnitude, interpolation=mode)],
        "trivial": lambda: [v2.TrivialAugmentWide(interpolation=mode)],
    }
    if auto_augment not in augment:
        raise ValueError(f"auto_augment must be one of {list(augment)}, got {auto_augment!r}")
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=scale, interpolation=mode),
            *([v2.RandomHorizontalFlip(hflip)] if hflip else []),
            *augment[auto_augment](),
            *_normalised(v2),
            *([v2.RandomErasing(random_erasing)] if random_erasing else []),
        ]
    )


def eval_transform(
    resize: int = 256, crop: int = 224, *, interpolation: Interpolation = "bilinear"
) -> Transform:
    """The shorter side to `resize`, then the middle `crop` x `crop`. Draws nothing."""
    if crop > resize:
        raise ValueError(f"the crop of {crop} is larger than the shorter side of {resize}")
    v2 = _v2()
    mode = v2.InterpolationMode(interpolation)
    steps = [_middle, v2.Resize(resize, interpolation=mode), v2.CenterCrop(crop)]
    return v2.Compose([*steps, *_normalised(v2)])


def _middle(image: Image.Image) -> Image.Image:
    """The middle of an image that is far longer than wide: all that a square from its middle needs, while the
    whole, its shorter side enlarged, might take gigabytes.
    """
    short, long = sorted(image.size)
    spare = (long - LONGEST * short) // 2
    if spare <= 0:
        return image
    across, down = (spare, 0) if image.width == long else (0, spare)
    return image.crop((across, down, image.width - across, image.height - down))


def mixes(classes: int, *, mixup: float = 0.0, cutmix: float = 0.0) -> Callable:
    """A function of (images [N, 3, H, W], labels [N]) that mixes both, the labels then shares [N, classes]:
    by mixup or cutmix with these alphas, by one of the two at random where both are given, not at all where
    neither is. Draws from torch's global generator.
    """
    if mixup == cutmix == 0:
        return lambda images, labels: (images, labels)
    v2 = _v2()
    chosen = [(v2.MixUp, mixup), (v2.CutMix, cutmix)]
    return v2.RandomChoice([kind(alpha=alpha, num_classes=classes) for kind, alpha in chosen if alpha > 0])


def _normalised(v2) -> list:
    return [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]


def _v2():
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise ImportError(
            f"The image transforms need torchvision ({error}): pip install torchvision, from where torch came"
        ) from None
    except RuntimeError as error:
        # What a torchvision whose operators are for another build of torch says.
        raise ImportError(
            f"The torchvision that is installed does not fit torch {torch.__version__} ({error}): "
            "install both from one index, see https://pytorch.org/get-started/locally/"
        ) from None
    return v2
