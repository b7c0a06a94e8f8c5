"""Residual attention SNNs on ImageNet-1k, or on any images in class folders; one process or many.

python train/imagenet.py --data DIR --model att_ms_resnet34

torchrun --nproc-per-node 8 train/imagenet.py ms_resnet --data DIR --model ms_resnet104 --precision bf16

python train/imagenet.py --eval --checkpoint runs/att_res_snn --data DIR --eval-sizes 224 288

python train/imagenet.py --predict photo.jpg --checkpoint runs/att_res_snn

python train/imagenet.py --synthetic 2000 --epochs 5

DIR holds train/<class>/ and val/<class>/ with images, or WebDataset shards; `python -m attsnn.data verify
imagenet DIR` looks at it. A run that was stopped goes on with --resume auto, on any number of processes.
"""

import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from attsnn import data, engine, models
from attsnn.data.datasets import imagenet
from attsnn.layers import synchronise
from attsnn.models.convert import load_any

Model = Literal[
    "att_ms_resnet18", "att_ms_resnet34", "att_ms_resnet104", "ms_resnet18", "ms_resnet34", "ms_resnet104"
]


@dataclass(frozen=True)
class Recipe:
    recipe: tyro.conf.Suppress[str] = "att_res_snn"
    data: Path | None = None  # folder of train/<class>/ and val/<class>/, or of WebDataset shards
    model: Model = "att_ms_resnet18"
    attention: Literal["model", "CSA", "CA", "none"] = "model"  # model: CSA for att_*, none for the others
    steps: int = 1  # time steps T for which an image is shown
    width: float = 1.0  # multiplies every layer's channels, for small machines
    dropout: float | None = None  # before the classifier; default: the model's
    membrane_float32: bool = False  # the residual stream stays in float32 under bf16 and fp16
    size: int = 224  # pixels of a training crop's side
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    augment: Literal["imagenet", "randaugment", "trivial"] | None = "imagenet"  # imagenet: AutoAugment's
    crop_scale: float = 0.08  # the least share of an image's area in a training crop
    hflip: float = 0.0  # probability of a mirrored image
    erasing: float = 0.0  # probability of an erased rectangle
    mixup: float = 0.0  # alpha of mixup
    cutmix: float = 0.0  # alpha of cutmix; where both are given, each batch takes one of them
    label_smoothing: float = 0.1
    epochs: int = 250
    batch: int = 100  # images of a training step, over all processes
    accumulate: int = 1  # pieces of a process's share, whose gradients are added
    optimizer: Literal["sgd", "adamw"] = "sgd"  # sgd: with momentum 0.9
    lr: float = 0.1  # the highest of the schedule, a cosine to 0
    warmup_epochs: float = 0
    schedule_every: Literal["epoch", "step"] = "epoch"  # when lr changes; epoch: the last one has 0
    weight_decay: float = 1e-5
    decay_all: bool = True  # weight decay on norms, biases and gates too
    clip: float | None = None  # the gradient norm that longer ones are cut to
    ema: float | None = None  # decay of the averaged weights, which are evaluated and kept too
    parity: tuple[Literal["rising_schedule", "frozen_order"], ...] = ()  # mistakes of the published training
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"  # published: fp16, its loss scaled
    channels_last: Literal["auto", "yes", "no"] = "auto"  # auto: on a GPU
    compile: bool = False  # torch.compile the model
    sync_norm: bool = True  # batch statistics over all processes
    init_from: Path | None = None  # weights to start from: what --checkpoint takes
    seed: int = 0
    name: str | None = None  # of the run directory; default: the recipe's, or the next free number
    runs_dir: Path = Path("runs")
    resume: str | None = None  # auto, a checkpoint or a run directory
    save_minutes: float = 20  # between the checkpoints within an epoch
    max_bad: int = 100  # images that may be missing or corrupt; more end the run with exit code 3
    limit_batches: int | None = None  # of an epoch, and of an evaluation
    synthetic: int | None = None  # so many images drawn by the program in place of --data
    dry_run: bool = False  # a step on random images, then what a run takes; writes nothing
    eval: bool = False  # only measure --checkpoint on the validation set
    eval_sizes: tuple[int, ...] = ()  # pixels of a crop's side, from images 32 larger; default: as trained
    eval_steps: tuple[int, ...] = ()  # time steps; default: those of the training
    predict: Path | None = None  # only name what this picture shows
    checkpoint: Path | None = None  # ours (ckpt-..., or a run: its best), a published .pth, or one converted
    test_batch: int = 100  # images of an evaluation step, in each process
    device: Literal["auto", "cpu", "cuda"] = "auto"
    backend: Literal["auto", "fused", "reference"] = "auto"
    workers: int = 8  # processes that load images, for each training process
    threads: int = 0  # of the CPU; 0 leaves PyTorch's choice
    dist_timeout: float = 600  # seconds after which a process that does not answer ends the run


