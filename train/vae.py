"""The fully spiking VAE (FSVAE, AAAI 2022), with and without PFA (KBS 2024): train, generate, measure.

python train/vae.py digits

python -m attsnn.data download mnist DIR

python train/vae.py mnist --data DIR

torchrun --nproc-per-node 4 train/vae.py celeba --data DIR --precision bf16

python train/vae.py --eval --checkpoint runs/digits --judge --distance-by autoencoder

python train/vae.py --sample 64 --checkpoint runs/digits

A tenth of the training images (of CelebA its own part) chooses the checkpoint of the lowest error, which is
measured on the test set once. Images are from -1 to 1; z is drawn, so every figure stands beside its seed and
number of draws. A run that was stopped goes on with --resume auto. The recipe `digits` needs no data.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
import tyro
from images import (
    CHOSEN_ON_TEST,
    INSIDE,
    Transform,
    Weights,
    chosen_on_test,
    counted,
    drawn,
    inherited,
    start_from,
    takes,
    weights_of,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from attsnn import data, engine, metrics, models, ops
from attsnn.engine import pictures
from attsnn.engine.classify import own_batches
from attsnn.layers import synchronise

Set = Literal["mnist", "fashion", "cifar10", "celeba", "digits"]
WEIGHTS = {"mmd": 1.0, "kld": 1e-4}  # of the distance in the loss, as published
CROP = 148  # pixels of CelebA's middle


@dataclass(frozen=True)
class Recipe(engine.Training):
    recipe: tyro.conf.Suppress[str] = "mnist"
    set: tyro.conf.Suppress[Set] = "mnist"
    data: Path | None = None  # folder of the images
    model: tyro.conf.Suppress[str] = "fsvae"
    in_channels: tyro.conf.Suppress[int] = 1
    size: int = 32  # side of an image in pixels; images are resized to it
    steps: int = 16  # time steps T
    latent: int = 128  # units of the latent
    k: int = 20  # spike trains that each unit draws from
    widths: tuple[int, ...] = (32, 64, 128, 256)  # channels of the encoder; the decoder mirrors them
    hidden: tuple[int, int] = (256, 512)  # units of the layers inside prior and posterior
    pfa: Literal["none", "ours", "published"] = "none"  # ours: x + A x; published: loses dark pixels
    rank: int = 64  # rank of the PFA
    prefix: Literal["exact", "running"] = "exact"  # z in training: as published, or step by step
    distance: Literal["mmd", "kld"] = "mmd"  # distance between posterior and prior
    distance_weight: float | None = None  # its weight in the loss; default: mmd 1, kld 0.0001
    scheduled: float = 0.1  # probability, in the first epoch, that the prior reads its own draw
    scheduled_rise: float = 0.2  # how much that probability grows until the end
    hflip: float = 0.0  # probability that a training image is mirrored
    validation_fraction: float = 0.1  # share of the training images of each class that chooses the checkpoint
    choose_on_test: bool = False  # train on all; the test set chooses, as in the paper
    draws: int = 1  # draws of z for each image of an evaluation
    draw_seed: int = 0  # seed of those draws
    picture_epochs: int = 5  # epochs between the pictures of a run
    max_bad: int = 100  # missing or corrupt images that are tolerated; more end the run with exit code 3
    synthetic: int | None = None  # draw this many images in the set's own format, instead of --data
    sample: int | None = None  # only generate this many images from --checkpoint
    out: Path = Path("samples.png")  # picture that --sample writes
    judge: bool = False  # with --eval: what a small classifier, trained here, reads in the reconstructions
    distance_by: Literal["autoencoder"] | None = None  # with --eval: Frechet distance of its features
    autoencoder: Path | None = None  # the autoencoder for --distance-by; default: one that is trained here
    statistics: Path | None = None  # .npz of real features, instead of those of the training images
    parity: tuple[Literal["batch_statistics"], ...] = ()  # of the autoencoder's norms
    fid: Path | None = None  # with --eval: FID against this .npz of real features; fetches its network
    count: int = 5000  # generated images for a Frechet distance
    epochs: int = 150
    batch: int = 250
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: float = 1e-3  # highest learning rate of the schedule
    schedule: engine.Schedule = "constant"
    weight_decay: float = 1e-3
    workers: int = 4  # processes that load data, for each training process

    COMMANDS: ClassVar[tuple[str, ...]] = ("sample", "eval", "dry_run")
    FREE: ClassVar[tuple[str, ...]] = (
        *engine.Training.FREE,
        *("data", "max_bad", "sample", "out", "judge", "distance_by", "autoencoder", "statistics"),
        *("parity", "fid", "count", "picture_epochs"),
    )
    COUNTED: ClassVar[tuple[str, ...]] = (
        *("size", "steps", "latent", "k", "rank", "draws", "picture_epochs", "synthetic", "sample", "count"),
    )
    RANGES: ClassVar[tuple[engine.Range, ...]] = (
        *engine.Training.RANGES,
        engine.Range("at least 1", lambda v: v >= 1, COUNTED),
        engine.Range("at least 0", lambda v: v >= 0, ("max_bad", "distance_weight")),
        engine.Range("from 0 to 1", lambda v: 0 <= v <= 1, ("scheduled", "scheduled_rise", "hflip")),
        engine.Range("at least 0 and below 1", lambda v: 0 <= v < 1, ("validation_fraction",)),
    )

    def check(self) -> None:
        super().check()
        if self.data is not None and self.synthetic is not None:
            raise engine.UsageError("--data and --synthetic are different images: give one of them.")
        asked = (self.judge, self.distance_by, self.autoencoder, self.statistics, self.parity, self.fid)
        if not self.eval and any(asked):
            raise engine.UsageError(
                "--judge, --distance-by, --autoencoder, --statistics, --parity and --fid are for --eval."
            )


MNIST = Recipe()
RECIPES = {
    "mnist": ("MNIST as published: 32 x 32, T = 16, MSE + MMD, AdamW, 150 epochs.", MNIST),
    "fashion": ("Fashion-MNIST as published.", replace(MNIST, recipe="fashion", set="fashion")),
    "cifar10": ("CIFAR-10 as published: mirrored at random in training.",
                replace(MNIST, recipe="cifar10", set="cifar10", in_channels=3, hflip=0.5)),
    "celeba": ("CelebA as published, 64 x 64; mirrored in training alone, not in the test as released.",
               replace(MNIST, recipe="celeba", set="celeba", model="fsvae_large", in_channels=3, size=64,
                       widths=(32, 64, 128, 256, 512), hflip=0.5, workers=8)),
    "digits": ("The digits that come with the package, a small network, prefixes step by step: five minutes.",
               replace(MNIST, recipe="digits", set="digits", steps=8, latent=64, k=10, hidden=(128, 256),
                       widths=(16, 32, 64, 128), rank=16, prefix="running", batch=32, lr=3e-3,
                       schedule="cosine", epochs=54, picture_epochs=9, workers=0)),
}  # fmt: skip
NETWORK = ("model", "in_channels", "size", "steps", "latent", "k", "widths", "hidden", "pfa", "rank")
COUNTS = {"mnist": 54_000, "fashion": 54_000, "cifar10": 45_000, "celeba": 162_770, "digits": 1_298}


# ---- images
# ------------------------------------------------------------------------------------------


def transform_of(r: Recipe, hflip: float = 0.0) -> Transform:
    crop = {"crop": CROP} if r.set == "celeba" else {}
    return Transform("signed_transform", {"size": r.size, "channels": r.in_channels, "hflip": hflip, **crop})


def open_images(r: Recipe, split: str, processes: engine.Processes) -> Dataset:
    """ "train" as it is trained on, "held" the same without mirroring, "val" of CelebA, or "test"."""
    part = "train" if split == "held" else split
    if r.set == "digits":
        return data.Digits(part, size=r.size, transform=lambda x: 2 * x - 1)
    known = data.DATASETS[r.set]
    root = r.data if r.synthetic is None else drawn(r.set, r.synthetic, processes)
    if root is None:
        raise data.DataMissingError(
            f"--data is not given, nor --synthetic N; {known.where}; then pass --data DIR"
        )
    return known.open(root, part, transform_of(r, r.hflip if split == "train" else 0.0).make())


# ---- network, loss
# ------------------------------------------------------------------------------------------


def keywords(r: Recipe) -> dict[str, Any]:
    """Of `models.create`."""
    chosen = {name: getattr(r, name) for name in NETWORK if name != "model"}
    pfa = {"none": False, "ours": True}.get(r.pfa, r.pfa)
    return chosen | {"pfa": pfa, "prefix": r.prefix, "backend": r.backend}


def network(r: Recipe, device: torch.device) -> nn.Module:
    return models.create(r.model, **keywords(r)).to(device, memory_format=r.layout(device))


class Objective:
    """The recipe's loss of a batch (images, labels), whose labels are not read."""

    def __init__(self, r: Recipe) -> None:
        self.r, self.scheduled = r, r.scheduled
        self.weight = WEIGHTS[r.distance] if r.distance_weight is None else r.distance_weight

    def at(self, epoch: int) -> None:
        self.scheduled = min(1.0, self.r.scheduled + self.r.scheduled_rise * epoch / self.r.epochs)

    def parts(self, model: nn.Module, images: Tensor, **how: Any) -> tuple[Any, Tensor, Tensor]:
        """(what the model gives, error, distance)."""
        with self.r.autocast(images.device):
            out = model(images.contiguous(memory_format=self.r.layout(images.device)), **how)
        out = type(out)(*(value.float() for value in out))
        return out, *models.fsvae.loss(out, images, self.r.distance)

    def __call__(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        _, error, distance = self.parts(model, batch[0], scheduled=self.scheduled)
        return error + self.weight * distance, {"error": error, "distance": distance}


# ---- validation, pictures
# ------------------------------------------------------------------------------------------


class Validation:
    """Images as `fit` wants them measured: `<name>_error`, the mean squared error of a reconstruction over
    all draws of z, `<name>_distance`, and `<name>_loss` of both.
    """

    def __init__(
        self, r: Recipe, name: str, images: Dataset, processes: engine.Processes, bad: data.BadImages
    ) -> None:
        share = {"rank": processes.rank, "world": processes.world}
        pin = processes.device.type == "cuda"
        self.loader = engine.in_order(images, r.test_batch, r.workers, pin, collate=data.collate, **share)
        self.r, self.name, self.processes, self.bad = r, name, processes, bad
        self.objective = Objective(r)

    @torch.no_grad()
    def batches(self, model: nn.Module, poll: Callable[[], None] = lambda: None) -> Iterator[tuple]:
        """(images, labels, output, error, distance) of each batch and draw, in evaluation."""
        model.eval()
        for number, batch in enumerate(own_batches(self.loader, self.processes, self.r.limit_batches, poll)):
            images, labels = (x.to(self.processes.device) for x in self.bad.take(batch))
            for draw in range(self.r.draws if len(labels) else 0):
                generator = drawing(self.r, draw, number, self.processes.rank)
                yield images, labels, *self.objective.parts(model, images, generator=generator)

    def __call__(self, model: nn.Module, poll: Callable[[], None] = lambda: None) -> dict[str, float]:
        sums = torch.zeros(3, dtype=torch.float64, device=self.processes.device)
        for images, _, _, error, distance in self.batches(model, poll):
            sums += len(images) * torch.stack([error, distance, torch.ones_like(error)]).double()
        self.processes.count(self.bad)
        error, distance, count = self.processes.sum(sums).tolist()
        error, distance = error / max(count, 1), distance / max(count, 1)
        found = {"loss": error + self.objective.weight * distance, "error": error, "distance": distance}
        return {f"{self.name}_{key}": value for key, value in found.items()}


def drawing(r: Recipe, *place: int) -> torch.Generator:
    """The generator of a batch's draws: of the seed and its place alone."""
    seed = r.draw_seed
    for part in place:
        seed = (seed * 1_000_003 + part + 1) % 2**63
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def draw_pictures(r: Recipe, run: Path, model: nn.Module, images: Dataset, name: str) -> list[Path]:
    """Inputs above their reconstructions, samples, and the latents of both as rasters, units by steps."""
    device = next(model.parameters()).device
    training, count = model.training, min(16, len(images))
    model.eval()
    shown = torch.stack([images[i][0] for i in range(count)]).to(device)
    out = model(shown, generator=drawing(r))
    z = model.sample_z(32, drawing(r, 1))
    samples = model.decode(z)
    model.train(training)
    rows = [shown, out.images, samples[:16], samples[16:]]
    raster = [x.permute(1, 2, 0)[:8, None] * -2 + 1 for x in (out.z, z)]  # [8, 1, latent, T]; spikes black
    return [
        *pictures.grid(run / f"{name}.png", rows),
        *pictures.grid(run / f"{name}_latents.png", raster, fill=0.0),
    ]


class Watched:
    """A validation that draws pictures every few epochs."""

    def __init__(self, validation: Validation, images: Dataset, objective: Objective) -> None:
        self.validation, self.images, self.objective = validation, images, objective
        self.epoch, self.run = 0, Path()

    def at(self, epoch: int) -> None:
        self.epoch = epoch
        self.objective.at(epoch)

    def __call__(self, model: nn.Module, poll: Callable[[], None] = lambda: None) -> dict[str, float]:
        r, found = self.validation.r, self.validation(model, poll)
        if (self.epoch + 1) % r.picture_epochs == 0 and self.validation.processes.first:
            draw_pictures(r, self.run, model, self.images, f"epoch_{self.epoch + 1}")
        return found


# ---- training
# ------------------------------------------------------------------------------------------


def splits_of(r: Recipe, processes: engine.Processes) -> tuple[Dataset, Any, str, Dataset]:
    """(images, which are trained on, the name of what chooses, its images)."""
    images = open_images(r, "train", processes)
    if chosen_on_test(vars(r)):
        return images, None, "test", open_images(r, "test", processes)
    if r.set == "celeba":
        return images, None, "val", open_images(r, "val", processes)
    chosen, held = engine.held_out(images.labels, r.validation_fraction, r.seed)
    return images, chosen, "val", Subset(open_images(r, "held", processes), held.tolist())


def prepare(r: Recipe, processes: engine.Processes, watched: list[Watched]) -> engine.Prepared:
    device, bad = processes.device, data.BadImages(r.max_bad, report=processes.first)
    images, chosen, name, held = splits_of(r, processes)
    share = {"rank": processes.rank, "world": processes.world, "pin": device.type == "cuda"}
    loading = {"key": data.Draw, "collate": data.collate, "workers": r.workers, "indices": chosen}
    batches = engine.Batches(
        images, r.batch, r.seed, **loading, **share, drop_last=True, limit=r.limit_batches
    )
    engine.seed_all(r.seed)
    model = network(r, device)
    takes(model, 1, r.in_channels, r.size, r.size)
    if processes.world > 1 and r.sync_norm:
        synchronise(model)
    objective = Objective(r)
    watched.append(Watched(Validation(r, name, held, processes, bad), held, objective))
    return engine.Prepared(
        model,
        batches,
        objective,
        watched[0],
        f"{name}_error",
        data={
            "train_images": len(images) if chosen is None else len(chosen),
            "identity": images.identity,
            "validation": getattr(held, "identity", None) or f"{r.validation_fraction} of them",
        },
        build={
            "model": engine.described(r.model, keywords(r)),
            "transform": engine.described(*transform_of(r)),
        },
        start=partial(start_from, r, model, weights),
        lowest=True,
        exempt=("attention",),
        faults=bad,
        on_epoch=watched[0].at,
        inside=INSIDE,
        called=f"{name} error" if r.ema is None else None,
        bits={"backend": "fused" if ops.use_fused(r.backend, device.type) else "reference"},
    )


def train(r: Recipe, processes: engine.Processes) -> None:
    """Trains; the chosen checkpoint is measured on the test set once, and draws its pictures."""
    if r.init_from is not None:
        r = known_by(r, r.init_from, processes, recorded=engine.recorded(r))[0]
    watched: list[Watched] = []
    how = partial(prepare, processes=processes, watched=watched), partial(noise, processes=processes)
    with engine.begin(r, processes, *how) as begun:
        watched[0].run = begun.run.path
        engine.fit(*begun.parts, **begun.rules)
        r, model = begun.options, begun.parts[0]
        test = open_images(r, "test", processes)
        bad = data.BadImages(r.max_bad, report=processes.first)
        measured = Validation(r, "test", test, processes, bad)
        found = engine.final(begun.run, model, measured, begun.rules["inside"], processes)
        if processes.first:
            with begun.run.writing("draw the pictures"):
                paths = [
                    begun.run.path / "curves.png",
                    *draw_pictures(r, begun.run.path, model, test, "test"),
                ]
            if begun.rules["inside"] is not None:
                shown = torch.stack([test[i][0] for i in range(min(8, len(test)))]).to(processes.device)
                encode = type(model).encode
                paths += engine.draw_gates(begun.run, model, encode, shown, begun.rules["inside"])
            rows = [
                ("error of a reconstruction", f"{found['test_error']:.4f}"),
                ("distance of posterior and prior", f"{found['test_distance']:.4f}"),
                *drawn_by(r),
            ]
            print(f"\n{engine.table(('measured on the test set', 'value'), rows)}\n")
            print("\n".join(f"picture: {path}" for path in paths if path.exists()), flush=True)
    if processes.first and chosen_on_test(vars(r)):
        print(CHOSEN_ON_TEST, flush=True)


def drawn_by(r: Recipe) -> list[tuple[str, str]]:
    """What stands beside every figure."""
    return [("draws of z for an image", str(r.draws)), ("their seed", str(r.draw_seed))]


def noise(r: Recipe, processes: engine.Processes) -> engine.Step:
    """A training step on random images."""
    device = processes.device
    model = network(r, device)
    piece = engine.piece_of(r, processes)
    images = torch.rand(piece, r.in_channels, r.size, r.size, device=device) * 2 - 1
    batch = images, torch.zeros(piece, dtype=torch.int64, device=device)
    return engine.step_of(r, model, Objective(r), batch, ("attention",))


def dry_run(r: Recipe, processes: engine.Processes) -> None:
    """Two steps on random images, and what a run takes; writes nothing."""
    with engine.usage():
        r = engine.settled(r, processes, None, partial(noise, processes=processes))
        step = noise(r, processes)
    title = f"{r.model}, T = {r.steps}, on {processes.device}"
    count = counted(r, (r.set, COUNTS[r.set]), validates=r.set != "celeba")
    rows = engine.rows_of_trial(r, step, processes, *count, "images")
    if processes.first:
        print(engine.table((title, "value"), rows))


# ---- a checkpoint
# ------------------------------------------------------------------------------------------


def weights(path: Path) -> Weights:
    return weights_of(path, ("fsvae",), NETWORK)


def known_by(r: Recipe, path: Path, processes: engine.Processes, **how) -> tuple[Recipe, Weights]:
    """(The recipe with what the checkpoint knows of the network and its images, its weights)."""
    names = {*NETWORK, "set", "prefix", "distance"}
    if r.data is None and r.synthetic is None and "recorded" not in how:
        names |= {"data", "synthetic"}
    return inherited(r, RECIPES[r.recipe][1], path, weights, names, processes, **how)


def restored(r: Recipe, asks: str, processes: engine.Processes) -> tuple[Recipe, nn.Module]:
    """The recipe with what --checkpoint knows, and its network in evaluation mode."""
    if r.checkpoint is None:
        raise engine.UsageError(
            f"{asks} needs --checkpoint X: a run, a ckpt-..., a .pth or .safetensors file."
        )
    r, found = known_by(r, r.checkpoint, processes)
    if not str(found.fields.get("model", "")).startswith("fsvae"):
        raise engine.UsageError(
            f"{r.checkpoint} holds {found.fields.get('model')}, no network of this script."
        )
    with engine.usage():
        r = engine.settled(r, processes, r.today(found.fields))
        model = network(r, processes.device)
    engine.load_weights(model, found.tensors, r.checkpoint)
    return r, model.eval()


@torch.no_grad()
def sample(r: Recipe, processes: engine.Processes) -> None:
    """Generates images as one picture, 16 to a row."""
    r, model = restored(r, "--sample", processes)
    if processes.first:
        images = model.sample(r.sample, drawing(r))
        pictures.grid(r.out, images.split(16))
        print(f"{r.out}: {r.sample} images, of seed {r.draw_seed}")


def evaluate(r: Recipe, processes: engine.Processes) -> None:
    """Error and distance on the test set, and what --judge and --distance-by ask for."""
    r, model = restored(r, "--eval", processes)
    bad = data.BadImages(r.max_bad, report=processes.first)
    with engine.usage():
        test = Validation(r, "test", open_images(r, "test", processes), processes, bad)
    found, profile = engine.profiled(INSIDE, model, test, processes)
    rows = [
        (name.replace("test_", ""), f"{value:.4f}") for name, value in found.items() if "loss" not in name
    ]
    rows += drawn_by(r)
    if processes.first and (r.judge or r.distance_by or r.fid):
        if processes.world > 1:
            raise engine.UsageError(
                "--judge and --distance-by run in one process: start it without torchrun."
            )
        rows += judged(r, model, test, processes) if r.judge else []
        rows += distances(r, model, test, processes) if r.distance_by else []
        rows += frechet_inception(r, model, processes) if r.fid else []
    if processes.first:
        print(f"{engine.table(('measured on the test set', 'value'), rows)}\n\n{profile.summary()}")


# ---- what others see in the images
# ------------------------------------------------------------------------------------------


def loader_of(r: Recipe, split: str, processes: engine.Processes, train: bool = False) -> DataLoader:
    how = {"batch_size": 64, "shuffle": train, "drop_last": train, "collate_fn": data.collate}
    return DataLoader(open_images(r, split, processes), **how, generator=torch.Generator().manual_seed(0))


def learn(
    model: nn.Module, loss: Callable, batches: DataLoader, bad: data.BadImages, epochs: int
) -> nn.Module:
    """`model` trained by AdamW at 2e-3, a cosine; `loss` of (model, images, labels). In evaluation mode."""
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    schedule = engine.cosine(optimizer, epochs * len(batches))
    for _ in range(epochs):
        for batch in batches:
            images, labels = (x.to(device) for x in bad.take(batch))
            optimizer.zero_grad()
            loss(model.train(), images, labels).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def judged(
    r: Recipe, model: nn.Module, test: Validation, processes: engine.Processes
) -> list[tuple[str, str]]:
    """Of test images and of their reconstructions, what a small classifier reads as they are labelled."""
    batches, device = loader_of(r, "held", processes, train=True), processes.device
    classes = len(batches.dataset.classes)
    torch.manual_seed(r.draw_seed)
    layers = [
        part
        for a, b in zip((r.in_channels, 16, 32), (16, 32, 64), strict=True)
        for part in (nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU())
    ]
    judge = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * (r.size // 8) ** 2, classes)).to(device)
    judge = learn(judge, lambda m, x, y: F.cross_entropy(m(x), y), batches, test.bad, steps_of(batches))
    right = torch.zeros(3)
    for images, labels, out, *_ in test.batches(model):
        with torch.no_grad():
            read = [(judge(x).argmax(1) == labels).sum().item() for x in (images, out.images)]
        right += torch.tensor([*map(float, read), float(len(labels))])
    real, made = (right[:2] / right[2]).tolist()
    return [("a classifier reads of test images", f"{real:.2%}"), ("of their reconstructions", f"{made:.2%}")]


def steps_of(batches: DataLoader) -> int:
    """Epochs of some 900 steps."""
    return max(1, round(900 / max(1, len(batches))))


def autoencoder(r: Recipe, processes: engine.Processes, bad: data.BadImages) -> nn.Module:
    """That of --autoencoder, or a small one, trained here on the training images."""
    device = processes.device
    if r.autoencoder is not None:
        state, found = weights_of_autoencoder(r.autoencoder)
        with engine.usage():
            net = models.create("fsvae_autoencoder", **found)
        engine.load_weights(net, state, r.autoencoder)
        return net.to(device).eval()
    torch.manual_seed(r.draw_seed)
    net = models.create(
        "fsvae_autoencoder", in_channels=r.in_channels, size=r.size, widths=(16, 32, 64), latent=16
    )
    batches = loader_of(r, "held", processes, train=True)
    return learn(net.to(device), lambda m, x, _: F.mse_loss(m(x), x), batches, bad, steps_of(batches))


def weights_of_autoencoder(path: Path) -> tuple[dict[str, Tensor], dict]:
    from attsnn.models.convert import load_any

    with engine.usage():
        state, found = load_any(path, ("fsvae_autoencoder",))
    return state, {name: value for name, value in found.items() if name != "name"}


@torch.no_grad()
def distances(r: Recipe, model: nn.Module, test: Validation, processes: engine.Processes):
    """Frechet distances, divided by the trace of the real covariance: of the test images, of their
    reconstructions and of samples, from the training images.
    """
    with torch.enable_grad():
        net = autoencoder(r, processes, test.bad)
    generator = drawing(r, r.draws)
    net.train("batch_statistics" in r.parity)
    if r.statistics is None:
        trained = map(test.bad.take, loader_of(r, "held", processes))
        real = metrics.features_of((images.to(processes.device) for images, _ in trained), net.encode)
    else:
        with engine.usage():
            real = metrics.Moments.load(r.statistics)
    made = [(images, out.images) for images, _, out, *_ in test.batches(model)]
    sets = {
        "test images": (images for images, _ in made),
        "reconstructions": (images for _, images in made),
        f"{r.count:,} samples": metrics.generated(
            lambda n: model.sample(n, generator), r.count, 256, whole=bool(r.parity)
        ),
    }
    found = {name: metrics.frechet(net.encode, real, images) for name, images in sets.items()}
    return [(f"Frechet distance / trace, {name}", f"{result.relative:.4f}") for name, result in found.items()]


def frechet_inception(r: Recipe, model: nn.Module, processes: engine.Processes) -> list[tuple[str, str]]:
    """FID in the papers' protocol, and what it hangs on."""
    generator = drawing(r, r.draws)
    how = {"fetch": True, "count": r.count, "device": processes.device}
    with engine.usage():
        found = metrics.fid(lambda n: model.sample(n, generator), r.fid, **how)
    return [
        ("FID", f"{found.distance:.2f}"),
        ("its protocol", found.protocol),
        ("SHA-256 of its network", str(found.network)),
        ("SHA-256 of its statistics", str(found.statistics)),
    ]


def command(r: Recipe) -> None:
    r.check()
    r.set_precision()
    what = sample if r.sample else evaluate if r.eval else dry_run if r.dry_run else train
    with engine.processes(r.device, r.threads, r.dist_timeout) as processes:
        what(r, processes)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line (default: this process's); returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or (given[0].startswith("-") and given[0] not in ("-h", "--help")):
        given = [next(iter(RECIPES)), *given]  # the first recipe needs no name
    r = tyro.extras.overridable_config_cli(RECIPES, description=__doc__, args=given)
    return engine.command(lambda: command(r), {data.DataError: 3, ImportError: 1})


if __name__ == "__main__":
    engine.leave(main())
