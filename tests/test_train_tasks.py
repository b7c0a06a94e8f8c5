"""Every task of both papers as a user without data types it: trained, measured, stopped, loaded again."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_train_imagenet import BACKEND, TORCHRUN, rows
from trainers import TRAIN, flags, fresh, train

from attsnn import data, engine

pytestmark = pytest.mark.usefixtures("without_curves")

ROOT = TRAIN.parent
SMALL = {"synthetic": 16, "width": 0.125, "workers": 0, "threads": 1, "device": "cpu", "backend": BACKEND}
TWO_STEPS = {**SMALL, "epochs": 2, "batch": 8, "limit_batches": 1, "schedule_every": "step"}
RECORDING = {"steps": 5, "dt_ms": "None", "clips": 1, "window": "first"}  # of 300 ms


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A directory whose build/ keeps the synthetic sets."""
    return tmp_path_factory.mktemp("tasks")


EVENTS = ["gesture", "gesture_code", "gesture_pfa", "cifar10_dvs", "cifar10_dvs_pfa", "ncaltech101_pfa",
          "dvs_gait", "recordings"]  # fmt: skip
IMAGES = {"cifar": ["att_vgg", "pfa_static", "modern"], "fmnist": ["pfa", "baseline", "no_attention"]}
TASKS = [("dvs", recipe) for recipe in EVENTS] + [(s, recipe) for s in IMAGES for recipe in IMAGES[s]]


@pytest.mark.parametrize(("script", "recipe"), TASKS)
def test_every_task_trains_and_is_measured(drawn, script, recipe):
    """Two steps on sixteen samples in the set's own format; then --eval measures what the run's end did, and
    so does the network loaded from Python.
    """
    if script == "cifar":
        pytest.importorskip("torchvision", reason="extra vision: torchvision is not installed")
    small = {**TWO_STEPS, "steps": 2} if script != "dvs" else {**TWO_STEPS, **RECORDING}
    if recipe == "gesture_pfa":
        small["downsample"] = 4
    name = f"{script}-{recipe}"
    done = train(script, recipe, *flags(**small, name=name), where=drawn)
    assert done.code == 0, done.err
    run = drawn / "runs" / name
    *epochs, last = rows(run)
    chosen = "validation_accuracy" if script == "dvs" else "val_accuracy"
    assert [row["step"] for row in epochs] == [1, 2] and last["final"] and chosen in last
    assert not any(row.get("test_accuracy") for row in epochs) and 0 <= last["test_accuracy"] <= 1
    free = {k: v for k, v in SMALL.items() if k not in ("synthetic", "width")}
    again = train(script, recipe, "--eval", "--checkpoint", run, *flags(**free), where=drawn)
    assert again.code == 0, again.err
    assert f"{last['test_accuracy']:.2%}" in again.out and "width: 1.0, now 0.125" in again.err
    model, classes, transform = engine.load(run, backend="reference")
    assert not model.training and len(classes) == model.plan.classes
    if script == "dvs":
        events = data.make_events([0, 500, 900], [3, 4, 5], [7, 7, 8], [1, 0, 1])
        frames = transform(events)[:, None]
        assert frames.sum() == 3 and model(frames).shape == (1, len(classes))
    else:
        picture = Image.fromarray(np.full((40, 50, 3), 90, np.uint8))
        assert model(transform(picture)[None]).shape == (1, len(classes))