PUBLISHED = Recipe()
MS_RESNET = Recipe("ms_resnet", model="ms_resnet18", steps=6, epochs=125, batch=256)
MODERN = Recipe("modern", augment="randaugment", interpolation="bicubic", hflip=0.5, mixup=0.2, cutmix=1.0,
    epochs=150, batch=1024, lr=1.0, warmup_epochs=5, schedule_every="step", weight_decay=5e-5,
    decay_all=False, clip=5.0, ema=0.9999, precision="bf16")  # fmt: skip
RECIPES = {
    "att_res_snn": ("Attention SNN as published: T = 1, SGD, 250 epochs, AutoAugment, no flip.", PUBLISHED),
    "ms_resnet": ("MS-ResNet as published: T = 6, 125 epochs.", MS_RESNET),
    "modern": ("Not published: warm-up, flips, RandAugment, mixup, cutmix, averaged weights, bf16.", MODERN),
}
NETWORK = ["model", "attention", "steps", "width", "dropout", "membrane_float32"]
FREE = ["data", "name", "init_from", "runs_dir", "resume", "save_minutes", "max_bad", "dry_run", "eval",
    "eval_sizes", "eval_steps", "predict", "checkpoint", "test_batch", "device", "backend", "workers",
    "threads", "dist_timeout", "compile", "accumulate", "channels_last"]  # fmt: skip
COUNTS = ("steps", "size", "epochs", "batch", "accumulate", "limit_batches", "synthetic", "eval_sizes",
    "eval_steps", "test_batch")  # fmt: skip
AMOUNTS = ("mixup", "cutmix", "lr", "warmup_epochs", "weight_decay", "save_minutes", "max_bad", "workers",
    "threads")  # fmt: skip
RANGES = (
    engine.Range("at least 1", lambda value: value >= 1, COUNTS),
    engine.Range("at least 0", lambda value: value >= 0, AMOUNTS),
    engine.Range("above 0", lambda value: value > 0, ("width", "clip", "dist_timeout")),
    engine.Range("from 0 to 1", lambda v: 0 <= v <= 1, ("dropout", "hflip", "erasing", "label_smoothing")),
    engine.Range("above 0 and at most 1", lambda value: 0 < value <= 1, ("crop_scale",)),
    engine.Range("at least 0 and below 1", lambda value: 0 <= value < 1, ("ema",)),
)
Classes = Sequence[str] | int | None  # their names, or how many; None: those of the data


def network(r: Recipe, classes: int, device: torch.device, steps: int | None = None) -> nn.Module:
    chosen = {"steps": steps or r.steps, "num_classes": classes, "width": r.width, "backend": r.backend}
    if r.attention != "model":
        chosen["attention"] = None if r.attention == "none" else r.attention
    if r.dropout is not None:
        chosen["dropout"] = r.dropout
    if r.membrane_float32:
        chosen["membrane_dtype"] = torch.float32
    return models.create(r.model, **chosen).to(device, memory_format=layout(r, device))


def layout(r: Recipe, device: torch.device) -> torch.memory_format:
    last = device.type == "cuda" if r.channels_last == "auto" else r.channels_last == "yes"
    return torch.channels_last if last else torch.contiguous_format


@torch.no_grad()
def takes(model: nn.Module, size: int) -> None:
    """Raises the model's ValueError for images that it cannot take, before any is loaded."""
    training = model.training
    model.eval()(torch.zeros(1, 3, size, size, device=next(model.parameters()).device))
    model.train(training)


