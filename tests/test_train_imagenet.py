"""train/imagenet.py as a user types it: on drawn images, in one process and under torchrun."""

import contextlib
import functools
import gc
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from trainers import TRAIN, Done, flags, train

from attsnn import _extension, engine, models
from attsnn.data.synthetic.textures import texture
from attsnn.engine import checkpoint, progress, sealed, stored

pytestmark = pytest.mark.usefixtures("without_curves")

SCRIPT = TRAIN / "imagenet.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
BACKEND = "reference" if _extension.compiled() is None else "fused"
SMALL = {"width": 0.125, "size": 32, "workers": 0, "threads": 1, "device": "cpu", "backend": BACKEND}
TINY = {**SMALL, "synthetic": 40, "batch": 8, "epochs": 2, "name": "run"}  # five steps an epoch


def imagenet(*words, where, change=None) -> Done:
    return train("imagenet", *words, where=where, change=change)


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def at_call(number: int, action):
    """Changes the job: before the loss is computed for the `number`-th time, from 1, something happens."""

    def change(images):
        make, calls = images.loss_of, []

        def loss_of(*arguments):
            loss = make(*arguments)

            def counted(*batch):
                calls.append(1)
                if len(calls) == number:
                    action()
                return loss(*batch)

            return counted

        images.loss_of = loss_of

    return change


def interrupt():
    os.kill(os.getpid(), signal.SIGTERM)


def same_state(a: Path, b: Path) -> None:
    """Weights, averaged weights, optimiser, position, scale and generators: equal to the bit."""
    a, b = checkpoint.read(a), checkpoint.read(b)
    for x, y in ((a.model, b.model), (a.ema or {}, b.ema or {})):
        assert x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)
    for x, y in zip(a.optimizer["state"].values(), b.optimizer["state"].values(), strict=True):
        assert x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)
    different = {"recipe"}
    assert {k: v for k, v in a.state.items() if k not in different} == {
        k: v for k, v in b.state.items() if k not in different
    }


# A run of two processes on images in folders.


