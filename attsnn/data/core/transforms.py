"""Transforms of Pillow images to float32 `[C, H, W]`, from torchvision's v2 (the extra `vision`).

ImageNet's published training (Att-Res-SNN, MS-ResNet) takes RandomResizedCrop(224) and AutoAugment with
ImageNet's policy, normalises, and does not flip. Its published evaluation resizes the shorter side to 256 and
takes the middle 224; for 288 it resizes to 320. Small images (CIFAR, MNIST) keep their size; `images.unit`
makes tensors of them without torchvision.
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
LONGEST = 8  # times the shorter side; the ends of a longer image are cut off before resizing
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
    """A transform for training on ImageNet: a Pillow image to float32 `[3, size, size]`, normalised with
    ImageNet's mean and standard deviation.

    The defaults are those of the published training (Att-Res-SNN, MS-ResNet). All draws are from torch's
    global generator.

    Args:
        size: the side of the crop, in pixels.
        auto_augment: "imagenet" or "cifar10" is AutoAugment with that policy, "randaugment" is RandAugment
            (two operations of `magnitude`), "trivial" is TrivialAugmentWide, and None is no augmentation.
        hflip: the probability of a horizontal flip.
        random_erasing: the probability of RandomErasing.
        scale: the least and the greatest share of the image's area in the crop.
        magnitude: the magnitude of RandAugment.
        interpolation: "bilinear" or "bicubic".

    Raises:
        ImportError: there is no torchvision that fits; the message is a sentence.
        ValueError: `auto_augment` is unknown.
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
    """A transform for training on images of about `size` x `size` pixels, RGB or grey, to float32
    `[C, size, size]`.

    Args:
        size: the side of the crop, in pixels.
        pad: the width of a black border around the image, from which a random crop is taken.
        crop_scale: if given, a resized crop without a border is taken instead, of at least this share of the
            area.
        hflip, auto_augment, magnitude, random_erasing, interpolation: as for `train_transform`.
        mean: the mean of each channel, in 0..1; (0,) with a `std` of (1,) leaves images in 0..1.
        std: the standard deviation of each channel, in 0..1.

    Raises as `train_transform` does.
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
    """A transform for evaluation: a Pillow image to float32 `[C, crop, crop]`. It draws nothing at random.

    Resizes the shorter side to `resize`, takes the middle `crop` x `crop`, and normalises with `mean` and
    `std` as in `small_train_transform`. Raises ValueError if the crop is larger than `resize`, and
    ImportError without torchvision.
    """
    if crop > resize:
        raise ValueError(f"the crop of {crop} is larger than the shorter side of {resize}")
    v2 = _v2()
    mode = v2.InterpolationMode(interpolation)
    steps = [_middle, v2.Resize(resize, interpolation=mode), v2.CenterCrop(crop)]
    transform: Transform = v2.Compose([*steps, *_normalised(v2, mean, std)])
    return transform


def grey_transform(size: int = 28) -> Transform:
    """A transform to a picture's middle square in grey, float32 `[1, size, size]` in 0..1, as in MNIST.

    It needs no torchvision, and draws nothing at random. Fashion-MNIST has such images, too.
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
    """A transform to float32 `[channels, size, size]` from -1 to 1: the published data of
    the fully spiking VAE.

    It takes the middle square and resizes it. It needs no torchvision. To mirror, it draws from torch's
    global generator.

    Args:
        size: the side of the result, in pixels.
        channels: 1 for grey, 3 for RGB.
        crop: the side of the middle square; None: the shorter side of the picture.
        hflip: the probability of mirroring.
    """

    def transform(image: Image.Image) -> Tensor:
        side = min(image.size) if crop is None else crop
        left, top = ((length - side) // 2 for length in image.size)
        square = image.convert("L" if channels == 1 else "RGB").crop((left, top, left + side, top + side))
        x = unit(square if side == size else square.resize((size, size), Image.Resampling.BILINEAR))
        return 2 * (x.flip(2) if hflip and torch.rand(()).item() < hflip else x) - 1

    return transform


def _middle(image: Image.Image) -> Image.Image:
    """The middle part of an image that is far longer than wide. A square from its middle needs no more;
    resizing the whole image might take gigabytes.
    """
    short, long = sorted(image.size)
    spare = (long - LONGEST * short) // 2
    if spare <= 0:
        return image
    across, down = (spare, 0) if image.width == long else (0, spare)
    return image.crop((across, down, image.width - across, image.height - down))


def mixes(classes: int, *, mixup: float = 0.0, cutmix: float = 0.0, probability: float = 1.0) -> Mix:
    """Returns a function that mixes batches by mixup or cutmix: (images `[N, C, H, W]`, labels `[N]`) to the
    mixed images and shares of the classes, float32 `[N, classes]`.

    If both alphas are 0, or the probability is, nothing is ever mixed, and labels stay labels. Draws are from
    torch's global generator.

    Args:
        classes: the number of classes.
        mixup: the alpha of mixup; 0 leaves it out.
        cutmix: the alpha of cutmix; 0 leaves it out. If both are given, one of the two is drawn for each
            batch.
        probability: the probability that a batch is mixed; the shares of one that is not are 0 and 1.

    Raises:
        ValueError: `probability` is not from 0 to 1.
        ImportError: mixing needs torchvision, and there is none that fits.
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
        # This is what a torchvision raises whose operators are built for another torch.
        raise ImportError(
            f"The torchvision that is installed does not fit torch {torch.__version__} ({error}): "
            "install both from one index, see https://pytorch.org/get-started/locally/"
        ) from None
    module: ModuleType = v2
    return module
