"""Transforms of images (the extra `vision`), and images that need no file."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from imagenet_writers import picture, write_folders
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from attsnn.data import Draw, ImageNet, SyntheticImages, collate, eval_transform, train_transform
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
    resource = pytest.importorskip("resource")
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
