"""Transforms of images (the extra `vision`), and images that need no file."""

import gc
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from imagenet_writers import picture, write_folders
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from attsnn.data import (
    CIFAR_MEAN,
    CIFAR_STD,
    Draw,
    ImageNet,
    SyntheticImages,
    collate,
    eval_transform,
    grey_transform,
    mixes,
    small_train_transform,
    train_transform,
    unit,
)
from attsnn.data.core.events import generator
from attsnn.data.core.images import pixels
from attsnn.data.synthetic import textures


@pytest.fixture
def vision():
    pytest.importorskip("torchvision", reason="extra vision: torchvision is not installed")


def test_published_transforms(vision):
    names = [type(step).__name__ for step in train_transform().transforms]
    assert names == ["RandomResizedCrop", "AutoAugment", "PILToTensor", "ToDtype", "Normalize"]  # no flip
    image = picture(0, size=(400, 300))
    out = eval_transform()(image)
    assert out.shape == (3, 224, 224) and out.dtype == torch.float32 and type(out) is torch.Tensor
    resized = image.resize((341, 256), Image.Resampling.BILINEAR)  # by hand: shorter side 256, the middle 224
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    middle = pixels(resized.crop((58, 16, 58 + 224, 16 + 224))).float() / 255
    torch.testing.assert_close(out, (middle - mean[:, None, None]) / std[:, None, None], atol=1e-6, rtol=0)
    assert eval_transform(320, 288)(image).shape == (3, 288, 288)


def test_operators_of_torchvision_stay(vision):
    """The declarations of the tests' shim are not collected with the module that makes them."""
    gc.collect()
    assert torch.ops.torchvision.nms


@pytest.mark.parametrize("augment", ["imagenet", "randaugment", "trivial", None])
def test_other_transforms(vision, augment):
    transform = train_transform(
        96, auto_augment=augment, hflip=1.0, random_erasing=1.0, interpolation="bicubic"
    )
    names = [type(step).__name__ for step in transform.transforms]
    assert names[1] == "RandomHorizontalFlip" and names[-1] == "RandomErasing"
    out = transform(picture(0, size=(400, 300)))
    assert out.shape == (3, 96, 96) and out.dtype == torch.float32
    assert (out == 0).all(0).any()  # the erased part


def steps(transform) -> dict:
    return {type(step).__name__: step for step in transform.transforms}


def small_picture(grey: bool) -> Image.Image:
    """28 x 28, grey or RGB, no two pixels alike in all channels."""
    image = picture(0, size=(28, 28))
    return image.convert("L") if grey else image


def test_small_images_are_cropped_from_a_border(vision):
    found = steps(small_train_transform())
    assert list(found) == ["RandomCrop", "PILToTensor", "ToDtype", "Normalize"]  # no flip
    crop, norm = found["RandomCrop"], found["Normalize"]
    assert (crop.size, crop.padding, crop.fill) == ((32, 32), [4, 4, 4, 4], 0)
    assert (tuple(norm.mean), tuple(norm.std)) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    norm = steps(small_train_transform(mean=CIFAR_MEAN, std=CIFAR_STD))["Normalize"]
    assert (tuple(norm.mean), tuple(norm.std)) == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    image, crop = small_picture(False), small_train_transform(28, pad=2, mean=(0,), std=(1,))
    padded, places = np.pad(unit(image).numpy(), ((0, 0), (2, 2), (2, 2))), set()
    for _ in range(200):
        out = crop(image).numpy()
        places |= {
            (y, x) for y in range(5) for x in range(5) if (padded[:, y : y + 28, x : x + 28] == out).all()
        }
    assert places == {(y, x) for y in range(5) for x in range(5)}


