"""train/dvs.py as a user types it, on a small store of the embedded recordings."""

import errno
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from trainers import TRAIN, Done, flags, fresh, train

from attsnn import data, engine, models
from attsnn.data import Draw, DVSGesture
from attsnn.data.datasets import dvs_gesture
from attsnn.data.synthetic import samples
from attsnn.engine import pictures, rows

SCRIPT = TRAIN / "dvs.py"
TINY = {
    "steps": 5, "dt-ms": 60, "downsample": 16, "channels": "8 8 8", "hidden": 8, "epochs": 2, "batch": 16,
    "clips": 2, "lr": 0.01, "shift": 1, "validation-fraction": 0.2, "workers": 0, "device": "cpu",
    "backend": "reference",
}  # fmt: skip


def dvs(*words, where) -> Done:
    return train("dvs", *words, where=where)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Sixty digits, six of each class, in the layout of DVS128 Gesture."""
    directory = tmp_path_factory.mktemp("store")
    labels = samples.digits()[1]
    indices = [i for digit in range(10) for i in (labels == digit).nonzero()[0][:6]]
    raw = samples.write_recordings(directory / "raw", indices=indices)
    return dvs_gesture.prepare(raw, directory / "prepared", progress=False)


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    """A run of two epochs, and what it printed."""
    where = tmp_path_factory.mktemp("work")
    done = dvs("gesture", "--data", store, *flags(**TINY), where=where)
    assert done.code == 0, done.err
    return where / "runs" / "gesture", done.out


def test_a_run_and_its_directory(trained):
    run, out = trained
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows[:2]] == [1, 2]
    for row in rows[:2]:  # the test set is measured once, at the end
        assert row["test_accuracy"] is None and 0 <= row["validation_accuracy"] <= 1 and row["train_loss"] > 0
    assert (
        len(rows) == 3
        and rows[2]["final"]
        and 0 <= rows[2]["test_accuracy"] <= 1
        and rows[2]["test_loss"] > 0
    )
    assert rows[2]["epoch"] == max(rows[:2], key=lambda row: row["validation_accuracy"])["epoch"]
    config = json.loads((run / "config.json").read_text())
    assert config["recipe"]["channels"] == [8, 8, 8] and config["recipe"]["attention"] == "TCSA"
    assert {"last", "best", "metrics.csv"} <= {path.name for path in run.iterdir()}
    assert "highest validation accuracy" in out and "epoch 2/2" in out


def test_held_out_recordings_are_measured_and_never_trained_on(store, tmp_path, monkeypatch):
    """In each epoch every other recording of the training set once, and none of the test set; of DVS128
    Gesture whole persons are held out, here a fifth of eight.
    """
    loaded, load = {}, DVSGesture.__getitem__

    def loading(self, key):
        index = key.index if isinstance(key, Draw) else key
        loaded.setdefault((len(self), self.window), []).append(int(index))
        return load(self, key)

    monkeypatch.setattr(DVSGesture, "__getitem__", loading)
    monkeypatch.setattr(engine, "conclude", lambda *_, **__: None)
    monkeypatch.setattr(engine.Run, "record", lambda *_: None)
    done = dvs("gesture", "--data", store, *flags(**TINY), where=tmp_path)
    assert done.code == 0, done.err
    assert loaded.keys() == {(48, "random"), (48, "clips")}
    trained, held = loaded[48, "random"], set(loaded[48, "clips"])
    assert sorted([*trained, *2 * [*held]]) == sorted(2 * [*range(48)])
    people = DVSGesture(store, "train").people
    assert len({*people[[*held]]}) == round(0.2 * 8) and len(held) == len(loaded[48, "clips"]) / 2
    assert not {*people[[*held]]} & {*people[trained]}


def test_shifted_recordings():
    """Every offset of both axes is drawn, by the key alone; what comes in is empty."""
    frames = 1 + torch.rand(3, 2, 6, 7)
    shifted = fresh("dvs").Shifted({Draw(5, seed): (frames.numpy(), 4) for seed in range(300)}, 2)
    rolled = {}
    for y, x in itertools.product(range(-2, 3), repeat=2):
        rows, columns = (torch.arange(n) - by for n, by in ((6, y), (7, x)))  # where they come from
        inside = ((rows >= 0) & (rows < 6))[:, None] & ((columns >= 0) & (columns < 7))
        rolled[y, x] = frames.roll((y, x), (2, 3)) * inside
    seen = set()
    for key in shifted.recordings:
        moved, label = shifted[key]
        assert label == 4 and torch.equal(moved, shifted[key][0])
        seen |= {by for by, whole in rolled.items() if torch.equal(whole, moved)} or {None}
    assert seen == rolled.keys()


def test_the_end_shows_what_was_learned(trained):
    run, out = trained
    for words in (
        "accuracy",
        "firing rate of features.0",
        "firing rate of classifier.1",
        "parameters",
        "time per sample",
    ):
        assert words in out
    assert "seven" in out and "recordings" in out
    pytest.importorskip("matplotlib", reason="extra plot")
    for name in ("curves", "confusion", "recording"):
        assert f"picture: {Path('runs/gesture') / name}.png" in out
        assert (run / f"{name}.png").read_bytes().startswith(b"\x89PNG")


ENDS = {
    "SIGTERM": lambda: signal.raise_signal(signal.SIGTERM),
    "SIGINT": lambda: signal.raise_signal(signal.SIGINT),
    "data": lambda: raised(data.DataFormatError("recording 7 is damaged")),
    "disc": lambda: raised(OSError(errno.ENOSPC, "No space left on device")),
}


@pytest.mark.parametrize(
    ("end", "moment", "code"),
    [
        ("SIGTERM", "final test", 143),
        ("SIGTERM", "record", 143),
        ("SIGINT", "pictures", 130),
        ("data", "final test", 3),
        ("data", "pictures", 3),
        ("disc", "final test", 1),  # no file of the run
        ("disc", "record", 5),
        ("disc", "pictures", 5),
    ],
)
def test_what_ends_the_final_measurement_is_how_the_command_ended(
    trained, store, tmp_path, monkeypatch, end, moment, code
):
    """exit.json said 0 of such runs; the same command with --resume auto measures and draws again."""
    end = ENDS[end]
    shutil.copytree(trained[0].parent, tmp_path / "runs")
    write = rows.write
    words = ["gesture", "--data", store, *flags(**TINY), "--resume", "auto"]
    places = {
        "final test": (sys.modules["attsnn.engine.report"], "evaluate", lambda *_, **__: end()),
        "record": (rows, "write", lambda run, found: end() if found[-1].get("final") else write(run, found)),
        "pictures": (pictures, "confusion", lambda *_, **__: end()),
    }
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(*places[moment])
            done = dvs(*words, where=tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    run = tmp_path / "runs" / "gesture"
    assert done.code == code and "Traceback" not in done.err, done.err
    assert json.loads((run / "exit.json").read_text())["code"] == code
    assert dvs(*words, where=tmp_path).code == 0
    assert json.loads((run / "exit.json").read_text())["code"] == 0


def raised(error: Exception):
    raise error


def test_resume_and_refusals(trained, store):
    run, _ = trained
    where = run.parent.parent
    words = ["gesture", "--data", store, *flags(**TINY)]
    again = dvs(*words, "--resume", "auto", where=where)
    assert again.code == 0 and "Resuming from runs/gesture/ckpt-" in again.out, again.err
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3
    other = dvs(*words, "--resume", "auto", "--lr", 0.5, where=where)
    assert other.code == 2 and "lr: 0.01, now 0.5" in other.err and "Traceback" not in other.err
    taken = dvs(*words, "--name", "gesture", where=where)
    assert taken.code == 2 and "--name" in taken.err and "--resume auto" in taken.err


def test_eval_takes_the_network_from_the_checkpoint(trained, store):
    run, out = trained
    done = dvs(
        "gesture",
        "--data",
        store,
        "--eval",
        "--checkpoint",
        run,
        "--workers",
        0,
        "--device",
        "cpu",
        where=run,
    )
    assert done.code == 0, done.err
    table = done.out[done.out.index("class") :].split("\n\n")[0]
    assert table.splitlines()[2].split()[:1] == ["zero"] and "all" in table.splitlines()[-1]
    assert table in out  # the same numbers as at the end of the training
    assert not (run / "runs").exists()


def test_how_soon_a_gesture_is_known(trained, store, tmp_path):
    """--eval --stream: step by step, in the end what --eval says; with a picture."""
    words = ["gesture", "--data", store, "--workers", 0, "--device", "cpu"]
    few = {**TINY, "epochs": 1, "attention": "None", "limit-batches": 2}
    assert dvs("gesture", "--data", store, *flags(**few), where=tmp_path).code == 0
    words += ["--eval", "--checkpoint", "runs/gesture", "--limit-batches", 8]
    whole, streamed = dvs(*words, where=tmp_path), dvs(*words, "--stream", where=tmp_path)
    assert streamed.code == 0, streamed.err
    table, last = streamed.out[streamed.out.index("step") :].split("\n\n")
    rows = [line.split() for line in table.splitlines()[2:]]
    assert [row[:2] for row in rows] == [[str(t), f"{60 * t}"] for t in range(1, 6)]
    assert f"\naccuracy  {rows[-1][2]}" in re.sub(" {2,}", "  ", whole.out)
    assert "95% of the last accuracy" in last and "ms a step and sample" in last
    assert "picture: over_time.png" in last and (tmp_path / "over_time.png").stat().st_size > 5000
    for wrong, sentence in (
        ([*words[:-4], "--stream", "--checkpoint", trained[0]], "attention (Attention) weighs"),
        (["gesture", "--data", store, "--stream"], "--stream is for --eval"),
    ):
        done = dvs(*wrong, where=tmp_path)
        assert done.code == 2 and sentence in done.err and "Traceback" not in done.err, done.err


def published(path: Path) -> Path:
    """A file as the released code writes it: legacy pickle, `module.` and its names."""
    model = models.create(
        "ma_snn_dvs_gesture", attention="TCSA", steps=5, channels=(8, 8, 8), hidden=8, num_classes=10, size=8
    )
    names = {
        "features.": "convAttLIF", "classifier.": "FC", ".spatial.conv": ".sa.conv",
        ".norm.": ".BNLayer.",
        ".temporal.reduce": ".ta.sharedMLP.0", ".temporal.expand": ".ta.sharedMLP.2",
        ".channel.reduce": ".ca.sharedMLP.0", ".channel.expand": ".ca.sharedMLP.2",
    }  # fmt: skip
    state = {}
    for key, value in model.state_dict().items():
        if ".reduce" in key or ".expand" in key:
            value = value[..., None] if key.startswith("classifier") else value[..., None, None, None]
        for ours, theirs in {**names, ".current": ".linear" if "classifier" in key else ".conv2d"}.items():
            key = key.replace(ours, theirs)
        state[f"module.{key}"] = value
    contents = {"net": state, "acc": 0.5, "epoch": 3, "acc_record": [0.1, 0.5]}
    torch.save(contents, path, _use_new_zipfile_serialization=False)
    return path


def test_eval_of_a_published_file(store, tmp_path):
    file = published(tmp_path / "TCSA_SNN(CNN)-DVS-Gesture_dt=60ms_T=5.t7")
    asked = {"dt-ms": 60, "downsample": 16, "clips": 2, "workers": 0, "device": "cpu", "backend": "reference"}
    words = ["gesture", "--data", store, "--eval", "--checkpoint", file, *flags(**asked)]
    hinted = dvs(*words, where=tmp_path)
    assert hinted.code == 0 and "--axes xy" in hinted.out and "zero" in hinted.out, hinted.err
    done = dvs(*words, "--axes", "xy", where=tmp_path)
    assert done.code == 0 and "--axes xy" not in done.out, done.err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (
            ["gesture"],
            3,
            ["https://research.ibm.com/interactive/dvsgesture/", "attsnn.data prepare dvs_gesture"],
        ),
        (["gesture", "--data", "nowhere"], 3, ["nowhere", "attsnn.data prepare dvs_gesture"]),
        (["gesture", "--atention", "TA"], 2, ["--attention"]),
        (["gesture", "--attention", "TTA"], 2, ["TCSA"]),
        ([], 2, ["gesture_code"]),
        (["gesture", "--data", "STORE", "--eval"], 2, ["--checkpoint"]),
        (["gesture", "--data", "STORE", "--eval", "--checkpoint", "nothing"], 2, ["nothing", "neither"]),
        (["gesture", "--data", "STORE", "--steps", "3"], 2, ["3"]),
        (["gesture", "--data", "STORE", "--validation-fraction", "1.5"], 2, ["1.5"]),
        (["gesture", "--data", "STORE", "--resume", "nothing"], 2, ["nothing"]),
    ],
)
def test_mistakes_get_a_sentence(store, tmp_path, words, code, says):
    done = dvs(*[store if word == "STORE" else word for word in words], where=tmp_path)
    assert done.code == code, done.err
    assert all(text in done.err for text in says), done.err
    assert "Traceback" not in done.err


def test_help_shows_the_defaults(tmp_path):
    of_the_paper = dvs("gesture", "--help", where=tmp_path)
    assert of_the_paper.shows(dt_ms=15, steps=60, attention="TCSA", lr=0.0001)
    assert dvs("gesture_code", "--help", where=tmp_path).shows(dt_ms=25, schedule="plateau")


def test_as_a_process(store, tmp_path):
    """Exit code and streams of a real process; Ctrl-C and SIGTERM: tests/test_engine.py."""
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent)}
    words = [sys.executable, SCRIPT, "gesture", "--data", store, "--steps", "3"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "3" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
