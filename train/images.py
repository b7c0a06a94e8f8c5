"""The one job of training on images, which imagenet.py, cifar.py and fmnist.py share: open, train, validate,
measure, predict, try out. A script has its recipes, and a `Task` that says what its data are.
"""

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import torch
import tyro
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from attsnn import data, engine, models, ops
from attsnn.layers import settle, synchronise
from attsnn.models.convert import load_any
from attsnn.profile import profile, rates, scores, sentences

Loss = Literal["cross_entropy", "mse", "tet"]
T = TypeVar("T", bound=engine.Training)
OUTPUTS = ("classifier.weight", "classifier.current.weight")  # what has a row for each class
DRAWN_CLASSES = 10  # of what --synthetic draws
CHOSEN_ON_TEST = "The checkpoint was chosen on the test set: this is no result on unseen samples."
INSIDE = engine.Inside(rates, sentences, settle, profile, scores)  # of every network of ours
Classes = Sequence[str] | int | None  # their names, or how many; None: those of the data


@dataclass(frozen=True)
class ImageTraining(engine.Training):
    """The options of every training on images."""

    recipe: tyro.conf.Suppress[str] = ""
    data: Path | None = None  # folder of the images
    model: str = ""
    attention: str = "model"  # model: the one the model has
    steps: int = 1  # time steps T for which an image is shown
    width: float = 1.0  # factor on the channels of every layer, for small machines
    dropout: float | None = None  # dropout before the classifier; default: the model's
    size: int = 224  # side of a training crop in pixels
    loss: Loss = "cross_entropy"  # mse: error of firing rates; tet: cross-entropy of each step
    label_smoothing: float = 0.0  # e in the targets (1 - e) * target + e / classes
    mixup: float = 0.0  # alpha of mixup; 0: none
    cutmix: float = 0.0  # alpha of cutmix; 0: none. With both, each batch takes one of them
    mix_probability: float = 1.0  # probability that a batch is mixed
    mix_until: float = 1.0  # share of the epochs in which batches are mixed
    max_bad: int = 100  # missing or corrupt images that are tolerated; more end the run with exit code 3
    synthetic: int | None = None  # draw this many images instead of reading --data
    predict: Path | None = None  # only say what this picture shows, or each picture of this folder
    eval_sizes: tuple[int, ...] = ()  # sides of the crops of an evaluation, in pixels; default: as trained
    eval_steps: tuple[int, ...] = ()  # numbers of time steps of an evaluation; default: as trained

    COMMANDS: ClassVar[tuple[str, ...]] = ("predict", "eval", "dry_run")
    FREE: ClassVar[tuple[str, ...]] = (
        *engine.Training.FREE,
        *("data", "max_bad", "predict", "eval_sizes", "eval_steps"),
    )
    RANGES: ClassVar[tuple[engine.Range, ...]] = (
        *engine.Training.RANGES,
        engine.Range(
            "at least 1", lambda value: value >= 1, ("steps", "size", "synthetic", "eval_sizes", "eval_steps")
        ),
        engine.Range("at least 0", lambda value: value >= 0, ("mixup", "cutmix", "max_bad")),
        engine.Range("above 0", lambda value: value > 0, ("width",)),
        engine.Range(
            "from 0 to 1",
            lambda value: 0 <= value <= 1,
            ("dropout", "label_smoothing", "mix_probability", "mix_until"),
        ),
    )

    def check(self) -> None:
        super().check()
        if self.data is not None and self.synthetic is not None:
            raise engine.UsageError("--data and --synthetic are different images: give one of them.")


@dataclass(frozen=True)
class HeldOutTraining(ImageTraining):
    """Of sets with a test split, of which a part of the training images chooses the checkpoint."""

    validation_fraction: float = 0.1  # share of the training images of each class that chooses the checkpoint
    choose_on_test: bool = False  # train on all; the test set chooses, as in the papers

    RANGES: ClassVar[tuple[engine.Range, ...]] = (
        *ImageTraining.RANGES,
        engine.Range("at least 0 and below 1", lambda value: 0 <= value < 1, ("validation_fraction",)),
    )


