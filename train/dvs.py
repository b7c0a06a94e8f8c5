"""Event recordings with the spiking networks of both papers, or recordings of your own; one process or many.

python train/dvs.py samples

python -m attsnn.data prepare dvs_gesture DvsGesture.tar.gz STORE

python train/dvs.py gesture --data STORE --attention TCSA

torchrun --nproc-per-node 4 train/dvs.py cifar10_dvs_pfa --data STORE --precision bf16

python train/dvs.py gesture --data STORE --eval --checkpoint runs/gesture

python train/dvs.py gesture_code --data STORE --eval --stream --checkpoint runs/gesture_code

STORE is what `python -m attsnn.data prepare` wrote, of any set: classes, sensor and split come from it. A
part of the training recordings chooses the checkpoint, which is measured on the test set once. A run that was
stopped goes on with --resume auto, on any number of processes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
import tyro
from images import (
    CHOSEN_ON_TEST,
    INSIDE,
    Loss,
    Weights,
    chosen_on_test,
    drawn,
    inherited,
    start_from,
    takes,
    weights_of,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from attsnn import data, engine, models, ops
from attsnn.data.synthetic.samples import prepare_samples
from attsnn.layers import synchronise

MASNN = Literal["ma_snn_dvs_gesture", "ma_snn_cifar10_dvs", "ma_snn_dvs_gait"]
PFAVGG = Literal["pfa_vgg_cifar10_dvs", "pfa_vgg_ncaltech101", "pfa_vgg_dvs_gesture"]


@dataclass(frozen=True)
class Recipe(engine.Training):
    recipe: tyro.conf.Suppress[str] = "gesture"
    set: tyro.conf.Suppress[str] = "dvs_gesture"  # what --synthetic draws, and messages name
    data: Path | None = None  # the prepared store: a folder that `python -m attsnn.data prepare` wrote
    dt_ms: float | None = 15  # milliseconds of a time step; None: every step has equally many events
    steps: int = 60  # time steps T of a sample
    downsample: int = 4  # pixels of the sensor along each side of one pixel of a frame
    window: Literal["random", "first"] = "random"  # which part of a recording a training sample is
    clips: int = 10  # windows taken from a held-out recording, which vote; 1: the first window alone
    axes: Literal["yx", "xy"] = "yx"  # yx: rows are y (upright); xy: transposed, as published weights expect
    binary: bool = False  # frames hold 1 for any number of events, instead of the number
    polarity: Literal["both", "collapsed"] = "both"  # collapsed: in one channel, as MA-SNN does
    split_rule: str | None = None  # if the store has none: first900, last900, name_order, random-SEED
    augment: Literal["pfa"] | None = None  # pfa: a flip, then one of rotation, shear, cutout and roll
    shift: int = 0  # augmentation: move each recording by up to this many pixels
    validation_fraction: float = 0.1  # share of the training recordings held out (Gesture: of the people)
    choose_on_test: bool = False  # train on all; the test set chooses, as in the papers
    model: MASNN | PFAVGG = "ma_snn_dvs_gesture"
    attention: Literal["TA", "CA", "SA", "TCA", "TSA", "CSA", "TCSA", "PFA"] | None = "TCSA"
    rank: int | None = None  # rank of every PFA; default: the model's
    emit: Literal["spike", "membrane"] = "spike"  # what a neuron passes on; membrane: LIAF
    learn: tuple[Literal["alpha", "beta", "threshold"], ...] = ()  # learned, one per channel
    channels: tuple[int, ...] | None = None  # channels of the convolutions; default: the paper's
    hidden: int | None = None  # width of the fully connected layer; default: the paper's, 256
    width: float = 1.0  # factor on channels and hidden
    channel_ratio: int = 8  # reduction in the channel attention: channels // channel_ratio hidden units
    temporal_ratio: int = 5  # reduction in the temporal attention: steps // temporal_ratio hidden units
    loss: Loss = "mse"  # mse: error of firing rates; tet: cross-entropy of each step
    label_smoothing: float = 0.0  # e in the targets (1 - e) * target + e / classes
    parity: tuple[Literal["augmented_test"], ...] = ()  # augment the test set, too
    epochs: int = 300
    lr: float = 1e-4  # highest learning rate of the schedule
    schedule: engine.Schedule = "plateau"  # plateau: lr x 0.1 after 5 epochs without progress
    test_batch: int = 16  # recordings in one evaluation step, each with `clips` windows
    synthetic: int | None = None  # draw this many recordings in the set's own format, instead of --data
    stream: bool = False  # with --eval: accuracy after each step, one step at a time; needs --attention None
    out: Path = Path("over_time.png")  # picture that --stream draws
    workers: int = 2  # processes that load data, for each training process

    FREE: ClassVar[tuple[str, ...]] = (*engine.Training.FREE, "data", "stream", "out")
    RANGES: ClassVar[tuple[engine.Range, ...]] = (
        *engine.Training.RANGES,
        engine.Range("at least 1", lambda v: v >= 1, ("steps", "downsample", "clips", "synthetic", "rank")),
        engine.Range("at least 0", lambda v: v >= 0, ("shift",)),
        engine.Range("above 0", lambda v: v > 0, ("width", "dt_ms")),
        engine.Range("from 0 to 1", lambda v: 0 <= v <= 1, ("label_smoothing",)),
        engine.Range("at least 0 and below 1", lambda v: 0 <= v < 1, ("validation_fraction",)),
    )


GESTURE = Recipe()
FIVE = replace(GESTURE, downsample=1, temporal_ratio=2, lr=1e-3)  # MA-SNN with five convolutions
PFA = replace(GESTURE, dt_ms=None, downsample=1, window="first", clips=1, attention="PFA", augment="pfa",
    batch=32, schedule="step", epochs=200)  # fmt: skip
RECIPES = {
    "gesture": ("DVS128 Gesture as in the paper: 15 ms x 60 steps, TCSA.", GESTURE),
    "gesture_code": ("As in the released code: 25 ms x 60 steps, no attention.",
                     replace(GESTURE, recipe="gesture_code", dt_ms=25, attention=None)),
    "gesture_pfa": ("Ours, for no script was published: PFA, T = 20, R = 32, eleven classes of ten voters.",
                    replace(PFA, recipe="gesture_pfa", model="pfa_vgg_dvs_gesture", steps=20, rank=32,
                            augment=None)),
    "cifar10_dvs": ("CIFAR10-DVS as in Attention SNN: 10 ms x 20 steps, TCSA.",
                    replace(FIVE, recipe="cifar10_dvs", set="cifar10_dvs", model="ma_snn_cifar10_dvs",
                            dt_ms=10, steps=20, split_rule="first900")),
    "cifar10_dvs_pfa": ("CIFAR10-DVS as in PFA: T = 12, R = 8.",
                        replace(PFA, recipe="cifar10_dvs_pfa", set="cifar10_dvs", steps=12, rank=8,
                                model="pfa_vgg_cifar10_dvs", split_rule="name_order")),
    "ncaltech101_pfa": ("N-Caltech101 as in PFA: T = 14, R = 64.",
                        replace(PFA, recipe="ncaltech101_pfa", set="ncaltech101", steps=14, rank=64,
                                epochs=500, model="pfa_vgg_ncaltech101", split_rule="name_order")),
    "dvs_gait": ("DVS128 Gait as in Attention SNN: 500 ms x 8 steps, TCSA.",
                 replace(FIVE, recipe="dvs_gait", set="dvs_gait", model="ma_snn_dvs_gait", dt_ms=500, steps=8,
                         epochs=100, window="first", clips=1)),
    "recordings": ("Recordings of your own, of any sensor: PFA, 10 steps of equally many events.",
                   replace(PFA, recipe="recordings", set="recordings", model="pfa_vgg_cifar10_dvs", steps=10,
                           rank=8, lr=1e-3, schedule="cosine", epochs=100, split_rule="random-0")),
    "samples": ("The handwriting that comes with the package, for a small machine.",
                replace(GESTURE, recipe="samples", data=Path("build/samples"), dt_ms=20, steps=15,
                        downsample=8, clips=1, validation_fraction=0.15, channels=(16, 32, 32), hidden=64,
                        channel_ratio=4, epochs=24, batch=32, test_batch=64, lr=8e-3, schedule="onecycle")),
}  # fmt: skip
FRAMES = ("steps", "dt_ms", "downsample", "axes", "binary", "polarity")
NETWORK = ("model", "steps", "attention", "rank", "emit", "learn", "channels", "hidden", "width",
    "channel_ratio", "temporal_ratio")  # fmt: skip
# What a dry run without data counts on: sensor, training recordings (of the last three about), classes.
PUBLISHED = {"dvs_gesture": ((128, 128), 1176, 11), "cifar10_dvs": ((128, 128), 9000, 10),
    "ncaltech101": ((180, 240), 7838, 101), "dvs_gait": ((128, 128), 2000, 21),
    "recordings": ((128, 128), 1000, 10)}  # fmt: skip


# ---- recordings
# ------------------------------------------------------------------------------------------


class Shifted(Dataset):
    """Moves a recording by up to `most` pixels, all its steps alike: a pure function of its key."""

    def __init__(self, recordings: data.EventFrames, most: int) -> None:
        self.recordings, self.most = recordings, most

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitem__(self, key: data.Draw) -> tuple[Tensor, int]:
        frames, label = self.recordings[key]
        return self._moved(frames, key.seed), label

    def __getitems__(self, keys: Sequence[data.Draw]) -> list[tuple[Tensor, int]]:
        batch = self.recordings.__getitems__(keys)  # framed by one call
        return [(self._moved(f, key.seed), label) for (f, label), key in zip(batch, keys, strict=True)]

    def _moved(self, frames: Tensor, seed: int) -> Tensor:
        draw = torch.Generator().manual_seed(seed)
        x, y = torch.randint(-self.most, self.most + 1, (2,), generator=draw).tolist()
        return F.pad(torch.as_tensor(frames), (x, -x, y, -y))


class Augmented(Dataset):
    """Augments the windows of a test set, as the published code did: a pure function of their number."""

    def __init__(self, recordings: data.EventFrames, augment: data.EventAugment) -> None:
        self.recordings, self.augment = recordings, augment

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        windows, label = self.recordings[index]
        return torch.stack([self.augment(w, index * len(windows) + k) for k, w in enumerate(windows)]), label


@cache
def open_data(r: Recipe, processes: engine.Processes) -> Callable[..., data.EventFrames]:
    """What opens a split of the recordings with a kind of window; drawn ones are verified once a command."""
    root = r.data
    if r.synthetic is not None:
        root = drawn(r.set, r.synthetic, processes)
    elif r.recipe == "samples":
        root = processes.from_first(lambda: prepare_samples(r.data))
    known = data.DATASETS[r.set]
    if root is None:
        raise data.DataMissingError(
            f"--data is not given, nor --synthetic N; {known.where}, then pass --data OUT"
        )
    how = {name: getattr(r, name) for name in FRAMES} | {"clips": r.clips}
    # Recordings that are drawn are numbered so that this rule parts them.
    rule = r.split_rule if r.synthetic is None else "first900"
    how["split_rule"] = None if data.is_divided(root) else rule
    return partial(known.open, root, **how)


def of_test(r: Recipe, recordings: data.EventFrames) -> Dataset:
    return Augmented(recordings, data.EventAugment()) if "augmented_test" in r.parity else recordings


# ---- network, loss
# ------------------------------------------------------------------------------------------


def keywords(r: Recipe, classes: int, size: tuple[int, int]) -> dict[str, Any]:
    """Of `models.create`. A ValueError for a field that was given and that this model does not have."""
    default, taken = RECIPES[r.recipe][1], models.keywords(r.model)
    named = {name: getattr(r, name) for name in NETWORK if name != "model"}
    wrong = [name for name in named if name not in taken and named[name] != getattr(default, name)]
    if wrong:
        raise ValueError(f"{r.model} has no --{wrong[0].replace('_', '-')}; it takes {', '.join(taken)}.")
    chosen = {k: v for k, v in named.items() if k in taken and (v is not None or k == "attention")}
    chosen |= {"size": size} if "size" in taken else {}
    return chosen | {"num_classes": classes, "backend": r.backend}


def network(r: Recipe, classes: int, size: tuple[int, int], device: torch.device) -> nn.Module:
    try:
        model = models.create(r.model, **keywords(r, classes, size))
    except ValueError as error:
        hint = "; --downsample makes frames of another size" if str(error).startswith("size") else ""
        raise ValueError(f"{error}{hint}") from error
    if r.loss in engine.losses.EVERY_STEP and not model.averages_scores:
        raise ValueError(f"--loss {r.loss} reads scores at every step; {r.model} ends in spikes: take mse.")
    return model.to(device, memory_format=r.layout(device))


def forward(r: Recipe, model: nn.Module, x: Tensor, **how: bool) -> Tensor:
    """Frames [T, N, 2, H, W] to scores [N, classes] in float32; [T, N, classes] with every_step=True."""
    with r.autocast(x.device):
        return model(laid(r, x), **how).float()


def laid(r: Recipe, x: Tensor) -> Tensor:
    """Frames [T, N, 2, H, W] in the layout of the recipe."""
    if r.layout(x.device) is not torch.channels_last:
        return x
    return x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2])


def loss_of(r: Recipe) -> Callable:
    """The recipe's loss of a batch (frames [N, T, 2, H, W], labels [N])."""
    function = partial(engine.losses.LOSSES[r.loss], smoothing=r.label_smoothing)
    every_step = {"every_step": True} if r.loss in engine.losses.EVERY_STEP else {}

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        frames, labels = batch
        scores = forward(r, model, frames.transpose(0, 1), **every_step)
        mean = scores.mean(0) if every_step else scores
        return function(scores, labels), {"accuracy": (mean.argmax(1) == labels).float().mean()}

    return loss


