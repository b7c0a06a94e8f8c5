"""What train/imagenet.py builds from its options: recipes, network, images, loss, optimiser, schedule, order.

Sections are those of the specification, attention_snn.md: 4.2 is the published training on ImageNet.
"""

import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from imagenet_writers import picture, write_folders
from test_train_imagenet import BACKEND, SMALL, TINY, imagenet
from torch import nn
from trainers import flags, fresh

from attsnn import data, engine

pytestmark = pytest.mark.usefixtures("without_curves")


def run(*words, where, **values) -> None:
    done = imagenet(*words, *flags(**values), where=where)
    assert done.code == 0, done.err


@pytest.fixture(scope="module")
def script():
    """The trainer and the job that it shares, by the names of what they build."""
    recipes = fresh("imagenet")
    job, task = sys.modules["images"], recipes.TASK
    return SimpleNamespace(
        RECIPES=recipes.RECIPES,
        open_images=recipes.open_images,
        network=lambda r, classes, device: job.network(r, task, classes, device),
        forward=job.forward,
        loss_of=lambda r, classes: job.loss_of(r, task, classes),
        optimiser=lambda r, model: r.optimiser(model, ("attention",)),
        update_of=lambda r, model: r.update(model),
    )


@pytest.fixture
def small(script):
    """The first recipe for a narrow network, with the values given."""
    recipe = replace(script.RECIPES["att_res_snn"][1], width=0.125, backend=BACKEND)
    return lambda **values: replace(recipe, **values)


@pytest.fixture
def built(tmp_path, monkeypatch):
    """What a command line of these flags hands to `engine.fit`, which does not train."""

    def build(**values) -> SimpleNamespace:
        seen, where = SimpleNamespace(), tmp_path / str(len(list(tmp_path.iterdir())))

        def fit(model, optimizer, schedule, batches, **rest):
            seen.model, seen.optimizer, seen.schedule, seen.batches = model, optimizer, schedule, batches
            vars(seen).update(rest, drawn=torch.rand(4).tolist())

        monkeypatch.setattr(engine, "fit", fit)
        where.mkdir()
        run(where=where, **{**TINY, **values})
        return seen

    return build


def recorded(monkeypatch, name: str) -> list:
    """What that function of `data` returns from now on."""
    make, found = getattr(data, name), []
    monkeypatch.setattr(data, name, lambda *a, **k: found.append(make(*a, **k)) or found[-1])
    return found