def chosen_on_test(recipe: Mapping[str, Any]) -> bool:
    """Whether the test set chose the checkpoint: there was no validation of its own."""
    return bool(recipe.get("choose_on_test")) or recipe.get("validation_fraction") == 0


class Transform(NamedTuple):
    """A function of `attsnn.data` by name, and its keywords."""

    name: str
    keywords: Mapping[str, Any]

    def make(self) -> Callable:
        return getattr(data, self.name)(**self.keywords)


@dataclass(frozen=True)
class Task:
    """What a script's images are."""

    about: str  # its help
    recipes: Mapping[str, tuple[str, ImageTraining]]
    # (recipe, split, side of a crop, processes, classes); "held" is "train" as an evaluation sees it
    open: Callable[..., Dataset]
    transform: Callable[[Any, int], Transform]  # of a picture at an evaluation, by the side of its crop
    network: tuple[str, ...]  # fields that say what the network is
    families: tuple[str, ...]  # of published checkpoints that --checkpoint takes
    of_run: Callable[[Any], tuple[str, int, int]]  # of --dry-run: the set's name, images of an epoch, classes
    validates: bool = True  # the checkpoint is chosen by a part of "train"; else by "val"
    channels: int = 3
    rising: Callable[[Any], int] = lambda r: r.epochs  # epochs of the published cosine, which rises again
    loss_of: Callable[[Any, int], Callable | None] = lambda r, classes: None  # one of the script's own


# ---- network, loss
# ------------------------------------------------------------------------------------------


def network(r: ImageTraining, task: Task, classes: int, device: torch.device, steps: int | None = None):
    chosen = keywords(r, task, classes, steps)
    try:
        model = models.create(r.model, **chosen)
    except TypeError as error:  # a field that this model does not have
        raise ValueError(str(error)) from error
    return model.to(device, memory_format=r.layout(device))


def keywords(r: ImageTraining, task: Task, classes: int, steps: int | None = None) -> dict[str, Any]:
    """Of `models.create`: the network's fields, but for those left to the model."""
    named = {name: getattr(r, name) for name in task.network if name not in ("model", "attention")}
    chosen = {name: value for name, value in named.items() if value is not None}
    if chosen.pop("membrane_float32", False):
        chosen["membrane_dtype"] = torch.float32
    if r.attention != "model":
        chosen["attention"] = None if r.attention == "none" else r.attention
    return chosen | {"steps": steps or r.steps, "num_classes": classes, "backend": r.backend}


@torch.no_grad()
def takes(model: nn.Module, *shape: int) -> None:
    """Raises the model's ValueError for input that it cannot take, before any is loaded."""
    training = model.training
    model.eval()(torch.zeros(shape, device=next(model.parameters()).device))
    model.train(training)


def forward(r: ImageTraining, model: nn.Module, images: Tensor, **how: bool) -> Tensor:
    """Scores [N, classes] in float32; [T, N, classes] with every_step=True."""
    with r.autocast(images.device):
        return model(images.contiguous(memory_format=r.layout(images.device)), **how).float()


class Mixing:
    """`data.mixes` in the first epochs, by the recipe's share of them."""

    def __init__(self, r: ImageTraining, classes: int) -> None:
        alphas = {"mixup": r.mixup, "cutmix": r.cutmix}
        self._mixes = data.mixes(classes, **alphas, probability=r.mix_probability)
        self._last, self._on = r.mix_until * r.epochs, True

    def at(self, epoch: int) -> None:
        self._on = epoch < self._last

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return self._mixes(images, labels) if self._on else (images, labels)


