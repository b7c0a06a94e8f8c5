"""CIFAR-10 and CIFAR-100 with the spiking networks of both papers; one process or many.

python -m attsnn.data download cifar10 DIR

python train/cifar.py att_vgg --data DIR

python train/cifar.py modern --data DIR --name big

python train/cifar.py --eval --checkpoint runs/big --data DIR

python train/cifar.py textures

DIR holds CIFAR-10 or CIFAR-100, whose classes are seen from the files: the archive, what is in it, or
torchvision's copy. A tenth of the training images of each class chooses the checkpoint, which is measured on
the test set once. A run that was stopped goes on with --resume auto.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import tyro
from images import DRAWN_CLASSES, Classes, HeldOutTraining, Task, Transform, drawn
from images import main as run
from torch import Tensor
from torch.utils.data import Dataset

from attsnn import data, engine

SIDE = 32
STATISTICS = {"mean": data.CIFAR_MEAN, "std": data.CIFAR_STD}  # of both sets, as published


Model = Literal["att_vgg7", "att_vgg11", "att_vgg13", "att_vgg16", "att_vgg19", "pfa_ms_resnet18"]


@dataclass(frozen=True)
class Recipe(HeldOutTraining):
    recipe: tyro.conf.Suppress[str] = "att_vgg"
    data: Path | None = None  # folder or archive of CIFAR-10 or CIFAR-100
    model: Model = "att_vgg11"
    attention: Literal["model", "CSA", "PFA", "none"] = "model"  # model: CSA for att_*, PFA for pfa_*
    rank: int | None = None  # rank of every PFA; default: the model's, 4
    downsample: Literal["stride", "max"] | None = None  # how pfa_ms_resnet18 halves its maps; default: stride
    size: int = SIDE  # side of an image in pixels
    pad: int = 4  # pixels added around an image before a training crop is taken
    crop_scale: float | None = None  # crops of at least this share of the area, instead of padding
    augment: Literal["randaugment", "trivial"] | None = None
    hflip: float = 0.5  # probability that a training image is mirrored
    erasing: float = 0.0  # probability that a rectangle of a training image is erased
    parity: tuple[Literal["april"], ...] = ()  # april: the loss of April 2023, for CIFAR-10 alone

    RANGES: ClassVar[tuple[engine.Range, ...]] = (
        *HeldOutTraining.RANGES,
        engine.Range("from 0 to 1", lambda value: 0 <= value <= 1, ("hflip", "erasing")),
        engine.Range("above 0 and at most 1", lambda value: 0 < value <= 1, ("crop_scale",)),
        engine.Range("at least 0", lambda value: value >= 0, ("pad",)),
        engine.Range("at least 1", lambda value: value >= 1, ("rank",)),
    )


PUBLISHED = Recipe(epochs=200, batch=64, optimizer="adamw", lr=1e-3, schedule_every="epoch", crop_scale=0.08,
    augment="trivial", erasing=0.1, mixup=0.2, cutmix=1.0, label_smoothing=0.1, seed=2023)  # fmt: skip
STATIC = Recipe(recipe="pfa_static", model="pfa_ms_resnet18", steps=4, epochs=250, batch=64, optimizer="sgd",
    lr=0.1, weight_decay=5e-5, cutmix=1.0, mix_probability=0.5)  # fmt: skip
MODERN = Recipe(recipe="modern", model="pfa_ms_resnet18", steps=4, downsample="max", epochs=400, batch=128,
    optimizer="adamw", lr=1.5e-3, lr_end=1e-5, warmup_epochs=20, weight_decay=0.06, decay_all=False,
    augment="randaugment", mixup=0.5, cutmix=0.5, mix_until=0.5, erasing=0.25,
    label_smoothing=0.1)  # fmt: skip
TEXTURES = Recipe(recipe="textures", model="pfa_ms_resnet18", steps=2, width=0.125, epochs=4, batch=64,
    lr=3e-3, schedule="onecycle", synthetic=2000, hflip=0.0, workers=2)  # fmt: skip
RECIPES = {
    "att_vgg": (
        "Attention SNN as published, February 2023: VGG11 with CSA, T = 1, AdamW, 200 epochs.",
        PUBLISHED,
    ),
    "pfa_static": (
        "Ours, for no script was published: MS-ResNet with PFA, T = 4, SGD, 250 epochs, CutMix.",
        STATIC,
    ),
    "modern": (
        "Ours: the same, 400 epochs, AdamW, RandAugment, mixup and CutMix. CIFAR-100: --batch 64.",
        MODERN,
    ),
    "textures": ("Drawn textures, no data needed: a small network, minutes on two cores.", TEXTURES),
}


def open_images(
    r: Recipe, split: str, size: int, processes: engine.Processes, classes: Classes = None
) -> Dataset:
    """A split with its transform; "held" are the training images as an evaluation sees them."""
    if r.recipe == "textures" and r.data is None:
        start, count = (r.synthetic, max(r.synthetic // 5, 10)) if split == "test" else (0, r.synthetic)
        return data.SyntheticImages(count, size, classes=DRAWN_CLASSES, start=start, **STATISTICS)
    root = r.data if r.synthetic is None else drawn("cifar10", r.synthetic, processes)
    if root is None:
        where = data.DATASETS["cifar10"].where
        raise data.DataMissingError(f"--data is not given, nor --synthetic N; {where}; then pass --data DIR")
    if split == "train":
        transform = data.small_train_transform(size, pad=r.pad, crop_scale=r.crop_scale, hflip=r.hflip,
            auto_augment=r.augment, random_erasing=r.erasing, **STATISTICS)  # fmt: skip
    else:
        transform = picture(r, size).make()
    opened = data.open_cifar(root, "test" if split == "test" else "train", transform)
    if classes not in (None, len(opened.classes), opened.classes):
        raise data.DataFormatError(f"{root} has {len(opened.classes)} classes; the weights are for others")
    return opened


def picture(r: Recipe, size: int) -> Transform:
    return Transform("eval_transform", {"resize": size, "crop": size, **STATISTICS})


def loss_of(r: Recipe, classes: int) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The loss of the April revision: of rates, against the greater of two mixed labels alone."""
    if not r.parity:
        return None
    if classes != 10:
        raise ValueError(
            f"--parity april has ten one-hot labels, of CIFAR-10; these images have {classes} classes."
        )
    return lambda scores, target: engine.losses.rate_mse(
        scores, target if target.dim() == 1 else target.argmax(1)
    )


TASK = Task(
    about=__doc__,
    recipes=RECIPES,
    open=open_images,
    transform=picture,
    network=("model", "attention", "steps", "width", "dropout", "rank", "downsample"),
    families=("att_vgg",),
    of_run=lambda r: ("CIFAR-10", 45_000, 10),
    loss_of=loss_of,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line (default: this process's); returns the exit code."""
    return run(TASK, arguments)


if __name__ == "__main__":
    engine.leave(main())