def test_two_processes_train_and_one_goes_on(drawn, tmp_path):
    """The same command with --resume auto, in one process, goes on where the two have ended."""
    small = flags(**TWO_STEPS, **RECORDING, name="two")
    words = ["cifar10_dvs", *small, "--runs-dir", tmp_path]
    command = [*TORCHRUN, "train/dvs.py", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("is the result") == 1 and [r["step"] for r in rows(tmp_path / "two")] == [
        1,
        2,
        1,
    ]
    saved = json.loads((tmp_path / "two" / "config.json").read_text())["recipe"]
    assert saved["batch"] == 8
    again = train("dvs", *words, "--resume", "auto", where=ROOT)
    assert again.code == 0 and "Resuming from" in again.out, again.err


@pytest.mark.parametrize(
    "words", [("fmnist", "pfa"), ("cifar", "modern"), ("dvs", "ncaltech101_pfa"), ("dvs", "gesture")]
)
def test_a_dry_run_needs_nothing_and_leaves_nothing(tmp_path, words):
    small = {k: v for k, v in SMALL.items() if k != "synthetic"}
    more = {"downsample": 4} if words[0] == "dvs" else {}
    done = train(*words, "--dry-run", *flags(**small, batch=2, steps=5, **more), where=tmp_path)
    assert done.code == 0, done.err
    assert re.search(r"parameters +[\d,]+\n", done.out) and re.search(r"steps of the run +[\d,]+", done.out)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        (("cifar", "textures", "--batch", "300", "--size", "8"), 6),  # 0.9 of 2,000
        (("cifar", "textures", "--batch", "300", "--size", "8", "--limit-batches", "4"), 4),
        (("fmnist", "digits", "--batch", "64", "--steps", "1"), 20),  # 0.9 of 1,439
        (("vae", "digits", "--batch", "64", "--steps", "1"), 20),
        (  # 0.9 of the published 1,176
            (
                "dvs",
                "gesture",
                "--batch",
                "16",
                "--steps",
                "1",
                "--temporal-ratio",
                "1",
                "--width",
                "0.125",
                "--downsample",
                "16",
            ),
            66,
        ),
        (
            (
                "imagenet",
                "ms_resnet",
                "--synthetic",
                "40",
                "--size",
                "32",
                "--width",
                "0.125",
                "--batch",
                "8",
            ),
            5,
        ),
    ],
)
def test_a_dry_run_counts_what_would_be_trained_on(tmp_path, words, steps):
    done = train(*words, "--dry-run", "--threads", "1", where=tmp_path)
    assert done.code == 0, done.err
    (found,) = re.findall(r"steps of an epoch of .* (\d+)\n", done.out)
    assert int(found) == steps


# ---- what a stranger met
# ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(drawn):
    """A run on digits at T = 3, of a narrow network."""
    small = {k: v for k, v in SMALL.items() if k != "synthetic"}
    words = flags(**small, epochs=2, batch=64, limit_batches=2, steps=3, name="digits")
    done = train("fmnist", "digits", *words, where=drawn)
    assert done.code == 0, done.err
    return drawn / "runs" / "digits"


def test_weights_bring_what_they_were_trained_with(trained, tmp_path):
    """--init-from takes the network and its input from there, says so, and keeps them when the run goes on;
    what the command line gives is not overwritten.
    """
    free = {"workers": 0, "threads": 1, "epochs": 2, "batch": 64, "limit_batches": 2, "name": "on"}
    words = ["fmnist", "digits", *flags(**free, init_from=trained)]
    done = train(*words, where=tmp_path)
    assert done.code == 0, done.err
    assert "steps: 4, now 3" in done.err and "width: 1.0, now 0.125" in done.err
    recipe = json.loads((tmp_path / "runs" / "on" / "config.json").read_text())["recipe"]
    assert (recipe["steps"], recipe["width"], recipe["channels"]) == (3, 0.125, 32)
    again = train(*words[:-1], "gone", "--resume", "auto", where=tmp_path)
    assert again.code == 0, again.err
    other = train(*words, "--name", "other", "--dropout", 0.6, where=tmp_path)
    assert other.code == 0, other.err
    assert json.loads((tmp_path / "runs" / "other" / "config.json").read_text())["recipe"]["dropout"] == 0.6


