"""MA-SNN on event recordings: DVS128 Gesture, or the handwriting that comes with the package.

python train/dvs.py samples

python train/dvs.py gesture --data DIR --attention TCSA

python train/dvs.py gesture --data DIR --eval --checkpoint runs/gesture
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
import tyro
from torch.utils.data import Dataset, Subset

from attsnn import data, engine, models
from attsnn.data.synthetic.samples import prepare_samples
from attsnn.models.convert import load_published


@dataclass(frozen=True)
class Recipe:
    recipe: tyro.conf.Suppress[str] = "gesture"
    data: Path | None = None  # the prepared store
    dt_ms: float = 15  # length of a time step in milliseconds
    steps: int = 60  # time steps T of a sample
    downsample: int = 4  # pixels of the 128 x 128 sensor to a side of one pixel of a frame
    clips: int = 10  # windows of a held-out recording, which vote; 1 takes the first
    axes: Literal["yx", "xy"] = "yx"  # rows are y (upright); xy is transposed, as published weights expect
    binary: bool = False  # frames say whether there was an event, not how many
    shift: int = 0  # augmentation: move by up to so many pixels
    validation_fraction: float = 0  # of the training set, to choose the checkpoint; 0: by the test set
    attention: Literal["TA", "CA", "SA", "TCA", "TSA", "CSA", "TCSA"] | None = "TCSA"
    emit: Literal["spike", "membrane"] = "spike"  # what a neuron passes on; membrane is the published LIAF
    learn: tuple[Literal["alpha", "beta", "threshold"], ...] = ()  # what a neuron layer learns, one a channel
    channels: tuple[int, int, int] | None = None  # of the convolutions; the paper's: 64 128 128
    hidden: int | None = None  # width of the fully connected layer; the paper's: 256
    width: float = 1.0  # multiplies channels and hidden
    channel_ratio: int = 8  # reduction in the channel attention
    temporal_ratio: int = 5  # reduction in the temporal attention
    epochs: int = 300
    batch: int = 128  # recordings of a training step
    test_batch: int = 16  # recordings of an evaluation step, each of `clips` windows
    lr: float = 1e-4  # Adam's learning rate, the highest of the schedule
    schedule: Literal["plateau", "onecycle", "cosine"] = (
        "plateau"  # of lr; plateau: x 0.1 after 5 stale epochs
    )
    seed: int = 0
    name: str | None = None  # of the run directory; default: the recipe's, or the next free number
    runs_dir: Path = Path("runs")
    resume: str | None = None  # auto, a checkpoint or a run directory
    eval: bool = False  # only measure --checkpoint on the test set
    checkpoint: Path | None = None  # of ours (ckpt-... or the run directory), or a published .t7 or .pth
    device: Literal["auto", "cpu", "cuda"] = "auto"
    backend: Literal["auto", "fused", "reference"] = "auto"
    workers: int = 2  # processes that load data
    threads: int = 0  # of the CPU; 0 leaves PyTorch's choice


SAMPLES = Recipe("samples", Path("build/samples"), 20, 15, 8, clips=1, validation_fraction=0.15,
    channels=(16, 32, 32), hidden=64, channel_ratio=4, epochs=24, batch=32, test_batch=64, lr=8e-3,
    schedule="onecycle")  # fmt: skip
RECIPES = {
    "gesture": ("DVS128 Gesture as in the paper: 15 ms x 60 steps, TCSA.", Recipe()),
    "gesture_code": ("As in the released code: 25 ms x 60 steps, no attention.",
                     Recipe("gesture_code", dt_ms=25, attention=None)),
    "samples": ("The handwriting that comes with the package, for a small machine.", SAMPLES),
}  # fmt: skip
FRAMES = ["steps", "dt_ms", "downsample", "axes", "binary"]
NETWORK = [
    "steps",
    "attention",
    "emit",
    "learn",
    "channels",
    "hidden",
    "width",
    "channel_ratio",
    "temporal_ratio",
]
FREE = [
    "data",
    "name",
    "runs_dir",
    "resume",
    "eval",
    "checkpoint",
    "device",
    "backend",
    "workers",
    "threads",
    "test_batch",
]


class Shifted(Dataset):
    """Moves a recording by up to `most` pixels, all its steps alike: a pure function of its key."""

    def __init__(self, recordings: data.DVSGesture, most: int) -> None:
        self.recordings, self.most = recordings, most

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitem__(self, key: data.Draw) -> tuple[torch.Tensor, int]:
        frames, label = self.recordings[key]
        return self._moved(frames, key.seed), label

    def __getitems__(self, keys: Sequence[data.Draw]) -> list[tuple[torch.Tensor, int]]:
        batch = self.recordings.__getitems__(keys)  # framed by one call
        return [(self._moved(f, key.seed), label) for (f, label), key in zip(batch, keys, strict=True)]

    def _moved(self, frames: torch.Tensor, seed: int) -> torch.Tensor:
        draw = torch.Generator().manual_seed(seed)
        x, y = torch.randint(-self.most, self.most + 1, (2,), generator=draw).tolist()
        return F.pad(torch.as_tensor(frames), (x, -x, y, -y))


def open_data(r: Recipe) -> Callable[..., data.DVSGesture]:
    """What opens a split of the recordings with a kind of window."""
    root = prepare_samples(r.data) if r.recipe == "samples" else r.data
    if root is None:
        raise data.DataMissingError(
            f"--data is not given; {data.DATASETS['dvs_gesture'].where}, then pass --data OUT"
        )
    return partial(data.DVSGesture, root, clips=r.clips, **{name: getattr(r, name) for name in FRAMES})


def network(r: Recipe, classes: int, device: torch.device) -> torch.nn.Module:
    chosen = {name: getattr(r, name) for name in NETWORK}
    size = 128 // r.downsample
    return models.create(
        "ma_snn_dvs_gesture", **chosen, size=size, num_classes=classes, backend=r.backend
    ).to(device)


def train(r: Recipe) -> None:
    """Trains, then measures the chosen checkpoint on the test set and draws the pictures."""
    device = engine.device(r.device, r.threads)
    with engine.usage():
        recordings = open_data(r)
        train_set, test_set = recordings("train", window="random"), recordings("test", window="clips")
        chosen, held = engine.split(len(train_set), r.validation_fraction, r.seed)
        engine.seed_all(r.seed)
        model = network(r, len(test_set.classes), device)
        moved = Shifted(train_set, r.shift) if r.shift else train_set
        batches = engine.Batches(moved, r.batch, r.seed, key=data.Draw, indices=chosen, workers=r.workers)
        optimizer = torch.optim.Adam(model.parameters(), r.lr)
        schedule = engine.schedule(r.schedule, optimizer, r.epochs * len(batches))
        trained_on = {
            "train_recordings": len(chosen),
            "classes": train_set.classes,
            "identity": train_set.identity,
            "split_rule": train_set.split_rule,
        }
        how = {"resume": r.resume, "numbered": not r.name, "free": FREE, "data": trained_on}
        run = engine.Run.open(r.runs_dir, r.name or r.recipe, engine.as_json(r), **how)
    test = engine.in_order(test_set, r.test_batch, r.workers)
    measure = engine.Measure("test", test, test_set.classes)
    if len(held):
        held_set = Subset(recordings("train", window="clips"), held)
        measure = replace(
            measure, name="validation", loader=engine.in_order(held_set, r.test_batch, r.workers)
        )
    print(f"{run.path}: the checkpoint of the highest {measure.name} accuracy is the result.", flush=True)
    choose = f"{measure.name}_accuracy"
    task = {"loss": engine.one_hot_mse, "evaluate": measure, "choose": choose}
    engine.fit(model, optimizer, schedule, batches, **task, run=run, epochs=r.epochs)
    engine.conclude(run, model, test, test_set.classes, models.watch, r.dt_ms)


def evaluate(r: Recipe) -> None:
    """Measures a checkpoint on the test set; its recipe fills in what the command line leaves."""
    if r.checkpoint is None:
        raise engine.UsageError("--eval needs --checkpoint X: a run, a ckpt-... or a published .t7 file.")
    if r.checkpoint.is_file():
        state, fields = load_published(r.checkpoint)
        if r.axes == "yx":
            print("Published weights were trained on transposed frames: for those, pass --axes xy.")
    else:
        saved = engine.find_checkpoint(r.checkpoint)
        state, fields = saved.model, saved.state["recipe"]
    asked = engine.as_json(r)
    r = engine.inherit(r, RECIPES[r.recipe][1], fields, {*NETWORK, *FRAMES})
    for line in engine.difference(asked, engine.as_json(r)):
        print(f"From the checkpoint: {line}")
    with engine.usage():
        test_set = open_data(r)("test", window="clips")
        model = network(r, len(test_set.classes), engine.device(r.device, r.threads))
    engine.load_weights(model, state, r.checkpoint)
    scores = engine.evaluate(
        model, engine.in_order(test_set, r.test_batch, r.workers), len(test_set.classes), models.watch
    )
    print(f"{scores.per_class(test_set.classes)}\n\n{engine.summary(scores, model)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line (default: this process's); returns the exit code."""
    r = tyro.extras.overridable_config_cli(RECIPES, description=__doc__, args=arguments)
    return engine.command(lambda: (evaluate if r.eval else train)(r), {data.DataError: 3})


if __name__ == "__main__":
    sys.exit(main())