def test_other_steps_for_small_images(vision):
    transform = small_train_transform(
        28, crop_scale=0.6, hflip=0.25, auto_augment="randaugment", magnitude=5, random_erasing=0.75,
        interpolation="bicubic", mean=(0.5,), std=(0.25,),
    )  # fmt: skip
    names = [
        "RandomResizedCrop",
        "RandomHorizontalFlip",
        "RandAugment",
        "PILToTensor",
        "ToDtype",
        "Normalize",
    ]
    found = steps(transform)
    assert list(found) == [*names, "RandomErasing"]
    crop, norm = found["RandomResizedCrop"], found["Normalize"]
    assert (crop.size, crop.scale, crop.interpolation.value) == ((28, 28), (0.6, 1.0), "bicubic")
    assert (found["RandomHorizontalFlip"].p, found["RandomErasing"].p) == (0.25, 0.75)
    assert (found["RandAugment"].magnitude, found["RandAugment"].interpolation.value) == (5, "bicubic")
    assert (tuple(norm.mean), tuple(norm.std)) == ((0.5,), (0.25,))
    with pytest.raises(ValueError, match="auto_augment must be one of"):
        small_train_transform(auto_augment="augmix")


@pytest.mark.parametrize("policy", ["imagenet", "cifar10"])
@pytest.mark.parametrize("make", [train_transform, small_train_transform])
def test_policies_of_auto_augment(vision, make, policy):
    assert steps(make(auto_augment=policy))["AutoAugment"].policy.value == policy
    assert steps(make(auto_augment="trivial"))["TrivialAugmentWide"].interpolation.value == "bilinear"


@pytest.mark.parametrize("augment", ["imagenet", "cifar10", "randaugment", "trivial", None])
@pytest.mark.parametrize("grey", [False, True])
def test_small_images_stay_grey_or_coloured(vision, augment, grey):
    transform = small_train_transform(28, pad=2, auto_augment=augment, hflip=0.5, mean=(0,), std=(1,))
    for _ in range(8):
        out = transform(small_picture(grey))
        assert out.shape == (1 if grey else 3, 28, 28) and out.dtype == torch.float32
        assert out.min() >= 0 and 0.5 < out.max() <= 1


@pytest.mark.parametrize("grey", [False, True])
def test_small_images_are_evaluated_whole(vision, grey):
    """In 0..1 the bits are those of `unit`."""
    image, side = small_picture(grey), 28
    whole = image.resize((side, side))
    assert torch.equal(eval_transform(side, side, mean=(0,), std=(1,))(whole), unit(whole))
    mean, std = ((0.3,), (0.2,)) if grey else (CIFAR_MEAN, CIFAR_STD)
    wanted = (unit(whole) - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    found = eval_transform(side, side, mean=mean, std=std)(whole)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_grey_pictures_are_the_middle_square(monkeypatch):
    """Of the size asked for as they are; without torchvision."""
    monkeypatch.setitem(sys.modules, "torchvision", None)
    values = np.arange(28 * 40, dtype=np.uint32).reshape(28, 40) % 251
    wide = Image.fromarray(values.astype(np.uint8))
    assert torch.equal(grey_transform(28)(wide), unit(wide.crop((6, 0, 34, 28))))
    assert torch.equal(grey_transform(28)(wide.convert("RGB")), grey_transform(28)(wide))
    assert grey_transform(14)(wide.rotate(90, expand=True)).shape == (1, 14, 14)


def test_unit_images_need_no_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    values = np.array([[0, 51, 255], [1, 102, 254]], np.uint8)
    out = unit(Image.fromarray(values))
    assert out.shape == (1, 2, 3) and out.dtype == torch.float32 and out.max() == 1 and out.min() == 0
    torch.testing.assert_close(out[0], torch.from_numpy(values).float() / 255, atol=1e-7, rtol=0)
    rgb = unit(Image.fromarray(np.stack([values, values + 1, 0 * values], axis=2)))
    assert rgb.shape == (3, 2, 3) and torch.equal(rgb[0], out[0]) and not rgb[2].any()


@pytest.mark.parametrize("alphas", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_every_batch_is_mixed_by_default(vision, alphas):
    """By torchvision's own, with its draws alone."""
    from torchvision.transforms import v2

    images, labels = torch.rand(6, 3, 8, 8), torch.arange(6)
    kinds = {"mixup": v2.MixUp, "cutmix": v2.CutMix}
    wanted = v2.RandomChoice([kinds[name](alpha=alpha, num_classes=9) for name, alpha in alphas.items()])
    for mix in (mixes(9, **alphas), mixes(9, **alphas, probability=1)):
        torch.manual_seed(5)
        found = [mix(images, labels) for _ in range(4)]
        torch.manual_seed(5)
        for mixed, shares in found:
            for got, want in zip((mixed, shares), wanted(images, labels), strict=True):
                assert torch.equal(got, want)


@pytest.mark.parametrize("probability", [0.2, 0.7])
def test_some_batches_are_mixed(vision, probability):
    """The others are left as they are, their labels as shares too; by torch's global generator."""
    images, labels = torch.rand(4, 1, 6, 6), torch.tensor([2, 0, 1, 2])
    mix, one_hot = mixes(3, cutmix=1.0, mixup=0.5, probability=probability), torch.eye(3)[labels]
    torch.manual_seed(1)
    batches = [mix(images, labels) for _ in range(600)]
    left = [torch.equal(mixed, images) and torch.equal(shares, one_hot) for mixed, shares in batches]
    assert all(shares.dtype == torch.float32 and shares.shape == (4, 3) for _, shares in batches)
    assert all(torch.allclose(shares.sum(1), torch.ones(4)) for _, shares in batches)
    assert sum(not b for b in left) / 600 == pytest.approx(probability, abs=0.08)  # four deviations
    torch.manual_seed(1)
    again = [mix(images, labels) for _ in range(600)]
    assert all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(batches, again, strict=True)
    )


def test_nothing_is_mixed():
    images, labels = torch.rand(4, 3, 6, 6), torch.tensor([2, 0, 1, 2])
    for mix in (mixes(3), mixes(3, probability=0.5), mixes(3, mixup=0.2, cutmix=1.0, probability=0)):
        assert mix(images, labels)[0] is images and mix(images, labels)[1] is labels
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="probability of a mixed batch must be from 0 to 1, got"):
            mixes(3, mixup=0.2, probability=wrong)