def loss_of(r: ImageTraining, task: Task, classes: int, mixing: Callable | None = None) -> Callable:
    """The recipe's loss; of mixed images, against their mixed labels."""
    mixing = mixing or Mixing(r, classes)
    own = task.loss_of(r, classes)
    function = own or partial(engine.losses.LOSSES[r.loss], smoothing=r.label_smoothing)
    every_step = {"every_step": True} if r.loss in engine.losses.EVERY_STEP and not own else {}

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = batch
        mixed, target = mixing(images, labels)
        scores = forward(r, model, mixed, **every_step)
        mean = scores.mean(0) if every_step else scores
        accuracy = (mean.argmax(1) == labels).float().mean()
        return function(scores, target), {"accuracy": accuracy}

    return loss


def check_loss(r: ImageTraining, model: nn.Module) -> None:
    if r.loss in engine.losses.EVERY_STEP and not model.averages_scores:
        raise ValueError(f"--loss {r.loss} reads scores at every step; {r.model} ends in spikes: take mse.")


@cache
def drawn(name: str, count: int, processes: engine.Processes) -> Path:
    """Where `data.synthesise` has put that set; a command verifies it once, however many splits it opens."""
    return processes.from_first(lambda: data.synthesise(name, Path("build", "synthetic"), count))


# ---- validation and training
# ------------------------------------------------------------------------------------------


class Validation:
    """Images at one size, as `fit` wants them measured: `<name>_loss`, `<name>_accuracy`, ..."""

    def __init__(
        self,
        r: ImageTraining,
        name: str,
        images: Dataset,
        processes: engine.Processes,
        bad: data.BadImages,
    ) -> None:
        share = {"rank": processes.rank, "world": processes.world}
        pin = processes.device.type == "cuda"
        self.loader = engine.in_order(images, r.test_batch, r.workers, pin, collate=data.collate, **share)
        self.r, self.name, self.processes, self.bad = r, name, processes, bad

    def scores(self, model: nn.Module, poll: Callable[[], None] = lambda: None) -> engine.TopK:
        loss = engine.losses.rate_mse if self.r.loss == "mse" else engine.losses.cross_entropy
        how = {"forward": partial(forward, self.r), "limit": self.r.limit_batches, "faults": self.bad}
        return engine.top_k(model, self.loader, self.processes, **how, loss=loss, poll=poll)

    def __call__(self, model: nn.Module, poll: Callable[[], None] = lambda: None) -> dict[str, float]:
        scores = self.scores(model, poll)
        found = {"loss": scores.loss, "accuracy": scores.top1, "top5_accuracy": scores.top5}
        return {f"{self.name}_{key}": value for key, value in found.items()}


class Splits(NamedTuple):
    """What is trained on, by places of `images`, and what chooses: its name, its images."""

    images: Dataset
    chosen: Any
    name: str
    held: Dataset


def splits_of(r: ImageTraining, task: Task, processes: engine.Processes) -> Splits:
    images = task.open(r, "train", r.size, processes)
    known = as_known(images.classes)
    if not task.validates:
        return Splits(images, None, "val", task.open(r, "val", r.size, processes, known))
    if chosen_on_test(vars(r)):
        return Splits(images, None, "test", task.open(r, "test", r.size, processes, known))
    chosen, held = engine.held_out(images.labels, r.validation_fraction, r.seed)
    plain = task.open(r, "held", r.size, processes)
    return Splits(images, chosen, "val", Subset(plain, held.tolist()))