def test_pictures_of_a_folder_are_named_one_by_one(trained, tmp_path):
    for number in range(3):
        Image.fromarray(np.full((30, 20 + number), 40 * number, np.uint8)).save(tmp_path / f"p{number}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    words = ["fmnist", "digits", "--checkpoint", trained, "--predict"]
    found = train(*words, tmp_path, where=tmp_path)
    assert found.code == 0, found.err
    lines = [line.split() for line in found.out.splitlines()[2:]]
    assert [line[0] for line in lines] == ["p0.png", "p1.png", "p2.png"]
    assert all(line[1] in data.Digits("test").classes and line[2].endswith("%") for line in lines)
    one = train(*words, tmp_path / "p1.png", where=tmp_path)
    assert one.code == 0 and len(one.out.splitlines()) == 2 + 5, one.err
    assert one.out.splitlines()[2].split() == lines[1][1:]
    (tmp_path / "empty").mkdir()
    none = train(*words, tmp_path / "empty", where=tmp_path)
    assert none.code == 3 and "no picture here; wanted" in none.err and "Errno" not in none.err


def test_the_test_set_may_choose_and_says_so(drawn, tmp_path):
    """--choose-on-test trains on all; so does --validation-fraction 0, its former spelling."""
    for words in (["--choose-on-test"], ["--validation-fraction", "0"]):
        small = {**TWO_STEPS, "steps": 2, "name": words[0].strip("-"), "runs_dir": tmp_path}
        done = train("fmnist", "pfa", *words, *flags(**small), where=drawn)
        assert done.code == 0 and "chosen on the test set: this is no result" in done.out, done.err
        run = tmp_path / small["name"]
        assert "highest test_accuracy is the result" in done.out
        assert all("val_accuracy" not in row and row["test_accuracy"] is not None for row in rows(run))
        assert engine.find_checkpoint(run).state["data"]["train_images"] == 16
        said = train("fmnist", "pfa", "--eval", "--checkpoint", run, "--workers", 0, where=drawn)
        assert said.code == 0 and "chosen on the test set" in said.err


def test_the_size_of_frames_is_the_sensors(tmp_path):
    """Recordings of one's own of 24 x 40 pixels, and a split of their own."""
    rng = np.random.default_rng(0)

    def recording():
        t = np.sort(rng.integers(0, 300_000, 400))
        return t, rng.integers(0, 40, 400), rng.integers(0, 24, 400), rng.integers(0, 2, 400)

    clips = [(recording(), f"class{k % 3}", f"r{k}", split) for split in ("train", "test") for k in range(6)]
    data.write_store(tmp_path / "store", clips, classes=["class0", "class1", "class2"], sensor=(24, 40))
    small = {k: v for k, v in TWO_STEPS.items() if k not in ("synthetic", "batch")}
    given = {**small, **RECORDING, "data": tmp_path / "store", "downsample": 2, "batch": 3}
    for recipe in ("gesture", "recordings"):
        done = train("dvs", recipe, *flags(**given, name=recipe), where=tmp_path)
        assert done.code == 0, done.err
        model = engine.load(tmp_path / "runs" / recipe).model
        assert model(torch.zeros(5, 2, 2, 12, 20)).shape == (2, 3)
    odd = train("dvs", "gesture", *flags(**{**given, "downsample": 4}, name="odd"), where=tmp_path)
    assert odd.code == 2 and "got (6, 10); --downsample makes frames of another size" in odd.err


@pytest.mark.parametrize(
    ("script", "words", "says"),
    [
        ("fmnist", ["pfa", "--loss", "tet"], ["--loss tet", "pfa_fmnist ends in spikes"]),
        ("dvs", ["gesture", "--loss", "tet"], ["--loss tet", "ma_snn_dvs_gesture ends in spikes"]),
        ("dvs", ["cifar10_dvs_pfa", "--learn", "alpha"], ["pfa_vgg_cifar10_dvs has no --learn"]),
        ("cifar", ["att_vgg", "--rank", "4"], ["att_vgg11 has no keyword rank"]),
        (
            "fmnist",
            ["pfa", "--validation-fraction", "1"],
            ["--validation-fraction must be at least 0 and below 1"],
        ),
        ("fmnist", ["baseline", "--attention", "PFA"], ["fmnist_baseline has no keyword attention"]),
    ],
)
def test_what_a_task_does_not_have_is_refused(drawn, tmp_path, script, words, says):
    if script == "cifar":
        pytest.importorskip("torchvision", reason="extra vision: torchvision is not installed")
    small = {**TWO_STEPS, **(RECORDING if script == "dvs" else {}), "runs_dir": tmp_path}
    done = train(script, *words, *flags(**small), where=drawn)
    assert done.code == 2 and all(text in done.err for text in says), done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("script", "recipe"), [("dvs", "cifar10_dvs"), ("fmnist", "pfa"), ("cifar", "modern")]
)
def test_without_data_a_sentence_says_where_it_is(tmp_path, script, recipe):
    done = train(script, recipe, where=tmp_path)
    assert done.code == 3 and "--data is not given, nor --synthetic N; run `python -m attsnn.data" in done.err
    assert not list(tmp_path.iterdir())