def measured(r: Recipe, processes: engine.Processes) -> dict[str, Any]:
    """Keywords of `engine.evaluate`."""
    function = engine.losses.rate_mse if r.loss == "mse" else engine.losses.cross_entropy
    return {
        "loss": function,
        "forward": partial(forward, r),
        "processes": processes,
        "limit": r.limit_batches,
    }


# ---- training, evaluation
# ------------------------------------------------------------------------------------------


def prepare(r: Recipe, processes: engine.Processes) -> engine.Prepared:
    device, opened = processes.device, open_data(r, processes)
    augment = data.EventAugment() if r.augment else None
    recordings, tested = opened("train", window=r.window, augment=augment), opened("test", window="clips")
    chosen, held = engine.held_out(recordings.labels, held_fraction(r), r.seed, recordings.people)
    classes, size = recordings.classes, recordings.framing.shape[2:]
    engine.seed_all(r.seed)
    model = network(r, len(classes), size, device)
    takes(model, r.steps, 1, 2, *size)
    if processes.world > 1 and r.sync_norm:
        synchronise(model)
    moved = Shifted(recordings, r.shift) if r.shift else recordings
    share = {"rank": processes.rank, "world": processes.world}
    loading = {"key": data.Draw, "workers": r.workers, "pin": device.type == "cuda", "limit": r.limit_batches}
    batches = engine.Batches(moved, r.batch, r.seed, indices=chosen, **loading, **share)
    name, shown = "test", of_test(r, tested)
    if len(held):
        name, shown = "validation", Subset(opened("train", window="clips"), held)
    loader = engine.in_order(shown, r.test_batch, r.workers, **share)
    return engine.Prepared(
        model,
        batches,
        loss_of(r),
        engine.Measure(name, loader, classes, measured(r, processes)),
        f"{name}_accuracy",
        called=f"{name} accuracy" if r.ema is None else None,
        data={
            "train_recordings": len(chosen),
            "classes": classes,
            "identity": recordings.identity,
            "split_rule": recordings.split_rule,
        },
        build={
            "model": engine.described(r.model, keywords(r, len(classes), size)),
            "transform": engine.described("framed", recordings.framing.keywords | {"binary": r.binary}),
        },
        bits={"backend": "fused" if ops.use_fused(r.backend, device.type) else "reference"},
        start=partial(start_from, r, model, weights),
        exempt=("attention",),
        inside=INSIDE,
    )