def draw(root: Path, split: str, count: int, classes: int = 4) -> None:
    for label in range(classes):
        folder = root / split / f"class_{label}"
        folder.mkdir(parents=True)
        for number in range(count):
            image = texture(label, 40, np.random.default_rng([split == "val", label, number]))
            pixels = (255 * image.transpose(1, 2, 0)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.JPEG", quality=90)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Textures of four classes: 240 to train on, 60 to measure."""
    pytest.importorskip("torchvision", reason="extra vision")
    root = tmp_path_factory.mktemp("images")
    draw(root, "train", 60)
    draw(root, "val", 15)
    return root


LEARNING = {
    **SMALL, "batch": 20, "epochs": 6, "lr": 0.2, "warmup_epochs": 0, "precision": "fp32", "mixup": 0,
    "cutmix": 0, "ema": 0.8, "augment": None, "hflip": 0, "interpolation": "bilinear", "crop_scale": 0.2,
    "test_batch": 30, "name": "run",
}  # fmt: skip


@pytest.fixture(scope="module")
def learned(folders, tmp_path_factory):
    """(run directory, what it printed) of a training on two processes."""
    where = tmp_path_factory.mktemp("learned")
    process = launch("modern", *flags(data=folders, **LEARNING), where=where)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return where / "runs" / "run", out


def launch(*words, where: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [*TORCHRUN, SCRIPT, *map(str, words)],
        cwd=where, env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_two_processes_learn(learned):
    """Over 90 % of images that neither has seen, on the fused kernels."""
    run, out = learned
    found = rows(run)
    assert [row["epoch"] for row in found] == list(range(1, 7)) and found[-1]["step"] == 72
    best = engine.find_checkpoint(run)
    highest = max(row["ema_val_accuracy"] for row in found)
    assert highest > 0.9 and best.state["position"]["best"] == highest and best.ema is not None
    assert out.count("epoch 1/6") == 1 and "the highest ema_val_accuracy is the result" in out
    assert all(round(60 * row["ema_val_accuracy"], 9) % 1 == 0 for row in found)  # each of 60 counted once
    assert all(0 <= row["waiting_for_data"] <= 1 for row in found)
    assert json.loads((run / "exit.json").read_text()) == {"code": 0, "said": ""}
    assert len(best.state["rng"]) == 2


def test_eval_of_sizes_and_steps(learned, tmp_path):
    """A row of each; that of the training is the averaged weights' score of the best epoch."""
    run, _ = learned
    words = flags(**{**SMALL, "size": 224}, eval_sizes="32 64", eval_steps="1 2", test_batch=30)
    done = imagenet("--eval", "--checkpoint", run, *words, where=tmp_path)
    assert done.code == 0, done.err
    table = [line.split() for line in done.out.splitlines()]
    assert table[0] == ["size", "T", "top-1", "top-5", "images"]
    assert [line[:2] for line in table[2:]] == [["32", "1"], ["32", "2"], ["64", "1"], ["64", "2"]]
    best = max(row["ema_val_accuracy"] for row in rows(run))
    assert table[2][2:] == [f"{best:.2%}", "100.00%", "60"]
    assert not list(tmp_path.iterdir())


def test_eval_takes_the_data_that_is_given(learned, tmp_path):
    """Not the checkpoint's: here other images, of as many classes."""
    draw(tmp_path / "other", "val", 3)
    words = flags(**SMALL, eval_sizes=32, data=tmp_path / "other", test_batch=30)
    done = imagenet("--eval", "--checkpoint", learned[0], *words, where=tmp_path)
    assert done.code == 0 and done.out.split()[-1] == "12", done.err


def test_eval_refuses_the_data_of_other_classes(learned, tmp_path):
    """Names, not numbers of classes, say whether labels mean the same; a class without images is none."""
    other, words = tmp_path / "other", ["--eval", "--checkpoint", learned[0], *flags(**SMALL)]
    draw(other, "val", 3)
    for label in range(4):
        (other / "val" / f"class_{label}").rename(other / "val" / f"kind_{label}")
    done = imagenet(*words, *flags(data=other), where=tmp_path)
    assert done.code == 3 and "found class folder 'kind_0'" in done.err, done.err
    done = imagenet(*words, *flags(synthetic=40), where=tmp_path)
    assert done.code == 3 and "--synthetic draws 10 classes of textures" in done.err, done.err
    draw(tmp_path / "part", "val", 3)
    for number in range(3):
        (tmp_path / "part" / "val" / "class_0" / f"{number}.JPEG").unlink()
    (tmp_path / "part" / "val" / "class_0").rmdir()
    with pytest.warns(UserWarning, match="no images of 1 classes, e.g. class_0"):
        done = imagenet(*words, *flags(data=tmp_path / "part", test_batch=9), where=tmp_path)
    table = done.out.splitlines()
    assert done.code == 0 and table[2].split()[0] == "32" and float(table[2].split()[2].rstrip("%")) > 60


def test_a_run_that_starts_from_weights_goes_on_without_them(tmp_path):
    """Moved or gone; of a published file, converted, a run can start too."""
    model = models.create("att_ms_resnet18", width=0.125, num_classes=10)
    keywords = {"name": "att_ms_resnet18", "attention": "CSA"}
    metadata = {name: repr(value) for name, value in keywords.items()}
    save_file(model.state_dict(), tmp_path / "ours.safetensors", metadata=metadata)
    words = flags(**TINY, init_from="ours.safetensors", lr=0)
    assert imagenet(*words, where=tmp_path, change=at_call(7, interrupt)).code == 143
    (tmp_path / "ours.safetensors").unlink()
    done = imagenet(*words, "--resume", "auto", where=tmp_path)
    assert done.code == 0, done.err
    weights = checkpoint.read_last(tmp_path / "runs" / "run").model
    assert torch.equal(weights["classifier.weight"], model.classifier.weight)
    assert "runs/run is done: its highest val_accuracy is " in done.out
    assert "the checkpoint that --checkpoint runs/run means." in done.out
    (tmp_path / "other.safetensors").write_bytes(b"none")
    done = imagenet("--eval", "--checkpoint", "other.safetensors", *flags(**SMALL), where=tmp_path)
    assert done.code == 2 and "not a file that this module wrote" in done.err, done.err


def test_other_images_are_no_resumption(folders, tmp_path):
    """Refused, in exit.json too, where the stop before it stood."""
    for name in ("train", "val"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for folder in (folders / name).iterdir():
            (tmp_path / "images" / name / folder.name).symlink_to(folder)
    given = {name: value for name, value in TINY.items() if name != "synthetic"}
    words = flags(**given, data=tmp_path / "images", limit_batches=3)
    assert imagenet(*words, where=tmp_path, change=at_call(4, interrupt)).code == 143
    (tmp_path / "images" / "train" / "class_3").unlink()
    (tmp_path / "images" / "val" / "class_3").unlink()
    done = imagenet(*words, "--resume", "auto", where=tmp_path)
    assert done.code == 2 and "train_images: 240, now 180" in done.err and "classes: " in done.err
    ended = json.loads((tmp_path / "runs" / "run" / "exit.json").read_text())
    assert ended == {"code": 2, "said": done.err.strip()}


def test_images_of_equal_names_and_number_are_no_resumption_either(folders, tmp_path):
    """Nor is a checkpoint refused for what it does not know of its data."""
    images = tmp_path / "images"
    shutil.copytree(folders, images)
    given = {name: value for name, value in TINY.items() if name != "synthetic"}
    words = flags(**given, data=images, limit_batches=3)
    assert imagenet(*words, where=tmp_path, change=at_call(4, interrupt)).code == 143
    picture = next((images / "train").glob("*/*"))
    content = picture.read_bytes()
    picture.write_bytes(content + b"\0")
    done = imagenet(*words, "--resume", "auto", where=tmp_path)
    assert done.code == 2 and "cannot be resumed with other data; these differ:\n  identity: " in done.err, (
        done.err
    )
    picture.write_bytes(content)
    images.rename(tmp_path / "moved")
    for run in (tmp_path / "runs" / "run").glob("ckpt-*"):
        state, manifest = (json.loads((run / name).read_text()) for name in ("state.json", "manifest.json"))
        del state["data"]["identity"]
        (run / "state.json").write_text(json.dumps(state))
        manifest["files"]["state.json"] = stored.digest((run / "state.json").read_bytes())
        (run / "manifest.json").write_bytes(sealed.seal(manifest))
    done = imagenet(*words, "--resume", "auto", "--data", tmp_path / "moved", where=tmp_path)
    assert done.code == 0 and "Falling back" not in done.out, done.err


def test_a_run_without_a_checkpoint_leaves_its_name(tmp_path):
    """Ended before it had one: what is mended may start again, by the same name."""

    def fail():
        raise engine.RunError("gone")

    words = flags(**TINY)
    assert imagenet(*words, where=tmp_path, change=at_call(2, fail)).code == 1
    assert json.loads((tmp_path / "runs" / "run" / "exit.json").read_text()) == {"code": 1, "said": "gone"}
    done = imagenet(*words, "--lr", 0.05, where=tmp_path)
    assert done.code == 0, done.err
    config = json.loads((tmp_path / "runs" / "run" / "config.json").read_text())
    assert config["recipe"]["lr"] == 0.05 and "resumed" not in config


def test_ctrl_c_says_that_it_was_heard(tmp_path, capfd):
    """At once, and what a second one would do."""
    twice = []

    def press():
        if not twice:
            os.kill(os.getpid(), signal.SIGINT)
            twice.append(capfd.readouterr().err)

    done = imagenet(*flags(**TINY), where=tmp_path, change=at_call(3, press))
    assert done.code == 130 and "Once more stops at once and saves nothing" in twice[0]
    assert checkpoint.read_last(tmp_path / "runs" / "run").state["position"]["step"] == 3


def test_predict(learned, folders, tmp_path):
    picture = folders / "val" / "class_2" / "3.JPEG"
    words = ["--checkpoint", learned[0], *flags(**{**SMALL, "size": 224})]  # as large as it was trained
    done = imagenet("--predict", picture, *words, where=tmp_path)
    assert done.code == 0, done.err
    table = [line.split() for line in done.out.splitlines()]
    assert len(table) == 2 + 4 and table[2][0] == "class_2"
    shares = [float(line[1].rstrip("%")) for line in table[2:]]
    assert shares == sorted(shares, reverse=True) and abs(sum(shares) - 100) < 0.3
    (tmp_path / "broken.jpg").write_bytes(picture.read_bytes()[:300])
    for name, says in (("broken.jpg", "cannot be decoded"), ("none.jpg", "no such file")):
        done = imagenet("--predict", name, *words, where=tmp_path)
        assert done.code == 3 and name in done.err and says in done.err and "Traceback" not in done.err


def test_fine_tuning_with_more_steps(learned, folders, tmp_path):
    """From T = 1 to T = 4: a run starts with the averaged weights; at rate 0 it keeps them."""
    words = {**LEARNING, "epochs": 1, "warmup_epochs": 0, "lr": 0, "weight_decay": 0, "limit_batches": 1}
    start = flags(data=folders, **words, steps=4, init_from=learned[0])
    done = imagenet("modern", *start, where=tmp_path)
    assert done.code == 0, done.err
    source, found = engine.find_checkpoint(learned[0]), engine.find_checkpoint(tmp_path / "runs" / "run")
    names = [name for name in found.model if "running" not in name and "tracked" not in name]
    assert len(names) > 50 and found.state["recipe"]["steps"] == 4
    for name in names:
        assert torch.equal(found.model[name], source.ema[f"module.{name}"])
    wrong = imagenet("modern", *flags(**{**TINY, "name": "other"}, init_from=learned[0]), where=tmp_path)
    assert wrong.code == 5 and "classifier.weight" in wrong.err and "Traceback" not in wrong.err


# Two processes, interrupted.

INTERRUPTED = {**TINY, "epochs": 3, "save_minutes": 0, "test_batch": 8}


def wait_for(step: int, run: Path, process: subprocess.Popen) -> None:
    """Until `last` names a checkpoint of that step or a later one."""
    while (last := checkpoint.pointed(run, "last")) is None or checkpoint._step(last) < (step,):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def descendants(pid: int) -> dict[int, int]:
    """{process: parent} of all below."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found = {pid: 0}
    while new := {p: parent for p, parent in parents.items() if parent in found and p not in found}:
        found |= new
    return {p: parent for p, parent in found.items() if p != pid}


def test_sigterm_and_kill_of_two_processes(tmp_path):
    """SIGTERM to torchrun, then kill -9 of a process, then the rest: the bits of an uninterrupted run."""
    run, words = tmp_path / "runs" / "run", flags(**INTERRUPTED)
    process = launch(*words, where=tmp_path)
    wait_for(2, run, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    ended = json.loads((run / "exit.json").read_text())
    stopped = engine.checkpoint.read_last(run).state["position"]["step"]
    assert process.returncode == 1 and ended["code"] == 143, err
    assert f"after step {stopped}; saved runs/run/ckpt-{stopped}" in ended["said"] and stopped < 12
    assert err.count(ended["said"]) == 2 and not (run / "exit-rank1.json").exists()  # both at this step

    process = launch(*words, "--resume", "auto", "--workers", 1, where=tmp_path)
    wait_for(stopped + 2, run, process)
    assert not (run / "exit.json").exists()
    family = descendants(process.pid)
    ranks = sorted(pid for pid, parent in family.items() if parent == process.pid)
    assert len(ranks) == 2 and len(family) >= 4  # and those that load images
    named, began = checkpoint.pointed(run, "last"), time.monotonic()
    os.kill(ranks[1], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    while any(Path(f"/proc/{pid}").exists() for pid in family):
        assert time.monotonic() - began < 15, family
        time.sleep(0.05)
    assert process.returncode == 1 and re.search("Process . of 2 lost another one", err), err
    assert checkpoint._step(engine.checkpoint.read_last(run).path) >= checkpoint._step(named)

    for name, more in (("run", ["--resume", "auto"]), ("whole", [])):
        process = launch(*flags(**{**INTERRUPTED, "name": name}), *more, where=tmp_path)
        assert process.wait(timeout=120) == 0, process.communicate()
        process.communicate()
    whole = tmp_path / "runs" / "whole"
    same_state(checkpoint.pointed(run, "last"), checkpoint.pointed(whole, "last"))
    timed = {"seconds", "samples_per_second", "waiting_for_data"}
    assert [{k: v for k, v in row.items() if k not in timed} for row in rows(run)] == [
        {k: v for k, v in row.items() if k not in timed} for row in rows(whole)
    ]


# One process.

EVERYTHING = {
    **TINY, "precision": "fp16", "ema": 0.9, "clip": 0.5, "accumulate": 2, "mixup": 0.2, "cutmix": 1.0,
    "warmup_epochs": 1, "schedule_every": "step",
}  # fmt: skip


@pytest.mark.parametrize("step", [3, 5])
def test_everything_resumes_to_the_bit(tmp_path, step):
    """Scale, averaged weights, mixing and warm-up, stopped within and at the end of an epoch."""
    pytest.importorskip("torchvision", reason="extra vision")
    words = {**EVERYTHING, "synthetic": 41}
    whole = imagenet(*flags(**{**words, "name": "whole"}), "--no-decay-all", where=tmp_path)
    assert whole.code == 0, whole.err
    calls = 2 * step  # of two pieces each
    stopped = imagenet(*flags(**words), "--no-decay-all", where=tmp_path, change=at_call(calls, interrupt))
    assert stopped.code == 143 and f"after step {step}; saved runs/run/ckpt-{step}" in stopped.err
    done = imagenet(*flags(**words), "--no-decay-all", "--resume", "auto", where=tmp_path)
    assert done.code == 0 and "Resuming from" in done.out, done.err
    runs = tmp_path / "runs"
    same_state(checkpoint.pointed(runs / "run", "last"), checkpoint.pointed(runs / "whole", "last"))
    saved = checkpoint.read_last(runs / "run")
    assert saved.state["scaler"]["scale"] >= 1 and saved.ema["n_averaged"] == 10


@pytest.mark.parametrize(
    ("words", "seen"),
    [
        ({"precision": "bf16", "membrane_float32": True}, {"step": 10}),
        ({"precision": "fp16"}, {"step": 10}),
        ({"optimizer": "adamw", "lr": 0.001, "channels_last": "yes"}, {"step": 10}),
        ({"limit_batches": 2}, {"step": 4}),
        ({"attention": "CA", "steps": 2, "accumulate": 3, "clip": 0.1}, {"step": 10}),
        ({"model": "ms_resnet18", "ema": 0.5}, {"step": 10}),
    ],
)
def test_options_train(tmp_path, words, seen):
    """Every loss is finite, and the options are in the checkpoint."""
    done = imagenet(*flags(**{**TINY, **words}), where=tmp_path)
    assert done.code == 0, done.err
    found = rows(tmp_path / "runs" / "run")
    assert found[-1]["step"] == seen["step"] and len(found) == 2
    assert all(math.isfinite(row["train_loss"]) and math.isfinite(row["val_loss"]) for row in found)
    assert ("ema_val_accuracy" in found[0]) == ("ema" in words)
    saved = engine.find_checkpoint(tmp_path / "runs" / "run").state
    assert all(saved["recipe"][name] == value for name, value in words.items())
    assert ("scaler" in saved) == (words.get("precision") == "fp16")


def test_a_first_update_that_overflows_is_no_warning(tmp_path, recwarn, monkeypatch):
    """On any processor: the gradient of the scores, some 2^24 / 8, is cast to 16 bits, which end at 65504."""
    scale = 2.0**24
    monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(torch.amp.GradScaler, init_scale=scale))
    done = imagenet(*flags(**{**TINY, "precision": "fp16"}), where=tmp_path)
    assert done.code == 0, done.err
    assert engine.find_checkpoint(tmp_path / "runs" / "run").state["scaler"]["scale"] < scale
    assert not [str(w.message) for w in recwarn if "lr_scheduler" in str(w.message)]


def test_evaluation_of_the_averaged_weights(tmp_path):
    """--eval measures what is averaged: here unlike the weights, which were overwritten."""
    words = {**TINY, "synthetic": 100, "ema": 0.9}
    done = imagenet(*flags(**words), where=tmp_path)
    assert done.code == 0, done.err
    saved = engine.find_checkpoint(tmp_path / "runs" / "run")
    assert any(not torch.equal(saved.model[k], saved.ema[f"module.{k}"]) for k in saved.model)
    seen = {}

    def change(images):
        load = images.engine.load_weights
        images.engine = type("Engine", (), {**vars(engine), "load_weights": None})
        images.engine.load_weights = staticmethod(
            lambda model, weights, source: seen.update(weights) or load(model, weights, source)
        )

    again = imagenet(
        "--eval", "--checkpoint", saved.path, *flags(**SMALL, eval_sizes=32), where=tmp_path, change=change
    )
    assert again.code == 0, again.err
    assert seen.keys() == saved.model.keys()
    assert all(torch.equal(value, saved.ema[f"module.{name}"]) for name, value in seen.items())


def test_compile(tmp_path, monkeypatch):
    """--compile hands the model to torch.compile, and its steps and evaluation go through what that returns
    (here the model itself; compiled kernels: tests/test_ms_resnet.py).
    """
    calls = []

    def stand_in(function, **_):
        return lambda *arguments: calls.append(torch.is_grad_enabled()) or function(*arguments)

    plain = imagenet(*flags(**TINY), where=tmp_path)
    assert plain.code == 0 and not calls, plain.err
    monkeypatch.setattr(torch, "compile", stand_in)
    done = imagenet(*flags(**{**TINY, "name": "compiled"}, compile=True), where=tmp_path)
    assert done.code == 0 and calls == 2 * [*5 * [True], False], done.err
    runs = [checkpoint.read_last(tmp_path / "runs" / name) for name in ("run", "compiled")]
    assert all(torch.equal(runs[0].model[k], runs[1].model[k]) for k in runs[0].model)


def rates(where: Path, **words) -> list[float]:
    done = imagenet(*flags(**{**TINY, "limit_batches": 2, **words}), where=where)
    assert done.code == 0, done.err
    return [row["lr"] for row in rows(where / "runs" / words["name"])]


def test_the_rate_falls_to_zero_and_rises_only_with_parity(tmp_path):
    """Recorded is the rate that epoch e was trained with: (1 + cos(pi e / period)) / 2 of the highest."""
    falls = rates(tmp_path, name="falls", epochs=5, lr=0.4)
    wanted = [0.2 * (1 + math.cos(math.pi * epoch / 5)) for epoch in range(1, 6)]
    assert falls == pytest.approx(wanted, abs=1e-12) and falls[-1] == 0
    rises = rates(tmp_path, name="rises", epochs=5, lr=0.4, parity="rising_schedule")
    assert rises == pytest.approx([0, 0.4, 0, 0.4, 0], abs=1e-12)
    assert rates(tmp_path, name="short", epochs=2, lr=0.4, parity="rising_schedule")


def test_dry_run_needs_nothing_and_leaves_nothing(tmp_path):
    """Two steps of training: norms take the batch's statistics."""
    training = []

    def change(images):
        make = images.forward
        images.forward = lambda r, model, x: training.append(model.training) or make(r, model, x)

    words = ["att_res_snn", "--dry-run", *flags(**SMALL, batch=8)]
    done = imagenet(*words, where=tmp_path, change=change)
    assert done.code == 0 and training == [True, True], done.err
    table = dict(re.split(r"\s{2,}", line) for line in done.out.splitlines()[2:])
    assert table["images of a step, in one process"] == "8"
    assert table["steps of an epoch of ImageNet"] == f"{1281167 // 8:,}"
    assert table["steps of the run"] == f"{250 * (1281167 // 8):,}"
    assert re.fullmatch(r"\d+\.\d\d s: \d+\.\d images/s", table["its time"])
    assert not list(tmp_path.iterdir())


def test_progress_says_how_long_it_waited(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0)
    done = imagenet(*flags(**TINY), where=tmp_path)
    lines = [line for line in done.out.splitlines() if "data wait" in line]
    within = [line for line in lines if re.search(r"\d+/40 .* samples/s .* loss .* data wait \d+%$", line)]
    behind = [line for line in lines if re.search(r"epoch \d/2 .* samples/s  data wait \d+% ", line)]
    assert len(within) == 2 * 4 and len(behind) == 2 and len(lines) == 10  # no line after the last batch


def test_bad_images_are_replaced_counted_and_too_many_end_it(folders, tmp_path):
    root = tmp_path / "images"
    for split, label, number in [(s, c, k) for s in ("train", "val") for c in range(4) for k in range(8)]:
        folder = root / split / f"class_{label}"
        folder.mkdir(parents=True, exist_ok=True)
        source = folders / split / f"class_{label}" / f"{number}.JPEG"
        (folder / source.name).write_bytes(source.read_bytes())
    for path, content in (("train/class_0/1.JPEG", b""), ("train/class_1/2.JPEG", b"<html>404</html>")):
        (root / path).write_bytes(content)
    gone = root / "val" / "class_3" / "0.JPEG"
    gone.unlink()
    gone.symlink_to("nowhere")
    words = {**LEARNING, "batch": 8, "epochs": 2, "data": root}
    done = imagenet("modern", *flags(**words), where=tmp_path)
    assert done.code == 0, done.err
    said = [line for line in done.err.splitlines() if line.startswith("bad image")]
    assert [line.split(":")[0] for line in said] == [f"bad image {i} (at most 100)" for i in (1, 2, 3)]
    assert [row["step"] for row in rows(tmp_path / "runs" / "run")] == [4, 8]
    accuracy = rows(tmp_path / "runs" / "run")[-1]["val_accuracy"]
    assert round(31 * accuracy, 9) % 1 == 0  # of 32 images, one is left out
    few = imagenet("modern", *flags(**{**words, "name": "few"}, max_bad=1), where=tmp_path)
    assert few.code == 3 and "found 2 bad images, more than the 1 allowed" in few.err
    assert "Traceback" not in few.err
    assert json.loads((tmp_path / "runs" / "few" / "exit.json").read_text())["code"] == 3


def test_not_finite_ends_with_4(tmp_path):
    def change(images):
        make = images.loss_of

        def loss_of(*arguments):
            loss, calls = make(*arguments), []

            def spoilt(*batch):
                calls.append(1)
                value, metrics = loss(*batch)
                return value * (math.nan if len(calls) == 7 else 1), metrics

            return spoilt

        images.loss_of = loss_of

    done = imagenet(*flags(**TINY), where=tmp_path, change=change)
    assert done.code == 4 and "before the update of step 7 (epoch 2, batch 2)" in done.err
    assert "ckpt-5" in done.err and "Traceback" not in done.err
    assert engine.checkpoint.read_last(tmp_path / "runs" / "run").state["position"]["step"] == 5


def test_exit_codes_are_those_of_the_docs(tmp_path):
    """Each of its table, also in exit.json where the run has a directory."""

    def fail():
        raise engine.RunError("gone")

    def poison():
        for weight in (p for p in gc.get_objects() if isinstance(p, torch.nn.Parameter)):
            weight.data.fill_(math.nan)

    def press():
        signal.raise_signal(signal.SIGINT)

    def run(code, *more, change=None):
        words = {**TINY, "name": f"ends-{code}", "limit_batches": 1, "schedule_every": "step"}
        words |= {"synthetic": None, "data": tmp_path / "nowhere"} if code == 3 else {}
        done = imagenet(*flags(**words), *more, where=tmp_path, change=change)
        left = tmp_path / "runs" / f"ends-{code}" / "exit.json"
        assert done.code == 2 or not left.exists() or json.loads(left.read_text())["code"] == done.code
        assert "Traceback" not in done.err
        return done.code

    def usage():
        return run(0)  # that run again

    def damaged():
        assert run(5) == 0
        for folder in (tmp_path / "runs" / "ends-5").glob("ckpt-*"):
            (folder / "model.safetensors").write_bytes(b"")
        return run(5, "--resume", "auto")

    acts = {
        0: lambda: run(0),
        1: lambda: run(1, change=at_call(1, fail)),
        2: usage,
        3: lambda: run(3),
        4: lambda: run(4, change=at_call(1, poison)),
        5: damaged,
        130: lambda: run(130, change=at_call(1, press)),
        143: lambda: run(143, change=at_call(1, interrupt)),
    }
    page = (SCRIPT.parent.parent / "docs" / "training.md").read_text()
    table = [int(code) for code in re.findall(r"^\| (\d+) \| ", page, re.MULTILINE)]
    assert table == [*acts] and {code: act() for code, act in acts.items()} == {code: code for code in acts}


def test_names_of_runs(tmp_path):
    words = flags(**{**TINY, "limit_batches": 1, "epochs": 1, "schedule_every": "step"})
    assert imagenet(*words, where=tmp_path).code == 0
    again = imagenet(*words, where=tmp_path)
    assert again.code == 2 and "--resume auto" in again.err
    other = imagenet(*words, "--resume", "auto", "--lr", 0.5, where=tmp_path)
    assert other.code == 2 and "lr: 0.1, now 0.5" in other.err
    free = flags(workers=1, test_batch=7, accumulate=2)
    assert imagenet(*words, "--resume", "auto", *free, where=tmp_path).code == 0
    unnamed = flags(
        **{
            k: v
            for k, v in {**TINY, "limit_batches": 1, "epochs": 1, "schedule_every": "step"}.items()
            if k != "name"
        }
    )
    for name in ("att_res_snn", "att_res_snn-2"):
        assert imagenet(*unnamed, where=tmp_path).code == 0
        assert (tmp_path / "runs" / name / "last").exists()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 3, ["--data", "--synthetic"]),
        (["--data", "nowhere"], 3, ["nowhere", "no such folder"]),
        (["--synthetic", "40", "--batch", "100"], 2, ["no whole batch of 100"]),
        (["--synthetic", "40", "--batch", "8", "--size", "40"], 2, ["multiples of 32"]),
        (["--dry-run", "--size", "40"], 2, ["multiples of 32"]),
        (["--synthetic", "40", "--batch", "8", "--epochs", "1"], 2, ["rate of 0", "--schedule-every step"]),
        (["--synthetic", "40", "--data", "x"], 2, ["--data and --synthetic"]),
        (["--synthetic", "40", "--checkpoint", "x"], 2, ["--init-from"]),
        (["--synthetic", "40", "--eval", "--dry-run"], 2, ["--eval and --dry-run"]),
        (["--synthetic", "40", "--clip", "-1"], 2, ["--clip must be above 0, got -1"]),
        (["--synthetic", "40", "--accumulate", "0"], 2, ["--accumulate must be at least 1, got 0"]),
        (["--synthetic", "40", "--ema", "nan"], 2, ["--ema must be at least 0 and below 1"]),
        (["--eval", "--checkpoint", "x", "--eval-sizes", "64", "0"], 2, ["--eval-sizes must be at least 1"]),
        (["--synthetic", "40", "--resume", "runs/a", "--name", "b"], 2, ["leave --name out"]),
        (["--atention", "CA"], 2, ["--attention"]),
        (["--model", "resnet18"], 2, ["ms_resnet18"]),
        (["--eval"], 2, ["--eval needs --checkpoint"]),
        (["--eval", "--checkpoint", "nothing"], 2, ["nothing", "neither"]),
        (["--predict", "a.jpg"], 2, ["--predict needs --checkpoint"]),
        (["--synthetic", "40", "--batch", "8", "--resume", "nothing"], 2, ["nothing"]),
        (["--synthetic", "40", "--batch", "8", "--init-from", "nothing"], 2, ["nothing"]),
        (["--synthetic", "40", "--batch", "8", "--max-bad", "-1"], 2, ["at least 0"]),
    ],
)
def test_mistakes_get_a_sentence(tmp_path, words, code, says):
    given = {k: v for k, v in SMALL.items() if f"--{k}" not in words}
    done = imagenet(*words, *flags(**given), where=tmp_path)
    assert done.code == code, done.err
    assert all(text in done.err + done.out for text in says), done.err
    assert "Traceback" not in done.err and not (tmp_path / "runs").exists()


def test_help_shows_the_defaults(tmp_path):
    for recipe, values in {
        "att_res_snn": {"epochs": 250, "weight_decay": 1e-05, "hflip": 0.0},
        "ms_resnet": {"steps": 6, "epochs": 125, "batch": 256},
        "modern": {"ema": 0.9999, "clip": 5.0, "precision": "bf16"},
    }.items():
        assert imagenet(recipe, "--help", where=tmp_path).shows(**values), recipe


def test_weight_decay_spares_vectors_and_gates():
    """Of modern: no norm, bias or gate decays, every convolution and the classifier do."""
    model = models.create("att_ms_resnet18", num_classes=5, width=0.125, backend=BACKEND)
    decays, spared = engine.decayed(model, 0.1, ("attention",))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert decays["weight_decay"] == 0.1 and spared["weight_decay"] == 0
    found = {names[id(parameter)] for parameter in decays["params"]}
    weights = re.compile(r"(current(\.\d+)?|classifier)\.weight$")
    assert found == set(filter(weights.search, names.values()))
    others = {names[id(parameter)] for parameter in spared["params"]}
    assert found | others == set(names.values()) and not found & others
    assert {"norm", "attention"} <= {part for name in others for part in name.split(".")}