def test_april_is_for_cifar_10_alone(tmp_path):
    """The loss of that revision: of rates, against the greater label."""
    cifar = fresh("cifar")
    r = cifar.RECIPES["att_vgg"][1]
    assert cifar.loss_of(r, 10) is None
    april = cifar.Recipe(parity=("april",))
    scores, shares = torch.rand(3, 10), torch.rand(3, 10)
    wanted = (scores - torch.nn.functional.one_hot(shares.argmax(1), 10)).square().mean()
    torch.testing.assert_close(cifar.loss_of(april, 10)(scores, shares), wanted)
    with pytest.raises(ValueError, match="of CIFAR-10; these images have 100 classes"):
        cifar.loss_of(april, 100)


def test_batches_are_mixed_in_the_first_epochs(monkeypatch):
    """--mix-until is a share of the epochs."""
    fresh("cifar")
    job = sys.modules["images"]
    monkeypatch.setattr(data, "mixes", lambda *_, **__: lambda images, labels: ("mixed", labels))
    mixing = job.Mixing(job.ImageTraining(epochs=5, mix_until=0.5), 10)
    seen = []
    for epoch in range(5):
        mixing.at(epoch)
        seen.append(mixing("as they are", None)[0])
    assert seen == ["mixed"] * 3 + ["as they are"] * 2


# ---- recipes, learning, results
# ------------------------------------------------------------------------------------------

WANTED = {
    ("dvs", "cifar10_dvs"): {
        "model": "ma_snn_cifar10_dvs", "dt_ms": 10, "steps": 20, "downsample": 1, "lr": 1e-3, "epochs":
        300, "batch": 128, "clips": 10, "window": "random", "schedule": "plateau", "loss": "mse",
        "channel_ratio": 8, "temporal_ratio": 2, "optimizer": "adam", "split_rule": "first900"
    },
    ("dvs", "dvs_gait"): {
        "model": "ma_snn_dvs_gait", "dt_ms": 500, "steps": 8, "downsample": 1, "lr": 1e-3, "epochs":
        100, "batch": 128, "clips": 1, "window": "first", "schedule": "plateau", "temporal_ratio": 2
    },
    ("dvs", "cifar10_dvs_pfa"): {
        "model": "pfa_vgg_cifar10_dvs", "dt_ms": None, "steps": 12, "rank": 8, "lr": 1e-4, "epochs":
        200, "batch": 32, "schedule": "step", "step_epochs": 30, "split_rule": "name_order", "augment":
        "pfa", "precision": "fp32", "optimizer": "adam", "loss": "mse", "attention": "PFA"
    },
    ("dvs", "ncaltech101_pfa"): {
        "model": "pfa_vgg_ncaltech101", "steps": 14, "rank": 64, "epochs": 500, "lr": 1e-4, "batch": 32,
        "augment": "pfa"
    },
    ("dvs", "gesture_pfa"): {
        "model": "pfa_vgg_dvs_gesture", "steps": 20, "rank": 32, "augment": None, "batch": 32
    },
    ("dvs", "gesture"): {
        "dt_ms": 15, "steps": 60, "attention": "TCSA", "lr": 1e-4, "epochs": 300, "batch": 128
    },
    ("cifar", "att_vgg"): {
        "model": "att_vgg11", "steps": 1, "epochs": 200, "batch": 64, "optimizer": "adamw", "lr": 1e-3,
        "weight_decay": 0, "augment": "trivial", "erasing": 0.1, "mixup": 0.2, "cutmix": 1.0,
        "label_smoothing": 0.1, "hflip": 0.5, "seed": 2023, "crop_scale": 0.08, "warmup_epochs": 0
    },
    ("cifar", "pfa_static"): {
        "model": "pfa_ms_resnet18", "steps": 4, "optimizer": "sgd", "lr": 0.1, "epochs": 250,
        "weight_decay": 5e-5, "batch": 64, "pad": 4, "hflip": 0.5, "cutmix": 1.0, "mixup": 0,
        "mix_probability": 0.5, "schedule": "cosine", "label_smoothing": 0
    },
    ("cifar", "modern"): {
        "optimizer": "adamw", "lr": 1.5e-3, "lr_end": 1e-5, "weight_decay": 0.06, "epochs": 400,
        "warmup_epochs": 20, "batch": 128, "augment": "randaugment", "mixup": 0.5, "cutmix": 0.5,
        "mix_until": 0.5, "erasing": 0.25, "label_smoothing": 0.1, "downsample": "max"
    },
    ("fmnist", "pfa"): {
        "model": "pfa_fmnist", "steps": 4, "lr": 1e-3, "epochs": 200, "batch": 128, "loss": "mse",
        "optimizer": "adam", "schedule": "cosine", "parity": ()
    },
}  # fmt: skip