def open_images(
    r: Recipe, split: str, size: int, processes: engine.Processes, classes: Classes = None
) -> Dataset:
    """A split with its transform; `size` is the side of a crop in pixels. DataError where it has other
    classes.
    """
    if r.synthetic is not None:
        held = max(r.synthetic // 5, 10)
        count, start = (r.synthetic, 0) if split == "train" else (held, r.synthetic)
        drawn = data.SyntheticImages(count, size, classes=10, start=start)
        if classes not in (None, len(drawn.classes), drawn.classes):
            raise data.DataFormatError("--synthetic draws 10 classes of textures; the weights are for others")
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
        transform = data.eval_transform(size + 32, size, interpolation=r.interpolation)
    if processes.world > 1:  # the first one writes the index of shards
        processes.from_first(lambda: data.ImageNet(r.data, split) and None)
    return data.ImageNet(r.data, split, transform, classes=classes)


def forward(r: Recipe, model: nn.Module, images: Tensor) -> Tensor:
    """Scores [N, classes] in float32."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(r.precision)
    with torch.autocast(images.device.type, dtype, enabled=dtype is not None):
        return model(images.contiguous(memory_format=layout(r, images.device))).float()


def loss_of(r: Recipe, classes: int) -> Callable:
    """Cross-entropy with smoothed labels; of mixed images, against their mixed labels."""
    mixes = data.mixes(classes, mixup=r.mixup, cutmix=r.cutmix)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = batch
        mixed, target = mixes(images, labels)
        scores = forward(r, model, mixed)
        accuracy = (scores.argmax(1) == labels).float().mean()
        return F.cross_entropy(scores, target, label_smoothing=r.label_smoothing), {"accuracy": accuracy}

    return loss


def optimiser(r: Recipe, model: nn.Module) -> Optimizer:
    groups = model.parameters() if r.decay_all else engine.decayed(model, r.weight_decay, ("attention",))
    if r.optimizer == "adamw":
        return torch.optim.AdamW(groups, r.lr, weight_decay=r.weight_decay)
    return torch.optim.SGD(groups, r.lr, momentum=0.9, weight_decay=r.weight_decay)


def update_of(r: Recipe, model: nn.Module) -> engine.Update:
    device = next(model.parameters()).device
    scaler = torch.amp.GradScaler(device.type) if r.precision == "fp16" else None
    if scaler is not None:  # the rate moves on where the first update overflows, which is no mistake
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
    ema = None if r.ema is None else engine.ema_of(model, r.ema)
    return engine.Update(r.accumulate, r.clip, scaler, ema)


class Validation:
    """The validation set at one size, as `fit` wants it measured."""

    def __init__(
        self, r: Recipe, size: int, processes: engine.Processes, bad: data.BadImages, classes: Classes
    ) -> None:
        self.images = images = open_images(r, "val", size, processes, classes)
        share = {"rank": processes.rank, "world": processes.world}
        pin = processes.device.type == "cuda"
        self.loader = engine.in_order(images, r.test_batch, r.workers, pin, collate=data.collate, **share)
        self.r, self.processes, self.bad = r, processes, bad

    def scores(self, model: nn.Module, poll: Callable[[], None] = lambda: None) -> engine.TopK:
        how = {"forward": partial(forward, self.r), "limit": self.r.limit_batches, "faults": self.bad}
        return engine.top_k(model, self.loader, self.processes, **how, poll=poll)

    def __call__(self, model: nn.Module, poll: Callable[[], None]) -> dict[str, float]:
        scores = self.scores(model, poll)
        return {"val_loss": scores.loss, "val_accuracy": scores.top1, "val_top5_accuracy": scores.top5}


def train(r: Recipe, processes: engine.Processes) -> None:
    """Trains; the checkpoint of the highest validation accuracy is the result."""
    device, where = processes.device, (r.runs_dir, r.name or r.recipe)
    how = {"resume": r.resume, "numbered": not r.name}
    with engine.reporting(*where, **how, rank=processes.rank), engine.usage():
        bad = data.BadImages(r.max_bad, report=processes.first)
        images = open_images(r, "train", r.size, processes)
        validation = Validation(r, r.size, processes, bad, as_known(images.classes))
        share = {"rank": processes.rank, "world": processes.world, "pin": device.type == "cuda"}
        order = {"frozen_order": "frozen_order" in r.parity, "drop_last": True, "limit": r.limit_batches}
        loading = {"key": data.Draw, "collate": data.collate, "workers": r.workers}
        batches = engine.Batches(images, r.batch, r.seed, **loading, **share, **order)
        engine.seed_all(r.seed)
        model = network(r, len(images.classes), device)
        takes(model, r.size)
        if processes.world > 1 and r.sync_norm:
            synchronise(model)
        optimizer, epoch = optimiser(r, model), len(batches)
        schedule = engine.cosine(
            optimizer,
            r.epochs * epoch,
            period=max(r.epochs // 5, 1) * epoch if "rising_schedule" in r.parity else None,
            warmup=round(r.warmup_epochs * epoch),
            hold=epoch if r.schedule_every == "epoch" else 1,
        )

        def start() -> None:
            if r.init_from is not None:
                engine.load_weights(model, weights_of(r.init_from).tensors, r.init_from)

        trained_on = {
            "train_images": len(images),
            "classes": images.classes,
            "identity": images.identity,
            "validation": validation.images.identity,
        }
        how |= {"free": FREE, "data": trained_on, "start": start, "processes": processes}
        run = engine.Run.open(*where, engine.as_json(r), **how)
    choose = "ema_val_accuracy" if r.ema is not None else "val_accuracy"
    if processes.first:
        print(f"{run.path}: the checkpoint of the highest {choose} is the result.", flush=True)
    engine.seed_all(r.seed, processes.rank)
    update = update_of(r, model)
    if r.compile:
        model.compile()
    task = {"loss": loss_of(r, len(images.classes)), "evaluate": validation, "choose": choose}
    rules = {"update": update, "processes": processes, "faults": bad, "save_every": r.save_minutes}
    engine.fit(model, optimizer, schedule, batches, **task, run=run, epochs=r.epochs, **rules)


def dry_run(r: Recipe, processes: engine.Processes) -> None:
    """Two steps on random images, and what a run on ImageNet takes; writes nothing."""
    device, images_of_epoch = processes.device, imagenet.IMAGES["train"]
    with engine.usage():
        model = network(r, imagenet.CLASSES, device)
        takes(model, r.size)
    share = max(1, r.batch // processes.world)
    piece = max(1, share // r.accumulate)
    batch = torch.randn(piece, 3, r.size, r.size, device=device), torch.arange(piece, device=device) % 1000
    optimizer, update, loss_fn = optimiser(r, model), update_of(r, model), loss_of(r, imagenet.CLASSES)
    for _ in range(2):  # the first one sets up
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        for _ in range(r.accumulate):
            loss, _ = loss_fn(model, batch)
            update.backward(loss / r.accumulate)
        update.apply(optimizer, model, update.gradient_norm(optimizer, model).item())
        seconds = time.perf_counter() - began
    steps = images_of_epoch // r.batch
    rows = [
        ("parameters", f"{sum(p.numel() for p in model.parameters()):,}"),
        ("images of a step, in one process", f"{piece * r.accumulate:,}"),
        ("its time", f"{seconds:.2f} s: {piece * r.accumulate / seconds:.1f} images/s"),
        ("its loss", f"{loss.item():.3f}"),
        ("steps of an epoch of ImageNet", f"{steps:,}"),
        ("steps of the run", f"{r.epochs * steps:,}"),
        ("their time, if nothing waits for data", engine.duration(r.epochs * steps * seconds)),
    ]
    if device.type == "cuda":
        rows.append(("memory", f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB"))
    if processes.first:
        print(engine.table((f"{r.model}, T = {r.steps}, on {device}", "value"), rows))


class Weights(NamedTuple):
    """Weights of a file, what it knows of the recipe, and of the classes by name."""

    tensors: dict[str, Tensor]
    fields: dict
    classes: Sequence[str] | None = None


def weights_of(path: Path) -> Weights:
    """Those of a checkpoint of ours (the averaged ones where there are some), published or converted."""
    if path.is_file():
        weights, found = load_any(path, ("att_ms_resnet", "ms_resnet"))
        fields = {"model": found["name"], "attention": found.get("attention") or "none"}
        return Weights(weights, fields | {name: found[name] for name in ("steps",) if name in found})
    saved = engine.find_checkpoint(path)
    averaged = {k.removeprefix("module."): v for k, v in (saved.ema or {}).items() if k != "n_averaged"}
    return Weights(averaged or saved.model, saved.state["recipe"], saved.state.get("data", {}).get("classes"))


def as_known(classes: Sequence[str]) -> Classes:
    """Classes by which other data can be opened: those of shards have numbers, no names."""
    return len(classes) if all(name.isdecimal() for name in classes) else tuple(classes)


def restored(r: Recipe, asks: str, processes: engine.Processes) -> tuple[Recipe, dict[str, Tensor], Classes]:
    """The recipe with what --checkpoint knows of the network, its weights, its classes or their number."""
    if r.checkpoint is None:
        raise engine.UsageError(
            f"{asks} needs --checkpoint X: a run, a ckpt-..., a .pth or .safetensors file."
        )
    with engine.usage():
        weights, fields, classes = weights_of(r.checkpoint)
    names = {*NETWORK, "size", "interpolation"}
    if r.data is None and r.synthetic is None:
        names |= {"data", "synthetic"}
    asked = engine.as_json(r)
    r = engine.inherit(r, RECIPES[r.recipe][1], fields, names)
    for line in engine.difference(asked, engine.as_json(r)) if r.eval and processes.first else ():
        print(f"From the checkpoint: {line}", file=sys.stderr)
    number = weights["classifier.weight"].shape[0]
    return r, weights, number if classes is None else as_known(classes)


def number_of(classes: Classes) -> int:
    return classes if isinstance(classes, int) else len(classes)


def evaluate(r: Recipe, processes: engine.Processes) -> None:
    """Top-1 and top-5 of --checkpoint on the validation set, for every size and number of steps."""
    r, weights, classes = restored(r, "--eval", processes)
    with engine.usage():
        bad = data.BadImages(r.max_bad, report=processes.first)
    rows = []
    for size in r.eval_sizes or (r.size,):
        with engine.usage():
            validation = Validation(r, size, processes, bad, classes)
        for steps in r.eval_steps or (r.steps,):
            with engine.usage():
                model = network(r, number_of(classes), processes.device, steps)
                takes(model, size)
            engine.load_weights(model, weights, r.checkpoint)
            scores = validation.scores(model)
            rows.append((size, steps, f"{scores.top1:.2%}", f"{scores.top5:.2%}", scores.samples))
    if processes.first:
        print(engine.table(("size", "T", "top-1", "top-5", "images"), rows))


@torch.no_grad()
def predict(r: Recipe, processes: engine.Processes) -> None:
    """The five classes that a picture most looks like."""
    r, weights, classes = restored(r, "--predict", processes)
    size, number = (r.eval_sizes or (r.size,))[0], number_of(classes)
    picture = data.open_image(r.predict)
    with engine.usage():
        model = network(r, number, processes.device).eval()
        takes(model, size)
    engine.load_weights(model, weights, r.checkpoint)
    x = data.eval_transform(size + 32, size, interpolation=r.interpolation)(picture)[None]
    shares, best = forward(r, model, x.to(processes.device))[0].softmax(0).topk(min(5, number))
    if isinstance(classes, int) and r.data:
        named = data.class_names(Path(r.data, "train"))
        classes = named if len(named) == number else classes
    rows = [
        (f"class {i}" if isinstance(classes, int) else classes[i], f"{share:.1%}")
        for share, i in zip(shares.tolist(), best.tolist(), strict=True)
    ]
    print(engine.table((str(r.predict), "probability"), rows))


def check(r: Recipe) -> None:
    """A UsageError for what contradicts itself, before anything is read or written."""
    engine.check_ranges(r, RANGES)
    asked = [flag for flag in ("predict", "eval", "dry_run") if getattr(r, flag)]
    if len(asked) > 1:
        flags = " and ".join(f"--{flag.replace('_', '-')}" for flag in asked)
        raise engine.UsageError(f"{flags} are different commands: give one of them.")
    if r.data is not None and r.synthetic is not None:
        raise engine.UsageError("--data and --synthetic are different images: give one of them.")
    if asked:
        return
    if r.checkpoint is not None:
        raise engine.UsageError(
            "--checkpoint is for --eval and --predict: --init-from starts a training from weights, --resume "
            "goes on with one."
        )
    if r.name and r.resume not in (None, "auto") and r.name not in Path(r.resume).parts:
        raise engine.UsageError(f"--resume {r.resume} goes on in that run's directory: leave --name out.")
    if r.epochs == 1 and r.schedule_every == "epoch" and not r.parity:
        raise engine.UsageError(
            "--epochs 1 would train at a rate of 0: that of the last epoch, where it changes by epoch as "
            "published. Add --schedule-every step."
        )


def command(r: Recipe) -> None:
    check(r)
    torch.backends.cudnn.allow_tf32 = r.precision == "tf32"
    torch.set_float32_matmul_precision("high" if r.precision == "tf32" else "highest")
    what = predict if r.predict else evaluate if r.eval else dry_run if r.dry_run else train
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