def test_transforms_refuse_what_cannot_be(vision):
    with pytest.raises(ValueError, match="auto_augment must be one of"):
        train_transform(auto_augment="augmix")
    with pytest.raises(ValueError, match="crop of 320 is larger"):
        eval_transform(256, 320)


def test_published_augmentation_is_a_function_of_the_key(vision, tmp_path):
    """With all that torchvision draws, over processes and orders."""
    dataset = ImageNet(write_folders(tmp_path), "train", train_transform(24, hflip=0.5, random_erasing=0.5))
    plan = [[Draw(i, 31 * i + 1) for i in range(k, k + 3)] for k in range(0, 18, 3)]
    loaders = [DataLoader(dataset, batch_sampler=plan, num_workers=n, collate_fn=collate) for n in (0, 2)]
    alone, together = (torch.cat([images for images, *_ in loader]) for loader in loaders)
    assert torch.equal(alone, together)
    backwards = [dataset[key].image for batch in plan[::-1] for key in batch[::-1]]
    assert torch.equal(alone, torch.stack(backwards).flip(0))
    assert not torch.equal(dataset[Draw(0, 1)].image, dataset[Draw(0, 2)].image)


def test_without_torchvision_one_sentence_says_what_to_install(monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torchvision", None)
        with pytest.raises(ImportError, match=r"need torchvision \(.*\): pip install torchvision, from"):
            eval_transform()
    (tmp_path / "torchvision").mkdir()
    broken = "raise RuntimeError('operator torchvision::nms does not exist')"
    (tmp_path / "torchvision" / "__init__.py").write_text(broken)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="does not fit torch .*nms does not exist.*install both from one"):
        train_transform()