@pytest.mark.parametrize(("script", "recipe"), WANTED)
def test_recipes(script, recipe):
    """attention_snn.md 4.1 and 4.3, pfa_fsvae.md 5; `pfa_static`, `modern`, `gesture_pfa` are our own."""
    found, wanted = fresh(script), WANTED[script, recipe]
    recipes = found.RECIPES if hasattr(found, "RECIPES") else found.TASK.recipes
    assert {name: getattr(recipes[recipe][1], name) for name in wanted} == wanted
    assert recipes[recipe][1].recipe == recipe


def test_the_published_rate_of_fashion_rises_again(monkeypatch, tmp_path):
    """Only with --parity: 0 at epoch 64, back at 128."""
    task = fresh("fmnist").TASK
    assert task.rising(task.recipes["pfa"][1]) == 64


def test_digits_are_learned(tmp_path):
    """A few of the recipe's epochs: most digits that it never saw."""
    done = train("fmnist", "digits", "--epochs", 4, "--threads", 1, "--workers", 0, where=tmp_path)
    assert done.code == 0, done.err
    last = rows(tmp_path / "runs" / "digits")[-1]
    assert last["final"] and last["test_accuracy"] > 0.8 and last["val_accuracy"] > 0.8


def test_textures_are_learned(tmp_path):
    words = {
        "synthetic": 320,
        "epochs": 2,
        "batch": 16,
        "steps": 1,
        "threads": 1,
        "workers": 0,
        "backend": BACKEND,
    }
    done = train("cifar", "textures", *flags(**words), where=tmp_path)
    assert done.code == 0, done.err
    assert rows(tmp_path / "runs" / "textures")[-1]["val_accuracy"] > 0.3


RESULTS = json.loads((ROOT / "docs" / "results.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("entry", RESULTS, ids=[entry["command"] for entry in RESULTS])
def test_every_command_of_the_results_is_one(entry, monkeypatch, capsys):
    """The real parser takes it; the network that it names has the parameters that the table says."""
    script, *words = entry["command"].removeprefix("train/").split()
    job, parsed = fresh(script.removesuffix(".py")), []
    where = sys.modules["images"] if hasattr(job, "TASK") else job
    monkeypatch.setattr(where, "command", lambda r, *_: parsed.append(r))
    assert job.main(words) == 0, capsys.readouterr().err
    (r,) = parsed
    r.check()
    classes = entry["classes"]
    if hasattr(job, "TASK"):
        model = where.network(r, job.TASK, classes, torch.device("meta"))
    else:
        (height, width), _, known = job.PUBLISHED[r.set]
        size = height // r.downsample, width // r.downsample
        model = job.network(r, classes or known, size, torch.device("meta"))
    assert sum(p.numel() for p in model.parameters()) == entry["parameters"]
    assert Path(ROOT, "train", script).exists() and entry["ours"]