def prepare(r: ImageTraining, task: Task, processes: engine.Processes) -> engine.Prepared:
    device = processes.device
    bad = data.BadImages(r.max_bad, report=processes.first)
    splits = splits_of(r, task, processes)
    images, classes = splits.images, splits.images.classes
    share = {"rank": processes.rank, "world": processes.world, "pin": device.type == "cuda"}
    parity = getattr(r, "parity", ())
    order = {"frozen_order": "frozen_order" in parity, "drop_last": True, "limit": r.limit_batches}
    loading = {"key": data.Draw, "collate": data.collate, "workers": r.workers, "indices": splits.chosen}
    batches = engine.Batches(images, r.batch, r.seed, **loading, **share, **order)
    engine.seed_all(r.seed)
    model = network(r, task, len(classes), device)
    takes(model, 1, task.channels, r.size, r.size)
    check_loss(r, model)
    if processes.world > 1 and r.sync_norm:
        synchronise(model)
    validation = Validation(r, splits.name, splits.held, processes, bad)
    identity = getattr(splits.held, "identity", None) or f"{r.validation_fraction} of them"
    mixing = Mixing(r, len(classes))
    read = partial(weights_of, families=task.families, network=task.network)
    return engine.Prepared(
        model,
        batches,
        loss_of(r, task, len(classes), mixing),
        validation,
        f"{splits.name}_accuracy",
        data={
            "train_images": len(images) if splits.chosen is None else len(splits.chosen),
            "classes": classes,
            "identity": images.identity,
            "validation": identity,
        },
        build={
            "model": engine.described(r.model, keywords(r, task, len(classes))),
            "transform": engine.described(*task.transform(r, r.size)),
        },
        bits={"backend": "fused" if ops.use_fused(r.backend, device.type) else "reference"},
        start=partial(start_from, r, model, read),
        exempt=("attention",),
        period=max(task.rising(r), 1) if "rising_schedule" in parity else None,
        faults=bad,
        on_epoch=mixing.at,
        inside=INSIDE,
    )


def train(r: ImageTraining, task: Task, processes: engine.Processes) -> None:
    """Trains; the chosen checkpoint is measured on the test set once, where there is one."""
    if r.init_from is not None:  # what goes on has it in its recipe, wherever those weights are now
        r = known_by(r, task, r.init_from, processes, recorded=engine.recorded(r))[0]
    trial = partial(step_on_noise, task=task, processes=processes)
    with engine.begin(r, processes, partial(prepare, task=task, processes=processes), trial) as begun:
        engine.fit(*begun.parts, **begun.rules)
        r, model = begun.options, begun.parts[0]
        inside = begun.rules["inside"]
        if not task.validates:  # what chose is what is reported: it only remains to see inside
            if inside is not None and begun.run.last() is not None:
                engine.load_best(begun.run, model)
                validation = begun.rules["evaluate"]
                engine.keep_profile(begun.run, model, validation, inside, processes)
                see(begun.run, model, validation, inside)
            return
        test = task.open(r, "test", r.size, processes)
        bad = data.BadImages(r.max_bad, report=processes.first)
        measured = Validation(r, "test", test, processes, bad)
        engine.final(begun.run, model, measured, inside, processes)
        see(begun.run, model, measured, inside)
    if processes.first and chosen_on_test(vars(r)):
        print(CHOSEN_ON_TEST, flush=True)


def see(run: engine.Run, model: nn.Module, validation: Validation, inside: engine.Inside | None) -> None:
    """Draws what the gates of the network give for some of the images."""
    if inside is None or not validation.processes.first:
        return
    dataset, device = validation.loader.dataset, validation.processes.device
    images = torch.stack([dataset[i][0] for i in range(min(8, len(dataset)))]).to(device)
    for path in engine.draw_gates(run, model, partial(forward, validation.r), images, inside):
        print(f"picture: {path}", flush=True)


def counted(r: Any, published: tuple[str, int], validates: bool = True) -> tuple[str, int]:
    """What --dry-run counts a run on, its name and the images of an epoch: what is drawn, or that."""
    if r.synthetic is None:
        return published
    held = r.validation_fraction if validates and not chosen_on_test(vars(r)) else 0
    return "what is drawn", round(r.synthetic * (1 - held))


def step_on_noise(r: ImageTraining, task: Task, processes: engine.Processes) -> engine.Step:
    """A training step on random images."""
    device = processes.device
    classes = DRAWN_CLASSES if r.synthetic is not None else task.of_run(r)[2]
    model = network(r, task, classes, device)
    check_loss(r, model)
    piece = engine.piece_of(r, processes)
    shape = piece, task.channels, r.size, r.size
    batch = torch.randn(shape, device=device), torch.arange(piece, device=device) % classes
    return engine.step_of(r, model, loss_of(r, task, classes), batch, ("attention",))


