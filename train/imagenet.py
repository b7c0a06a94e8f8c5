"""Residual attention SNNs on ImageNet-1k, or on any images in class folders; one process or many.

python train/imagenet.py --data DIR --model att_ms_resnet34

torchrun --nproc-per-node 8 train/imagenet.py ms_resnet --data DIR --model ms_resnet104 --precision bf16

python train/imagenet.py --eval --checkpoint runs/att_res_snn --data DIR --eval-sizes 224 288

python train/imagenet.py --predict photo.jpg --checkpoint runs/att_res_snn

python train/imagenet.py --synthetic 2000 --epochs 5

DIR holds train/<class>/ and val/<class>/ with images, or WebDataset shards; `python -m attsnn.data verify
imagenet DIR` looks at it. The validation set chooses the checkpoint and is what is reported: the test set's
labels are not public. A run that was stopped goes on with --resume auto, on any number of processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import tyro
from images import DRAWN_CLASSES, Classes, ImageTraining, Task, Transform
from images import main as run
from torch.utils.data import Dataset

from attsnn import data, engine
from attsnn.data.datasets import imagenet

Model = Literal[
    "att_ms_resnet18", "att_ms_resnet34", "att_ms_resnet104", "ms_resnet18", "ms_resnet34", "ms_resnet104"
]


@dataclass(frozen=True)
class Recipe(ImageTraining):
    recipe: tyro.conf.Suppress[str] = "att_res_snn"
    data: Path | None = None  # folder with train/<class>/ and val/<class>/, or with WebDataset shards
    model: Model = "att_ms_resnet18"
    attention: Literal["model", "CSA", "CA", "none"] = "model"  # model: CSA for att_*, none for the others
    membrane_float32: bool = False  # keep the residual stream in float32 under bf16 and fp16
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    augment: Literal["imagenet", "randaugment", "trivial"] | None = "imagenet"  # imagenet: AutoAugment's
    crop_scale: float = 0.08  # smallest share of an image's area in a training crop
    hflip: float = 0.0  # probability that a training image is mirrored
    erasing: float = 0.0  # probability that a rectangle of a training image is erased
    label_smoothing: float = 0.1
    epochs: int = 250
    batch: int = 100  # images in a training step, over all processes
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"  # sgd: with momentum 0.9
    lr: float = 0.1  # highest learning rate of the schedule, a cosine to 0
    eval_sizes: tuple[int, ...] = ()  # sides of evaluation crops; images are 32 pixels larger
    schedule_every: Literal["epoch", "step"] = "epoch"  # epoch: lr is 0 in the last one
    weight_decay: float = 1e-5
    parity: tuple[Literal["rising_schedule", "frozen_order"], ...] = ()  # mistakes of the published code

    RANGES: ClassVar[tuple[engine.Range, ...]] = (
        *ImageTraining.RANGES,
        engine.Range("from 0 to 1", lambda value: 0 <= value <= 1, ("hflip", "erasing")),
        engine.Range("above 0 and at most 1", lambda value: 0 < value <= 1, ("crop_scale",)),
    )


PUBLISHED = Recipe()
MS_RESNET = Recipe(recipe="ms_resnet", model="ms_resnet18", steps=6, epochs=125, batch=256)
MODERN = Recipe(recipe="modern", augment="randaugment", interpolation="bicubic", hflip=0.5, mixup=0.2,
    cutmix=1.0, epochs=150, batch=1024, lr=1.0, warmup_epochs=5, schedule_every="step", weight_decay=5e-5,
    decay_all=False, clip=5.0, ema=0.9999, precision="bf16")  # fmt: skip
RECIPES = {
    "att_res_snn": ("Attention SNN as published: T = 1, SGD, 250 epochs, AutoAugment, no flip.", PUBLISHED),
    "ms_resnet": ("MS-ResNet as published: T = 6, 125 epochs.", MS_RESNET),
    "modern": ("Not published: warm-up, flips, RandAugment, mixup, cutmix, averaged weights, bf16.", MODERN),
}


def open_images(
    r: Recipe, split: str, size: int, processes: engine.Processes, classes: Classes = None
) -> Dataset:
    """A split with its transform; `size` is the side of a crop in pixels. DataError where it has other
    classes.
    """
    if r.synthetic is not None:
        held = max(r.synthetic // 5, 10)
        count, start = (r.synthetic, 0) if split == "train" else (held, r.synthetic)
        drawn = data.SyntheticImages(count, size, classes=DRAWN_CLASSES, start=start)
        if classes not in (None, len(drawn.classes), drawn.classes):
            raise data.DataFormatError(
                f"--synthetic draws {DRAWN_CLASSES} classes of textures; the weights are for others"
            )
        return drawn
    if r.data is None:
        where = imagenet.WHERE
        raise data.DataMissingError(f"--data is not given, nor --synthetic N; {where}; then pass --data DIR")
    if split == "train":
        transform = data.train_transform(
            size,
            auto_augment=r.augment,
            hflip=r.hflip,
            random_erasing=r.erasing,
            scale=(r.crop_scale, 1.0),
            interpolation=r.interpolation,
        )
    else:
        transform = picture(r, size).make()
    if processes.world > 1:  # the first one writes the index of shards
        processes.from_first(lambda: data.ImageNet(r.data, split) and None)
    return data.ImageNet(r.data, split, transform, classes=classes)


def picture(r: Recipe, size: int) -> Transform:
    """The middle of a picture whose shorter side is 32 pixels longer."""
    how = {"resize": size + 32, "crop": size, "interpolation": r.interpolation}
    return Transform("eval_transform", how)


TASK = Task(
    about=__doc__,
    recipes=RECIPES,
    open=open_images,
    transform=picture,
    network=("model", "attention", "steps", "width", "dropout", "membrane_float32"),
    families=("att_ms_resnet", "ms_resnet"),
    of_run=lambda r: ("ImageNet", imagenet.IMAGES["train"], imagenet.CLASSES),
    validates=False,
    rising=lambda r: r.epochs // 5,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line (default: this process's); returns the exit code."""
    return run(TASK, arguments)


if __name__ == "__main__":
    engine.leave(main())