def test_torchvision_is_imported_when_it_is_used(vision):
    """In a process of its own, which has the shim of these tests too."""
    script = (
        "import attsnn.data, sys\n"
        "print({'torchvision', 'webdataset', 'scipy'} & sys.modules.keys())\n"
        "attsnn.data.eval_transform()\n"
        "print('torchvision' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["set()", "True"]


def test_synthetic_images():
    dataset = SyntheticImages(12, 32, 5)
    sample = dataset[7]
    assert sample.image.shape == (3, 32, 32) and sample.image.dtype == torch.float32 and sample.label == 2
    assert len(dataset) == 12 and dataset.classes[2] == "texture_2" and not sample.bad
    assert torch.equal(sample.image, dataset[Draw(7, 99)].image)
    assert torch.equal(SyntheticImages(5, 32, 5, start=7)[0].image, sample.image)
    assert not torch.equal(sample.image, dataset[2].image)  # of the same class
    with pytest.raises(IndexError):
        dataset[12]
    with pytest.raises(ValueError, match="classes must be at least 1, start at least 0; got 12, 32, 0, 0"):
        SyntheticImages(12, 32, 0)
    images, labels, bad = next(iter(DataLoader(dataset, 12, collate_fn=collate)))
    assert images.shape == (12, 3, 32, 32) and labels.tolist() == [i % 5 for i in range(12)] and bad == {}


def test_synthetic_images_are_normalised_as_asked_for():
    image = torch.from_numpy(textures.texture(2, 32, generator(7)))
    for given, (mean, std) in {
        "default": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "cifar": (CIFAR_MEAN, CIFAR_STD),
    }.items():
        how = {} if given == "default" else {"mean": mean, "std": std}
        wanted = (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        assert torch.equal(SyntheticImages(12, 32, 5, **how)[7].image, wanted)


def test_synthetic_images_have_noise_of_their_own(monkeypatch):
    """In every pixel and channel, beside the smooth texture; where it is not cut off at 0 and 1."""
    noisy = [textures.texture(label, 64, generator(label)) for label in range(3)]
    monkeypatch.setattr(textures, "NOISE", 0.0)
    plain = [textures.texture(label, 64, generator(label)) for label in range(3)]
    for image, smooth in zip(noisy, plain, strict=True):
        noise, inside = image - smooth, (smooth > 0.3) & (smooth < 0.7)
        assert inside.sum() > 1000 and noise[inside].std() == pytest.approx(0.08, rel=0.1)
        assert abs(np.corrcoef(noise.reshape(3, -1))[0, 1]) < 0.1


def test_synthetic_classes_can_be_learned():
    """A small convolution tells six classes of new images apart after a hundred steps."""
    train, test = SyntheticImages(384, 24, 6), SyntheticImages(120, 24, 6, start=384)
    x, y, _ = collate([train[i] for i in range(len(train))])
    first, second = nn.Conv2d(3, 16, 5, 2), nn.Conv2d(16, 24, 3, 2)
    head = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 6)]
    model = nn.Sequential(first, nn.ReLU(), second, *head)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(100):
        chosen = torch.arange(64) + 64 * (step % 6)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
    x, y, _ = collate([test[i] for i in range(len(test))])
    assert (model(x).argmax(1) == y).float().mean() > 0.7  # by chance: 0.17


@pytest.mark.parametrize("size", [(20_000, 2), (2, 20_000), (150_000, 2), (3, 50_000)])
def test_a_long_picture_costs_no_memory(size, vision):
    """A few bytes of a file: its shorter side would be enlarged, and the longer one with it."""
    image = Image.new("RGB", size, (10, 20, 30))
    image.paste((250, 20, 30), (size[0] // 2, size[1] // 2, *size))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out = eval_transform(256, 224)(image)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    assert out.shape == (3, 224, 224)
    corner = out[0, -20:, -20:].mean() - out[0, :20, :20].mean()
    assert corner > 3  # the middle of the picture


def test_pictures_of_usual_shapes_are_resized_whole(vision):
    from torchvision.transforms import v2

    for size in ((40, 32), (300, 40), (31, 240), (500, 375)):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8))
        plain = v2.Compose([v2.Resize(64), v2.CenterCrop(56), v2.PILToTensor()])(image)
        steps = eval_transform(64, 56).transforms
        assert torch.equal(v2.Compose([*steps[:3], v2.PILToTensor()])(image), plain)
