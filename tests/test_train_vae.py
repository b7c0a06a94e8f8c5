"""train/vae.py as a user types it: trained on the embedded digits, stopped, resumed, measured, sampled."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_train_imagenet import interrupt, same_state
from trainers import Done, flags, train

from attsnn import data, engine, models
from attsnn.engine import checkpoint

pytestmark = pytest.mark.usefixtures("without_curves")

SMALL = {
    "widths": "8 16", "hidden": "32 64", "latent": 16, "k": 5, "steps": 4, "workers": 0, "threads": 1,
    "device": "cpu",
}  # fmt: skip
ALONE = ["--workers", 0, "--threads", 1, "--device", "cpu"]
TINY = {**SMALL, "size": 16, "limit_batches": 3, "epochs": 2, "name": "run"}


def vae(*words, where: Path, change=None) -> Done:
    return train("vae", *words, where=where, change=change)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """(where, what it said) of a training of seconds."""
    where = tmp_path_factory.mktemp("vae")
    words = flags(**SMALL, size=16, epochs=6, picture_epochs=3, lr=0.01, name="run")
    done = vae("digits", *words, where=where)
    assert done.code == 0, done.err
    return where, done.out


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_to_reconstruct(learned):
    """Better than the mean image; the checkpoint is that of the lowest error."""
    where, out = learned
    found = rows(where / "runs" / "run")
    images = torch.stack([2 * image - 1 for image, *_ in data.Digits("test", size=16)])
    trained = torch.stack([2 * image - 1 for image, *_ in data.Digits("train", size=16)]).mean(0)
    mean = (images - trained).square().mean().item()
    assert found[-1]["final"] and found[-1]["test_error"] < 0.9 * mean, (found[-1]["test_error"], mean)
    best = min(found[:-1], key=lambda row: row["val_error"])
    assert engine.find_checkpoint(where / "runs" / "run").state["position"]["epoch"] == best["epoch"]
    assert found[-1]["epoch"] == best["epoch"] and all(0 < row["val_distance"] < 1 for row in found)
    for row in found[:-1]:
        assert row["val_loss"] == pytest.approx(row["val_error"] + row["val_distance"], abs=1e-6)
    assert f"its lowest val_error is {best['val_error']:.4g}, of epoch {best['epoch']}" in out
    assert re.search(r"draws of z for an image +1\ntheir seed +0\n", out)


def test_its_pictures(learned):
    """Inputs, reconstructions and samples with gaps, and rasters of z, every few epochs and at the end."""
    where, out = learned
    run = where / "runs" / "run"
    for name in ("epoch_3", "epoch_6", "test"):
        picture = Image.open(run / f"{name}.png")
        assert picture.size == (2 * (16 * (16 + 2) + 2), 2 * (4 * (16 + 2) + 2))
        assert Image.open(run / f"{name}_latents.png").size[1] == 2 * (2 * (16 + 2) + 2)
    assert not (run / "epoch_1.png").exists() and "picture: runs/run/test.png" in out
    raw = torch.from_numpy(np.array(Image.open(run / "test.png")))
    assert (raw[:4] == 255).all() and (raw[4:36, 4:36] < 255).any()


def test_measured_again(learned, tmp_path):
    """The same figure from the checkpoint, by the same draws; another seed gives another."""
    where, _ = learned
    words = ["--eval", "--checkpoint", where / "runs" / "run", *ALONE]
    final = rows(where / "runs" / "run")[-1]
    done = vae("digits", *words, where=tmp_path)
    assert done.code == 0, done.err
    assert re.search(rf"^error +{final['test_error']:.4f}$", done.out, re.MULTILINE), done.out
    other = vae("digits", *words, "--draw-seed", 3, "--draws", 2, where=tmp_path)
    assert re.search(r"draws of z for an image +2\ntheir seed +3\n", other.out + "\n")
    assert not re.search(rf"^error +{final['test_error']:.6f}$", other.out, re.MULTILINE)
    assert not list(tmp_path.iterdir())


def test_judged_and_compared(learned, tmp_path):
    """By a classifier and an autoencoder that are trained here."""
    where, _ = learned

    def quick(script):
        sys.modules["train_vae"].steps_of = lambda batches: 2

    words = ["--eval", "--checkpoint", where / "runs" / "run", *ALONE]
    asked = ["--judge", "--distance-by", "autoencoder", "--count", 300]
    done = vae("digits", *words, *asked, where=tmp_path, change=quick)
    assert done.code == 0, done.err
    share = re.search(
        r"a classifier reads of test images +([\d.]+)%\nof their reconstructions +([\d.]+)%", done.out
    )
    assert float(share[1]) > 60 and 0 <= float(share[2]) <= float(share[1])
    found = dict(re.findall(r"Frechet distance / trace, (.+?) +([\d.]+)$", done.out, re.MULTILINE))
    assert found.keys() == {"test images", "reconstructions", "300 samples"}
    assert (
        0 <= float(found["test images"]) < min(float(found["reconstructions"]), float(found["300 samples"]))
    )


def test_samples(learned, tmp_path):
    where, _ = learned
    words = ["--sample", 20, "--checkpoint", where / "runs" / "run", *ALONE]
    done = vae("digits", *words, "--out", "a.png", where=tmp_path)
    assert done.code == 0 and done.out == "a.png: 20 images, of seed 0\n", done.err
    vae("digits", *words, "--out", "b.png", where=tmp_path)
    vae("digits", *words, "--out", "c.png", "--draw-seed", 1, where=tmp_path)
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c and Image.open(tmp_path / "a.png").size == (580, 2 * (2 * 18 + 2))


def test_loaded_from_python(learned):
    """The network, and what makes of a picture what it takes."""
    model, _, transform = engine.load(learned[0] / "runs" / "run")
    images = transform(Image.new("L", (40, 30), 128))[None]
    assert images.shape == (1, 1, 16, 16) and abs(images.mean().item()) < 0.01
    assert model(images).images.shape == images.shape and not model.training


@pytest.mark.parametrize("prefix", ["exact", "running"])
def test_stopped_and_resumed_to_the_bit(tmp_path, prefix):
    """With PFA, averaged weights, KLD, and draws of z that go on where they were."""
    words = flags(**TINY, prefix=prefix, pfa="ours", rank=2, ema=0.9, distance="kld", scheduled=0.9)
    assert vae("digits", *words, where=tmp_path, change=at_call_of_vae(5)).code == 143
    assert vae("digits", *words, "--resume", "auto", where=tmp_path).code == 0
    whole = vae("digits", *flags(**{**TINY, "name": "whole"}), *words[len(flags(**TINY)) :], where=tmp_path)
    assert whole.code == 0, whole.err
    runs = tmp_path / "runs"
    same_state(checkpoint.pointed(runs / "run", "last"), checkpoint.pointed(runs / "whole", "last"))


def at_call_of_vae(number: int):
    """SIGTERM before the loss is computed for the `number`-th time."""

    def change(_):
        objective, calls = sys.modules["train_vae"].Objective, []
        call = objective.__call__

        def counted(self, model, batch):
            calls.append(1)
            if len(calls) == number:
                interrupt()
            return call(self, model, batch)

        objective.__call__ = counted

    return change


@pytest.mark.parametrize(("name", "shape"), [("mnist", (1, 32)), ("cifar10", (3, 32)), ("celeba", (3, 64))])
def test_published_sets(tmp_path, name, shape):
    """In their own formats: images from -1 to 1, of the published size."""
    widths = "4 4 4 4 8" if name == "celeba" else "4 4 4 8"
    words = {**TINY, "widths": widths, "epochs": 1, "batch": 8, "limit_batches": 1, "synthetic": 20}
    del words["size"]
    done = vae(name, *flags(**words), where=tmp_path)
    assert done.code == 0, done.err
    saved = engine.find_checkpoint(tmp_path / "runs" / "run").state
    keywords = saved["build"]["model"]["keywords"]
    assert (keywords["in_channels"], keywords["size"]) == shape
    assert saved["recipe"]["distance"] == "mmd" and saved["recipe"]["lr"] == 1e-3
    transform = saved["build"]["transform"]["keywords"]
    assert transform.get("crop") == (148 if name == "celeba" else None) and transform["hflip"] == 0


def test_dry_run_and_help(tmp_path):
    done = vae("digits", "--dry-run", *flags(**SMALL), where=tmp_path)
    assert done.code == 0 and "steps of an epoch of digits" in done.out and not list(tmp_path.iterdir())
    assert vae("mnist", "--help", where=tmp_path).shows(steps=16, batch=250, epochs=150, prefix="exact")


def test_a_published_file(tmp_path):
    """Converted, it is measured and starts a training."""
    keywords = {
        "name": "fsvae",
        "size": 16,
        "widths": (8, 16),
        "hidden": (32, 64),
        "latent": 16,
        "k": 5,
        "steps": 4,
    }
    model = models.create(**keywords)
    save_file(
        model.state_dict(), tmp_path / "x.safetensors", metadata={k: repr(v) for k, v in keywords.items()}
    )
    asked = [*ALONE, "--limit-batches", 1]
    done = vae("digits", "--eval", "--checkpoint", "x.safetensors", *asked, where=tmp_path)
    assert done.code == 0 and "From the checkpoint: size: 32, now 16" in done.err, done.err
    done = vae("digits", *flags(**TINY), "--lr", 0, "--init-from", "x.safetensors", where=tmp_path)
    assert done.code == 0, done.err
    saved = engine.find_checkpoint(tmp_path / "runs" / "run").model
    assert torch.equal(saved["final.weight"], model.final.weight)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["mnist"], 3, ["attsnn.data download mnist", "--synthetic N"]),
        (["mnist", "--data", "nowhere"], 3, ["nowhere"]),
        (["digits", "--size", "18"], 2, ["size must be a multiple of 16"]),
        (["digits", "--judge"], 2, ["--judge, --distance-by, --autoencoder", "are for --eval"]),
        (["digits", "--eval"], 2, ["--eval needs --checkpoint X"]),
        (["digits", "--sample", "4"], 2, ["--sample needs --checkpoint X"]),
        (["digits", "--scheduled", "1.5"], 2, ["--scheduled must be from 0 to 1"]),
        (["digits", "--eval", "--sample", "4"], 2, ["--sample and --eval are different commands"]),
        (["mnist", "--data", "x", "--synthetic", "20"], 2, ["--data and --synthetic are different images"]),
    ],
)
def test_mistakes_get_a_sentence(tmp_path, words, code, says):
    done = vae(*words, where=tmp_path)
    assert done.code == code and all(text in done.err for text in says), done.err
    assert "Traceback" not in done.err and not list(tmp_path.iterdir())