PUBLISHED = {
    "model": "att_ms_resnet18", "attention": "model", "steps": 1, "epochs": 250, "batch": 100, "lr": 0.1,
    "optimizer": "sgd", "weight_decay": 1e-5, "decay_all": True, "label_smoothing": 0.1, "warmup_epochs": 0,
    "schedule_every": "epoch", "size": 224, "augment": "imagenet", "hflip": 0, "interpolation": "bilinear",
    "crop_scale": 0.08, "erasing": 0, "mixup": 0, "cutmix": 0, "clip": None, "ema": None, "accumulate": 1,
    "parity": (), "sync_norm": True, "width": 1, "dropout": None, "precision": "fp32",
}  # fmt: skip
DIFFER = {
    "att_res_snn": {},
    "ms_resnet": {"model": "ms_resnet18", "steps": 6, "epochs": 125, "batch": 256},
    "modern": {
        "augment": "randaugment", "interpolation": "bicubic", "hflip": 0.5, "mixup": 0.2, "cutmix": 1,
        "epochs": 150, "batch": 1024, "lr": 1, "warmup_epochs": 5, "schedule_every": "step", "clip": 5,
        "weight_decay": 5e-5, "decay_all": False, "ema": 0.9999, "precision": "bf16",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFER)
def test_recipes(script, name):
    """Section 4.2, Att-Res-SNN's `train_amp` and what it says of MS-ResNet; "modern" is the house's own."""
    wanted = {**PUBLISHED, **DIFFER[name], "recipe": name}
    assert {key: getattr(script.RECIPES[name][1], key) for key in wanted} == wanted


@pytest.mark.parametrize("choice", ["yes", "no", "gpu"])
def test_channels_last(script, small, choice):
    """Kernels and images; gpu is no on the CPU."""
    r, seen, last = small(channels_last=choice), set(), torch.channels_last
    model, images = script.network(r, 5, torch.device("cpu")), torch.randn(2, 3, 8, 8)
    for kernel in (p for p in model.parameters() if p.dim() == 4 and p.shape[2] > 1 < p.shape[1]):
        seen.add(kernel.is_contiguous(memory_format=last))
    for x in (images, images.to(memory_format=last)):
        script.forward(r, lambda x: seen.add(x.is_contiguous(memory_format=last)) or x, x)
    assert seen == {choice == "yes"}


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_precision(script, small, precision):
    """What a layer returns in training; scores are float32, and fp16 alone scales the loss."""
    r, model, seen = small(precision=precision), nn.Linear(6, 4), []
    model.register_forward_hook(lambda *call: seen.append(call[-1].dtype))
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    batch = torch.randn(2, 6), torch.tensor([0, 3])
    assert script.forward(r, model, batch[0]).dtype == torch.float32
    loss, _ = script.loss_of(r, 4)(model, batch)
    assert seen == [dtype, dtype] and loss.dtype == torch.float32
    assert (script.update_of(r, model).scaler is not None) == (precision == "fp16")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    pytest.importorskip("torchvision", reason="extra vision: torchvision is not installed")
    return write_folders(tmp_path_factory.mktemp("imagenet"))


def steps(transform) -> dict:
    return {type(step).__name__: step for step in transform.transforms}


def mode(step) -> str:
    return getattr(step.interpolation, "value", step.interpolation)  # torchvision's enum or its name


def test_training_images(script, small, folders):
    """Section 4.2: RandomResizedCrop(224), AutoAugment of ImageNet's policy, no flip; or as asked for."""
    given = {"augment": "randaugment", "hflip": 0.3, "erasing": 0.7, "crop_scale": 0.35}
    options = {224: {}, 48: {**given, "interpolation": "bicubic"}}
    plain, found = (
        steps(script.open_images(small(data=folders, **more), "train", size, engine.Processes()).transform)
        for size, more in options.items()
    )
    assert list(plain) == ["RandomResizedCrop", "AutoAugment", "PILToTensor", "ToDtype", "Normalize"]
    assert plain["AutoAugment"].policy.value == "imagenet"
    crops = [x["RandomResizedCrop"] for x in (plain, found)]
    assert [(*crop.size, *crop.scale) for crop in crops] == [(224, 224, 0.08, 1), (48, 48, 0.35, 1)]
    assert [mode(step) for step in (*crops, found["RandAugment"])] == ["bilinear", "bicubic", "bicubic"]
    assert found["RandomHorizontalFlip"].p == 0.3 and found["RandomErasing"].p == 0.7


def resizes(transform) -> tuple:
    """(shorter side, crop, interpolation)."""
    found = steps(transform)
    return (*found["Resize"].size, *found["CenterCrop"].size, mode(found["Resize"]))


@pytest.mark.parametrize(("side", "size", "how"), [(256, 224, "bilinear"), (320, 288, "bicubic")])
def test_images_of_an_evaluation(script, small, folders, side, size, how):
    """Section 4.2: the middle 224 from 256, 288 from 320."""
    r = small(data=folders, interpolation=how)
    images = script.open_images(r, "val", size, engine.Processes())
    assert resizes(images.transform) == (side, size, size, how)


@pytest.mark.parametrize("alphas", [{"mixup": 0.2, "cutmix": 1.5}, {"mixup": 0.2}, {"cutmix": 1.5}])
def test_mixing(script, small, folders, monkeypatch, alphas):
    made = recorded(monkeypatch, "mixes")
    script.loss_of(small(**alphas), 9)
    found = {type(kind).__name__.lower(): (kind.alpha, kind.num_classes) for kind in made[0].transforms}
    assert found == {name: (alpha, 9) for name, alpha in alphas.items()}


@pytest.mark.parametrize("mixed", [False, True])
def test_label_smoothing(script, small, monkeypatch, mixed):
    """Section 4.2: against (1 - e) onehot + e / K, the mean over the batch; so too against mixed labels."""
    scores, labels = torch.tensor([[2.0, 0.0, -1.0, 0.5], [0.0, 1.0, 3.0, 0.0]]), torch.tensor([3, 2])
    x, target = scores, nn.functional.one_hot(labels, 4).float()
    if mixed:
        x, target = scores.flip(0), torch.tensor([[0.7, 0.0, 0.0, 0.3], [0.0, 1.0, 0.0, 0.0]])
        monkeypatch.setattr(data, "mixes", lambda *_, **__: lambda images, _: (images.flip(0), target))
    loss, _ = script.loss_of(small(label_smoothing=0.25), 4)(lambda images: images, (x, labels))
    smooth = 0.75 * target + 0.25 / 4
    assert loss.item() == pytest.approx(-(smooth * scores.log_softmax(1)).sum(1).mean().item(), abs=1e-6)


@pytest.mark.parametrize("decay_all", [True, False])
@pytest.mark.parametrize(
    ("kind", "momentum"), [(torch.optim.SGD, (0.9, 0, False)), (torch.optim.AdamW, (None,) * 3)]
)
def test_optimiser(script, small, kind, momentum, decay_all):
    """Section 4.2: SGD, momentum 0.9, no Nesterov, decay of all parameters."""
    model = nn.ModuleDict({"current": nn.Linear(2, 3), "attention": nn.Linear(3, 3, bias=False)})
    r = small(optimizer=kind.__name__.lower(), lr=0.03, weight_decay=0.002, decay_all=decay_all)
    optimizer, decays = script.optimiser(r, model), {}
    assert type(optimizer) is kind
    for group in optimizer.param_groups:
        assert group["lr"] == 0.03
        assert tuple(map(group.get, ("momentum", "dampening", "nesterov"))) == momentum
        decays |= {id(parameter): group["weight_decay"] for parameter in group["params"]}
    rest = 0.002 if decay_all else 0
    wanted = {"current.weight": 0.002, "current.bias": rest, "attention.weight": rest}
    assert {key: decays[id(parameter)] for key, parameter in model.named_parameters()} == wanted


def test_update(built, monkeypatch):
    monkeypatch.setattr(engine.training, "ema_of", lambda model, decay: decay)
    update = built(clip=0.5, accumulate=2, ema=0.8).update
    assert (update.clip, update.accumulate, update.ema) == (0.5, 2, 0.8)


def test_schedule(built):
    """Section 4.2: lr (1 + cos(pi e / epochs)) / 2 in epoch e, from 1; or at every step, warmed up."""
    wave = [0.2 * (1 + math.cos(math.pi * step / 20)) for step in range(21)]
    held = [wave[step // 5 * 5 + 5] for step in range(20)]
    warm = [min(1, (step + 1) / 4) * wave[step] for step in range(20)]
    for words, wanted in (({}, held), ({"schedule_every": "step", "warmup_epochs": 0.6}, warm)):
        seen, rates = built(epochs=4, lr=0.4, **words), []
        for _ in range(20):
            rates.append(seen.optimizer.param_groups[0]["lr"])
            seen.optimizer.step()
            seen.schedule.step()
        assert rates == pytest.approx(wanted, abs=1e-12)


def order(seen, epoch: int) -> list[int]:
    return [index for share, _ in seen.batches.epoch(epoch) for index in share.indices]


def test_order_of_epochs(built):
    """Section 4.2: the published sampler never shuffles anew; here only with --parity frozen_order."""
    plain, frozen = built(), built(parity="frozen_order")
    assert order(plain, 0) != order(plain, 1)
    assert order(frozen, 0) == order(frozen, 1) == order(plain, 0)


def test_seed(built):
    """Of the order, of the first weights and of what the loop draws."""
    a, again, other = (built(seed=seed) for seed in (7, 7, 8))
    assert order(a, 0) == order(again, 0) != order(other, 0)
    weights = [seen.model.classifier.weight.tolist() for seen in (a, again, other)]
    assert weights[0] == weights[1] != weights[2]
    wanted = [torch.rand(4, generator=torch.Generator().manual_seed(seed)).tolist() for seed in (7, 7, 8)]
    assert [a.drawn, again.drawn, other.drawn] == wanted


def test_top_1_and_top_5_by_hand():
    """Seven classes, scores 6 to 0: of seven labels two are first, five are among the first five."""
    scores, labels = torch.arange(7.0).flip(0).repeat(7, 1), torch.tensor([0, 0, 1, 2, 4, 5, 6])
    found = engine.top_k(nn.Identity(), [(scores[:4], labels[:4]), (scores[4:], labels[4:])])
    assert (found.top1, found.top5, found.samples) == (pytest.approx(2 / 7), pytest.approx(5 / 7), 7)
    assert found.loss == pytest.approx(math.log(sum(math.exp(k) for k in range(7))) - 24 / 7)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, without_curves):
    """A run of two steps, T = 2."""
    where = tmp_path_factory.mktemp("trained")
    words = {**TINY, "epochs": 2, "limit_batches": 1, "steps": 2, "interpolation": "bicubic"}
    run(where=where, **words)
    return where / "runs" / "run"


@pytest.mark.parametrize(("given", "wanted"), [({"eval_steps": "1 3"}, (1, 3)), ({}, (2,))])
def test_eval_measures_sizes_and_steps(trained, tmp_path, monkeypatch, given, wanted):
    """Images of each size go through a network of each number of steps; by default the training's."""
    seen = []

    def top_k(model, loader, *_, **__):
        seen.append((next(iter(loader))[0].shape[-1], model.plan.steps))
        return engine.TopK(0.1, 0.5, 2.0, 8)

    monkeypatch.setattr(engine, "top_k", top_k)
    run("--eval", where=tmp_path, **SMALL, checkpoint=trained, eval_sizes="64 32", **given)
    assert seen == [(size, steps) for size in (64, 32) for steps in wanted]


def test_predicted_picture(trained, folders, tmp_path, monkeypatch):
    """As in an evaluation: 64 from 96, with the training's interpolation."""
    made = recorded(monkeypatch, "eval_transform")
    picture(0).save(tmp_path / "a.png")
    run(where=tmp_path, **SMALL, predict="a.png", checkpoint=trained, eval_sizes=64)
    assert resizes(made[-1]) == (96, 64, 64, "bicubic")