def train(r: Recipe, processes: engine.Processes) -> None:
    """Trains, then measures the chosen checkpoint on the test set and draws the pictures."""
    if r.init_from is not None:
        r = known_by(r, r.init_from, processes, recorded=engine.recorded(r))[0]
    how = partial(prepare, processes=processes), partial(noise, processes=processes)
    with engine.begin(r, processes, *how) as begun:
        engine.fit(*begun.parts, **begun.rules)
        r, model = begun.options, begun.parts[0]
        tested = open_data(r, processes)("test", window="clips")
        share = {"rank": processes.rank, "world": processes.world}
        test = engine.in_order(of_test(r, tested), r.test_batch, r.workers, **share)
        shown = test, tested.classes, models.watch, r.dt_ms
        engine.conclude(begun.run, model, *shown, inside=begun.rules["inside"], **measured(r, processes))
    if processes.first and chosen_on_test(vars(r)):
        print(CHOSEN_ON_TEST, flush=True)


def facts(r: Recipe, processes: engine.Processes) -> tuple[tuple[int, int], int, int]:
    """(height and width of frames, recordings to train on, classes), of the data if there are some."""
    if r.data is None and r.synthetic is None:
        (height, width), count, classes = PUBLISHED[r.set]
        count = round(count * (1 - held_fraction(r)))
        return (height // r.downsample, width // r.downsample), count, classes
    recordings = open_data(r, processes)("train")
    chosen = engine.held_out(recordings.labels, held_fraction(r), r.seed, recordings.people)[0]
    return recordings.framing.shape[2:], len(chosen), len(recordings.classes)


def held_fraction(r: Recipe) -> float:
    """Of the training recordings, the share that chooses the checkpoint."""
    return 0.0 if chosen_on_test(vars(r)) else r.validation_fraction


def noise(r: Recipe, processes: engine.Processes) -> engine.Step:
    """A training step on random frames."""
    size, _, classes = facts(r, processes)
    model = network(r, classes, size, processes.device)
    piece = engine.piece_of(r, processes)
    frames = torch.randint(0, 2, (piece, r.steps, 2, *size), device=processes.device).float()
    labels = torch.arange(piece, device=processes.device) % classes
    return engine.step_of(r, model, loss_of(r), (frames, labels), ("attention",))


def dry_run(r: Recipe, processes: engine.Processes) -> None:
    """Two steps on random frames, and what a run takes; writes nothing."""
    with engine.usage():
        r = engine.settled(r, processes, None, partial(noise, processes=processes))
        step, count = noise(r, processes), facts(r, processes)[1]
    rows = engine.rows_of_trial(r, step, processes, r.set, count, "recordings")
    if processes.first:
        print(engine.table((f"{r.model}, T = {r.steps}, on {processes.device}", "value"), rows))


def weights(path: Path) -> Weights:
    found = weights_of(path, ("ma_snn", "pfa_vgg"), NETWORK)
    if path.is_file() and found.fields["attention"] == "none":
        found.fields["attention"] = None
    return found


def known_by(r: Recipe, path: Path, processes: engine.Processes, **how) -> tuple[Recipe, Weights]:
    """(The recipe with what the checkpoint knows of the network and its frames, its weights)."""
    names = {*NETWORK, *FRAMES, "clips", "split_rule"}
    if r.data is None and r.synthetic is None and "recorded" not in how:
        names |= {"data", "synthetic", "set"}
    return inherited(r, RECIPES[r.recipe][1], path, weights, names, processes, **how)


def evaluate(r: Recipe, processes: engine.Processes) -> None:
    """Measures a checkpoint on the test set; its recipe fills in what the command line leaves."""
    if r.checkpoint is None:
        raise engine.UsageError("--eval needs --checkpoint X: a run, a ckpt-... or a published .t7 file.")
    if r.checkpoint.is_file() and r.axes == "yx" and processes.first:
        print("Published weights of MA-SNN were trained on transposed frames: for those, pass --axes xy.")
    r, found = known_by(r, r.checkpoint, processes)
    r = engine.settled(r, processes, r.today(found.fields))
    with engine.usage():
        recordings = open_data(r, processes)("test", window="clips")
        model = network(r, len(recordings.classes), recordings.framing.shape[2:], processes.device)
    engine.load_weights(model, found.tensors, r.checkpoint)
    share = {"rank": processes.rank, "world": processes.world}
    loader = engine.in_order(of_test(r, recordings), r.test_batch, r.workers, **share)
    how = measured(r, processes)
    if r.stream:
        return evaluate_over_time(r, model, loader, recordings, processes)
    classes = recordings.classes

    def measure(model: nn.Module) -> engine.Scores:
        return engine.evaluate(model, loader, len(classes), **how)

    scores, found = engine.profiled(INSIDE, model, measure, processes)
    if processes.first:
        print(f"{scores.per_class(classes)}\n\n{engine.summary(scores, model)}\n\n{found.summary()}")


def evaluate_over_time(
    r: Recipe,
    model: nn.Module,
    loader: DataLoader,
    recordings: data.EventFrames,
    processes: engine.Processes,
) -> None:
    """How soon is a gesture known? The accuracy after each step, as a table and a picture."""

    def step(model: nn.Module, x: Tensor, state: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        with r.autocast(x.device):
            return model.run(laid(r, x), state)

    with engine.usage():
        step(model.eval(), torch.zeros(1, 1, *recordings.framing.shape[1:], device=processes.device), None)
    how = {"step": step, "processes": processes, "limit": r.limit_batches}
    found = engine.evaluate_by_step(model, loader, len(recordings.classes), **how)
    if processes.first:
        print(found.summary(r.dt_ms))
        for path in engine.pictures.over_time(r.out, found.accuracy, found.known, step_ms=r.dt_ms):
            print(f"picture: {path}")


def command(r: Recipe) -> None:
    r.check()
    if r.stream and not r.eval:
        raise engine.UsageError("--stream is for --eval: train first, then measure --checkpoint over time.")
    r.set_precision()
    what = evaluate if r.eval else dry_run if r.dry_run else train
    with engine.processes(r.device, r.threads, r.dist_timeout) as processes:
        what(r, processes)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line (default: this process's); returns the exit code."""
    r = tyro.extras.overridable_config_cli(RECIPES, description=__doc__, args=arguments)
    return engine.command(lambda: command(r), {data.DataError: 3})


if __name__ == "__main__":
    engine.leave(main())