def dry_run(r: ImageTraining, task: Task, processes: engine.Processes) -> None:
    """Two steps on random images, and what a run takes; writes nothing."""
    trial = partial(step_on_noise, task=task, processes=processes)
    with engine.usage():
        r = engine.settled(r, processes, None, trial)
        step = trial(r)
        takes(step.model, 1, task.channels, r.size, r.size)
    title = f"{r.model}, T = {r.steps}, on {processes.device}"
    count = counted(r, task.of_run(r)[:2], task.validates)
    rows = engine.rows_of_trial(r, step, processes, *count, "images")
    if processes.first:
        print(engine.table((title, "value"), rows))


# ---- a checkpoint
# ------------------------------------------------------------------------------------------


class Weights(NamedTuple):
    """Weights of a file, what it knows of the recipe, and of the classes by name."""

    tensors: dict[str, Tensor]
    fields: dict
    classes: Sequence[str] | None = None


def weights_of(path: Path, families: Sequence[str], network: Sequence[str]) -> Weights:
    """Those of a checkpoint of ours (the averaged ones where there are some), published or converted."""
    if path.is_file():
        weights, found = load_any(path, families)
        fields = {"model": found["name"], "attention": found.get("attention") or "none"}
        return Weights(
            weights, fields | {name: found[name] for name in network if found.get(name) is not None}
        )
    saved = engine.find_checkpoint(path)
    classes = saved.state.get("data", {}).get("classes")
    return Weights(engine.weights_in(saved), saved.state["recipe"], classes)


def start_from(r: Any, model: nn.Module, read: Callable[[Path], Weights]) -> None:
    """Gives the network the weights of --init-from, where it is given."""
    if r.init_from is not None:
        engine.load_weights(model, read(r.init_from).tensors, r.init_from)


def as_known(classes: Sequence[str]) -> Classes:
    """Classes by which other data can be opened: those of shards have numbers, no names."""
    return len(classes) if all(name.isdecimal() for name in classes) else tuple(classes)


def inherited(
    r: T,
    default: T,
    path: Path,
    found: Callable[[Path], Weights],
    names: Collection[str],
    processes: engine.Processes,
    recorded: Mapping[str, Any] | None = None,
) -> tuple[T, Weights]:
    """The recipe with those fields among `names` that it leaves at the default taken from a checkpoint, or
    from a recorded recipe; they are printed.
    """
    with engine.usage():
        weights = Weights({}, dict(recorded)) if recorded else found(path)
    if processes.first and chosen_on_test(weights.fields):
        print(CHOSEN_ON_TEST, file=sys.stderr)
    asked = engine.as_json(r)
    r = engine.inherit(r, default, weights.fields, names)
    for line in engine.difference(asked, engine.as_json(r)) if processes.first else ():
        print(f"From the checkpoint: {line}", file=sys.stderr)
    return r, weights


def known_by(r: ImageTraining, task: Task, path: Path, processes: engine.Processes, **how):
    """(The recipe with what the checkpoint knows of the network and its images, its weights)."""
    names = {*task.network, "size", *({"interpolation"} & vars(r).keys())}
    if r.data is None and r.synthetic is None and "recorded" not in how:
        names |= {"data", "synthetic"}
    found = partial(weights_of, families=task.families, network=task.network)
    return inherited(r, task.recipes[r.recipe][1], path, found, names, processes, **how)


def restored(
    r: ImageTraining, task: Task, asks: str, processes: engine.Processes
) -> tuple[ImageTraining, dict[str, Tensor], Classes]:
    """The recipe with what --checkpoint knows, its weights, its classes or their number."""
    if r.checkpoint is None:
        raise engine.UsageError(
            f"{asks} needs --checkpoint X: a run, a ckpt-..., a .pth or .safetensors file."
        )
    r, (weights, fields, classes) = known_by(r, task, r.checkpoint, processes)
    last = next((weights[name] for name in OUTPUTS if name in weights), None)
    if last is None:
        raise engine.UsageError(f"{r.checkpoint} holds {fields.get('model')}, no network of this script.")
    r = engine.settled(r, processes, r.today(fields))
    return r, weights, last.shape[0] if classes is None else as_known(classes)


