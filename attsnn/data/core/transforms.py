"""Transforms of Pillow images to float32 `[C, H, W]`, from torchvision's v2 (the extra `vision`).

ImageNet's published training (Att-Res-SNN, MS-ResNet): RandomResizedCrop(224), AutoAugment with ImageNet's
policy, normalised, no flip. Its published evaluation: shorter side to 256, the middle 224; for 288, shorter
side to 320. Small images (CIFAR, MNIST) are used as large as they are; `images.unit` makes tensors of them
without torchvision.
"""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from attsnn.data.core.images import unit

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's RGB in 0..1
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # of CIFAR-10's, as commonly used
LONGEST = 8  # times the shorter side, above which the ends of an image are not resized
Transform = Callable[[Image.Image], Tensor]
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # of images and labels
Augment = Literal["imagenet", "cifar10", "randaugment", "trivial"]
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

    `auto_augment` is AutoAugment with the policy of that name, RandAugment ("randaugment": two operations of
    `magnitude`) or TrivialAugmentWide; `hflip` and `random_erasing` are probabilities, `scale` the least and
    greatest share of the image's area in the crop. Raises ImportError, in a sentence, without torchvision.
    """
    v2 = _v2()
    mode = v2.InterpolationMode(interpolation)
    transform: Transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=scale, interpolation=mode),
            *_augmented(v2, hflip, auto_augment, magnitude, mode),
            *_normalised(v2, MEAN, STD),
            *_erased(v2, random_erasing),
        ]
    )
    return transform


def small_train_transform(
    size: int = 32,
    *,
    pad: int = 4,
    crop_scale: float | None = None,
    hflip: float = 0.0,
    auto_augment: Augment | None = None,
    magnitude: int = 9,
    random_erasing: float = 0.0,
    interpolation: Interpolation = "bilinear",
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Transform:
    """For images of about `size` x `size` pixels, RGB or grey: a random crop of that size from the image with
    a black border of `pad` pixels; or a resized one without border, of at least the share `crop_scale` of
    the area.

    `mean` and `std` are those of each channel in 0..1; (0,) and (1,) leave images in 0..1. Else as
    `train_transform`.
    """
    v2 = _v2()
    mode = v2.InterpolationMode(interpolation)
    if crop_scale is None:
        crop = v2.RandomCrop(size, padding=pad)
    else:
        crop = v2.RandomResizedCrop(size, scale=(crop_scale, 1.0), interpolation=mode)
    augmented = _augmented(v2, hflip, auto_augment, magnitude, mode)
    steps = [crop, *augmented, *_normalised(v2, mean, std), *_erased(v2, random_erasing)]
    transform: Transform = v2.Compose(steps)
    return transform


def eval_transform(
    resize: int = 256,
    crop: int = 224,
    *,
    interpolation: Interpolation = "bilinear",
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Transform:
    """The shorter side to `resize`, then the middle `crop` x `crop`, normalised as in
    `small_train_transform`. Draws nothing.
    """
    if crop > resize:
        raise ValueError(f"the crop of {crop} is larger than the shorter side of {resize}")
    v2 = _v2()
    mode = v2.InterpolationMode(interpolation)
    steps = [_middle, v2.Resize(resize, interpolation=mode), v2.CenterCrop(crop)]
    transform: Transform = v2.Compose([*steps, *_normalised(v2, mean, std)])
    return transform


def grey_transform(size: int = 28) -> Transform:
    """The middle square of a picture in grey, float32 `[1, size, size]` in 0..1, as MNIST and Fashion-MNIST
    have them. Needs no torchvision, and draws nothing.
    """

    def transform(image: Image.Image) -> Tensor:
        side = min(image.size)
        left, top = ((length - side) // 2 for length in image.size)
        square = image.convert("L").crop((left, top, left + side, top + side))
        return unit(square if side == size else square.resize((size, size), Image.Resampling.BILINEAR))

    return transform


def signed_transform(
    size: int = 32, *, channels: int = 3, crop: int | None = None, hflip: float = 0.0
) -> Transform:
    """The middle `crop` x `crop` of a picture (default: its middle square), resized, float32 `[channels,
    size, size]` from -1 to 1, grey where `channels` is 1, mirrored with probability `hflip`: the published
    data of the fully spiking VAE. Needs no torchvision; draws from torch's global generator to mirror.
    """

    def transform(image: Image.Image) -> Tensor:
        side = min(image.size) if crop is None else crop
        left, top = ((length - side) // 2 for length in image.size)
        square = image.convert("L" if channels == 1 else "RGB").crop((left, top, left + side, top + side))
        x = unit(square if side == size else square.resize((size, size), Image.Resampling.BILINEAR))
        return 2 * (x.flip(2) if hflip and torch.rand(()).item() < hflip else x) - 1

    return transform


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


def mixes(classes: int, *, mixup: float = 0.0, cutmix: float = 0.0, probability: float = 1.0) -> Mix:
    """A function of (images [N, C, H, W], labels [N]) that mixes both, the labels then shares [N, classes],
    float32: by mixup or cutmix with these alphas, by one of the two at random where both are given.

    A batch is mixed with that probability; the shares of one that is not are 0 and 1. With both alphas 0, or
    the probability, nothing ever is, and labels stay labels. Draws from torch's global generator. ValueError
    for a probability that is none.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"the probability of a mixed batch must be from 0 to 1, got {probability}")
    if mixup == cutmix == 0 or probability == 0:
        return lambda images, labels: (images, labels)
    v2 = _v2()
    chosen = [(v2.MixUp, mixup), (v2.CutMix, cutmix)]
    mix: Mix = v2.RandomChoice(
        [kind(alpha=alpha, num_classes=classes) for kind, alpha in chosen if alpha > 0]
    )
    if probability == 1:
        return mix

    def sometimes(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if torch.rand(()).item() < probability:
            return mix(images, labels)
        return images, F.one_hot(labels, classes).float()

    return sometimes


def _augmented(
    v2: ModuleType, hflip: float, auto_augment: Augment | None, magnitude: int, mode: Any
) -> list[nn.Module]:
    augment: dict[str | None, Callable[[], list[nn.Module]]] = {
        None: lambda: [],
        "imagenet": lambda: [v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET)],
        "cifar10": lambda: [v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)],
        "randaugment": lambda: [v2.RandAugment(magnitude=magnitude, interpolation=mode)],
        "trivial": lambda: [v2.TrivialAugmentWide(interpolation=mode)],
    }
    if auto_augment not in augment:
        raise ValueError(f"auto_augment must be one of {list(augment)}, got {auto_augment!r}")
    return [*([v2.RandomHorizontalFlip(hflip)] if hflip else []), *augment[auto_augment]()]


def _normalised(v2: ModuleType, mean: Sequence[float], std: Sequence[float]) -> list[nn.Module]:
    return [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]


def _erased(v2: ModuleType, random_erasing: float) -> list[nn.Module]:
    return [v2.RandomErasing(random_erasing)] if random_erasing else []


def _v2() -> ModuleType:
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
    module: ModuleType = v2
    return module
