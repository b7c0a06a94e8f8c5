"""Fashion-MNIST and MNIST with projected full attention (PFA, KBS 2024); one process or many.

python -m attsnn.data download fashion DIR

python train/fmnist.py pfa --data DIR

python train/fmnist.py no_attention --data DIR --set mnist

python train/fmnist.py --eval --checkpoint runs/pfa --data DIR

python train/fmnist.py digits

DIR holds the four files, compressed or not, or torchvision's copy. A tenth of the training images of each
class chooses the checkpoint, which is measured on the test set once. A run that was stopped goes on with
--resume auto. The recipe `digits` needs no data: 1,797 handwritten digits come with the package.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import tyro
from images import Classes, HeldOutTraining, Loss, Task, Transform, drawn
from images import main as run
from torch.utils.data import Dataset

from attsnn import data, engine

SIDE = 28
RISE = 64  # epochs in which the published rate falls to 0, to rise again


@dataclass(frozen=True)
class Recipe(HeldOutTraining):
    recipe: tyro.conf.Suppress[str] = "pfa"
    data: Path | None = None  # folder of the four files
    set: Literal["fashion", "mnist"] = "fashion"  # which of the two sets the files are
    model: Literal["pfa_fmnist", "fmnist_baseline"] = "pfa_fmnist"
    attention: Literal["model", "PFA", "none"] = "model"  # model: PFA for pfa_fmnist
    steps: int = 4  # time steps T for which an image is shown
    rank: int | None = None  # rank of the PFA; default: the model's, 4
    channels: int | None = None  # channels of both convolutions; default: the paper's, 128
    hidden: int | None = None  # units between the linear layers; default: the paper's, 2048
    size: tyro.conf.Suppress[int] = SIDE
    loss: Loss = "mse"  # mse: error of firing rates; tet: cross-entropy of each step
    epochs: int = 200
    schedule_every: Literal["epoch", "step"] = "epoch"  # epoch: the last one has lr_end
    parity: tuple[Literal["rising_schedule"], ...] = ()  # lr is 0 at epoch 64, then rises

    RANGES: ClassVar[tuple[engine.Range, ...]] = (
        *HeldOutTraining.RANGES,
        engine.Range("at least 1", lambda value: value >= 1, ("rank", "channels", "hidden")),
    )


DIGITS = Recipe(recipe="digits", channels=32, hidden=256, dropout=0.3, epochs=14, batch=64,
    schedule_every="step", workers=0)  # fmt: skip
RECIPES = {
    "pfa": ("PFA as published: T = 4, rank 4, Adam, 200 epochs, the error of firing rates.", Recipe()),
    "baseline": ("The published network without attention: IF neurons, no dropout.",
                 Recipe(recipe="baseline", model="fmnist_baseline")),
    "no_attention": ("The network of pfa without its PFA: the fair comparison.",
                     Recipe(recipe="no_attention", attention="none")),
    "digits": ("The digits that come with the package, a small network: a minute on one core.", DIGITS),
}  # fmt: skip


def from_package(r: Recipe) -> bool:
    return r.recipe == "digits" and r.data is None and r.synthetic is None


def open_images(
    r: Recipe, split: str, size: int, processes: engine.Processes, classes: Classes = None
) -> Dataset:
    """A split in [0, 1], without augmentation, as published."""
    part = "test" if split == "test" else "train"
    if from_package(r):
        opened = data.Digits(part, size=size)
    else:
        root = r.data if r.synthetic is None else drawn(r.set, r.synthetic, processes)
        if root is None:
            where = data.DATASETS[r.set].where
            raise data.DataMissingError(
                f"--data is not given, nor --synthetic N; {where}; then pass --data DIR"
            )
        opened = data.DATASETS[r.set].open(root, part, data.unit)
    if classes not in (None, len(opened.classes), opened.classes):
        raise data.DataFormatError("these images have other classes than those that the weights are for")
    return opened


TASK = Task(
    about=__doc__,
    recipes=RECIPES,
    open=open_images,
    transform=lambda r, size: Transform("grey_transform", {"size": size}),
    network=("model", "attention", "steps", "width", "dropout", "rank", "channels", "hidden"),
    families=("pfa_fmnist",),
    of_run=lambda r: ("the digits", 1_298, 10) if from_package(r) else (r.set, 54_000, 10),
    channels=1,
    rising=lambda r: RISE,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line (default: this process's); returns the exit code."""
    return run(TASK, arguments)


if __name__ == "__main__":
    engine.leave(main())