def number_of(classes: Classes) -> int:
    return classes if isinstance(classes, int) else len(classes)


def evaluate(r: ImageTraining, task: Task, processes: engine.Processes) -> None:
    """Top-1 and top-5 of --checkpoint on the test set, for every size and number of steps."""
    r, weights, classes = restored(r, task, "--eval", processes)
    split = "test" if task.validates else "val"
    with engine.usage():
        bad = data.BadImages(r.max_bad, report=processes.first)
    rows = []
    for size in r.eval_sizes or (r.size,):
        with engine.usage():
            validation = Validation(r, split, task.open(r, split, size, processes, classes), processes, bad)
        for steps in r.eval_steps or (r.steps,):
            with engine.usage():
                model = network(r, task, number_of(classes), processes.device, steps)
                takes(model, 1, task.channels, size, size)
            engine.load_weights(model, weights, r.checkpoint)
            scores, found = engine.profiled(INSIDE, model, validation.scores, processes)
            rows.append((size, steps, f"{scores.top1:.2%}", f"{scores.top5:.2%}", scores.samples))
            if processes.first and found.counted:  # beside the table, which programs read
                print(f"{size} pixels, T = {steps}:\n{found.summary()}\n", file=sys.stderr)
    if processes.first:
        print(engine.table(("size", "T", "top-1", "top-5", "images"), rows))


@torch.no_grad()
def predict(r: ImageTraining, task: Task, processes: engine.Processes) -> None:
    """The five classes that a picture most looks like; of the pictures of a folder the first one each."""
    r, weights, classes = restored(r, task, "--predict", processes)
    size, number = (r.eval_sizes or (r.size,))[0], number_of(classes)
    pictures = data.pictures(r.predict) if r.predict.is_dir() else [r.predict]
    with engine.usage():
        model = network(r, task, number, processes.device).eval()
        takes(model, 1, task.channels, size, size)
        transform = task.transform(r, size).make()
    engine.load_weights(model, weights, r.checkpoint)
    if isinstance(classes, int) and r.data and (r.data / "train").is_dir():
        named = data.class_names(Path(r.data, "train"))
        classes = named if len(named) == number else classes
    names = [f"class {i}" for i in range(number)] if isinstance(classes, int) else classes
    rows = []
    for path in pictures:
        x = transform(data.open_image(path))[None].to(processes.device)
        shares, best = forward(r, model, x)[0].softmax(0).topk(min(5, number))
        found = [(names[i], f"{share:.1%}") for share, i in zip(shares.tolist(), best.tolist(), strict=True)]
        rows += [(path.name, *found[0])] if r.predict.is_dir() else found
    columns = ("class", "probability") if r.predict.is_dir() else ("probability",)
    print(engine.table((str(r.predict), *columns), rows))


# ---- the command
# ------------------------------------------------------------------------------------------


def command(r: ImageTraining, task: Task) -> None:
    r.check()
    r.set_precision()
    what = predict if r.predict else evaluate if r.eval else dry_run if r.dry_run else train
    with engine.processes(r.device, r.threads, r.dist_timeout) as processes:
        what(r, task, processes)


def main(task: Task, arguments: Sequence[str] | None = None) -> int:
    """The command line (default: this process's); returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or (given[0].startswith("-") and given[0] not in ("-h", "--help")):
        given = [next(iter(task.recipes)), *given]  # the first recipe needs no name
    r = tyro.extras.overridable_config_cli(dict(task.recipes), description=task.about, args=given)
    return engine.command(lambda: command(r, task), {data.DataError: 3, ImportError: 1})
