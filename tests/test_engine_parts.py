"""The parts of the engine by themselves: order and seeds, random states, scores, pictures, exit codes."""

import ctypes
import itertools
import json
import os
import random
import subprocess
import sys
import time
import types
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from test_engine import Recordings
from torch import nn

from attsnn import engine
from attsnn.engine import pictures, progress, rng, sampling
from attsnn.engine.config import difference
from attsnn.engine.progress import duration


@pytest.mark.parametrize("variable", [None, "MALLOC_TOP_PAD_"])
def test_freed_memory_is_kept(variable):
    """Of twenty tensors of 64 MiB, one after another, few come with page faults (an aligned one does not fit
    where another was, until neighbours are free together); what the environment says stands.
    """
    program = """
import resource, torch
from attsnn import engine
from attsnn.engine.memory import keep_memory

with engine.processes("cpu", 1):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**24)
    print(keep_memory(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    environment |= {variable: "0"} if variable else {}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    kept, found = done.stdout.split()
    if variable or not hasattr(ctypes.CDLL(None), "mallopt"):
        assert kept == "False"
    else:
        assert kept == "True" and int(found) < 10 * 2**14  # 4 KiB each


def test_order_and_seeds_are_pure_functions():
    assert sorted(sampling.order(100, 5, 2)) == list(range(100))
    assert sampling.order(6, 0, 0).tolist() == [2, 4, 5, 3, 1, 0]  # for every NumPy, on every machine
    assert np.array_equal(sampling.order(100, 5, 2), sampling.order(100, 5, 2))
    orders = {tuple(sampling.order(50, seed, epoch)) for seed in range(4) for epoch in range(5)}
    assert len(orders) == 20
    seeds = {
        s for seed in range(4) for epoch in range(5) for s in sampling.sample_seeds(50, seed, epoch).tolist()
    }
    assert len(seeds) == 1000 and min(seeds) >= 0
    assert np.array_equal(sampling.sample_seeds(9, 1, 1), sampling.sample_seeds(20, 1, 1)[:9])
    places = np.stack([sampling.order(10, 0, epoch) for epoch in range(2000)])
    assert abs(places.mean(0) - 4.5).max() < 0.3  # five standard errors


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_start_anywhere(workers):
    batches = engine.Batches(
        Recordings(20), 6, 1, key=lambda i, s: (i, s), indices=np.arange(3, 20), workers=workers
    )
    whole = list(batches.epoch(4))
    assert len(batches) == len(whole) == 3
    assert sorted(i for share, _ in whole for i in share.indices) == list(range(3, 20))
    for (share, batch), (again, same) in zip(whole[1:], batches.epoch(4, 1), strict=True):
        assert share == again and torch.equal(batch[0], same[0])
    assert list(batches.epoch(4, 3)) == []
    assert [share for share, _ in batches.epoch(5)] != [share for share, _ in whole]


@pytest.mark.parametrize("world", range(1, 9))
@pytest.mark.parametrize("drop_last", [False, True])
def test_processes_share_every_batch(world, drop_last):
    """Together they have the batches of one process, whatever their number; a short last one unequally."""
    make = partial(engine.Batches, Recordings(60), 16, 1, key=lambda i, s: (i, s), drop_last=drop_last)
    whole = [share.indices for share, _ in make().epoch(3)]
    assert [len(indices) for indices in whole] == [16, 16, 16, 12][: 3 if drop_last else 4]
    shares = [[share for share, _ in make(rank=rank, world=world).epoch(3)] for rank in range(world)]
    for b, indices in enumerate(whole):
        assert sorted(i for own in shares for i in own[b].indices) == sorted(indices)
        assert {own[b].total for own in shares} == {len(indices)} and all(own[b].indices for own in shares)


def test_epochs_can_be_frozen_and_limited():
    make = partial(engine.Batches, Recordings(20), 6, 1, key=lambda i, s: (i, s))
    frozen = make(frozen_order=True)
    shares = [[share for share, _ in batches.epoch(e)] for batches, e in ((frozen, 5), (make(), 0))]
    assert shares[0] == shares[1]
    limited = make(limit=2)
    assert len(limited) == 2 and limited.size == 12 and len(list(limited.epoch(0))) == 2
    assert make().size == 20 and make(drop_last=True).size == 18
    with pytest.raises(ValueError, match="leave one of 3 processes without any"):
        make(world=3)
    with pytest.raises(ValueError, match="Batches of 6 of 20 samples, at most 0 an epoch: all must be at le"):
        make(limit=0)
    with pytest.raises(ValueError, match="make no whole batch of 30"):
        engine.Batches(Recordings(20), 30, 1, key=lambda i, s: (i, s), drop_last=True)


def test_loading_leaves_the_generators_alone():
    batches = engine.Batches(Recordings(20), 6, 1, key=lambda i, s: (i, s), workers=2)
    before = torch.get_rng_state()
    list(batches.epoch(0))
    assert torch.equal(before, torch.get_rng_state())


def test_split():
    train_set, held = engine.split(100, 0.15, 0)
    assert len(held) == 15 and sorted([*train_set, *held]) == list(range(100))
    assert len(engine.split(100, 0, 0)[1]) == 0
    for count, fraction in ((10, 0.01), (10, 1.0), (10, -0.1)):
        with pytest.raises(ValueError, match="validation fraction"):
            engine.split(count, fraction, 0)


def test_rng_states_survive_json():
    engine.seed_all(3)
    np.random.randn(), random.gauss(0, 1)
    state = json.loads(json.dumps(rng.capture()))
    draw = lambda: (random.gauss(0, 1), np.random.randn(), torch.rand(3).tolist())  # noqa: E731
    first = draw()
    rng.restore(state)
    assert draw() == first
    rng.restore(state)
    with rng.kept():
        draw()
    assert draw() == first


def test_difference():
    old, new = {"a": 1, "b": [1, 2], "gone": None}, {"a": 1, "b": [1], "fresh": "x"}
    assert difference(old, new) == [
        "b: [1, 2], now [1]",
        "gone: null, now not a field",
        'fresh: not a field, now "x"',
    ]
    assert difference(old, new, {"b", "gone", "fresh"}) == []


def test_scores_vote_and_rates(monkeypatch):
    """More than half of the windows, or no class; the rate is the share of neurons and steps that emit."""

    class Echo(nn.Module):
        def __init__(self):
            super().__init__()
            self.anchor = nn.Parameter(torch.zeros(()))

        def forward(self, x):  # [T, N, 3]
            return x.mean(0) + self.anchor

    def windows(*classes):
        return torch.eye(3)[list(classes)][:, None].repeat(1, 5, 1)  # [W, T, 3]

    recordings = [
        (windows(0, 0, 1, 2), 0),
        (windows(0, 0, 0, 1), 0),
        (windows(1, 1, 1, 1), 2),
        (windows(2, 2, 2, 0), 2),
    ]

    class Observe:
        def __init__(self, model):
            self.hook = model.register_forward_hook(lambda m, a, out: self.seen.update(echo=a[0]))

        def __enter__(self):
            self.seen = {}
            return self.seen

        def __exit__(self, *_):
            self.hook.remove()

    ticks = itertools.count()  # a second from look to look
    clock = types.SimpleNamespace(perf_counter=lambda: next(ticks))
    monkeypatch.setattr(engine.classify, "time", clock)
    scores = engine.evaluate(Echo(), engine.in_order(recordings, 3), 3, Observe)
    assert scores.confusion.tolist() == [[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0]]
    assert scores.accuracy == 0.5 and scores.rates == {"echo": pytest.approx(1 / 3)}
    assert scores.loss == pytest.approx(8 / 16 * 2 / 3)
    lines = scores.per_class(["zero", "one", "two"]).splitlines()
    assert lines[2].split() == ["zero", "2", "1", "50.00%"] and lines[3].split() == ["one", "0", "0", "-"]
    assert lines[-1].split() == ["all", "4", "2", "50.00%"]
    assert scores.seconds_per_window == 2 / 16
    summary = engine.summary(scores, Echo())
    assert "firing rate of echo" in summary
    assert summary.splitlines()[-1].split() == ["time", "per", "sample", "125.00", "ms"]


def test_pictures(tmp_path):
    pytest.importorskip("matplotlib", reason="extra plot")
    rows = [
        {"epoch": e, **{f"{w}_{m}": 0.5 / e for w in ("train", "test") for m in ("loss", "accuracy")}}
        for e in (1, 2)
    ]
    layers = {"conv": torch.rand(20, 8, 6, 6).round(), "out": torch.rand(20, 5).round()}
    paths = [
        *pictures.curves(tmp_path / "a.png", rows),
        *pictures.confusion(tmp_path / "b.png", torch.randint(0, 9, (5, 6)), list("abcde")),
        *pictures.recording(tmp_path / "c.png", torch.rand(20, 2, 16, 16), layers, step_ms=5, title="t"),
    ]
    assert [path.read_bytes()[:4] for path in paths] == [b"\x89PNG"] * 3


@pytest.mark.parametrize(
    ("measured", "chosen"),
    [
        ({"test": (0.5, 0.7)}, 2),
        ({"test": None, "validation": (0.8, 0.7)}, 1),
        ({"val": (0.8, 0.7)}, 1),
        ({"val": (0.8, 0.7), "ema_val": (0.1, 0.2)}, 2),
        ({"test": None}, None),
    ],
)
def test_curves_of_whatever_was_measured(measured, chosen):
    """Classification's and ImageNet's names alike; chosen is by the averaged weights where there are some."""
    figure = pytest.importorskip("matplotlib.figure", reason="extra plot").Figure()
    rows = [{"epoch": e + 1, "train_loss": 1.0, "train_accuracy": 0.9, "seconds": 3.0} for e in range(2)]
    for name, values in measured.items():
        for e, row in enumerate(rows):
            row |= {f"{name}_{what}": values and values[e] for what in ("loss", "accuracy")}
    pictures._curves.__wrapped__(figure, rows)
    shown = ["train", *(name for name, values in measured.items() if values)]
    for axes, mark in zip(figure.axes, ([], [f"chosen: epoch {chosen}"] if chosen else []), strict=True):
        assert [line.get_label() for line in axes.get_lines()] == shown + mark


def test_curves_of_what_makes_images():
    """Error and distance; the lowest error is chosen."""
    figure = pytest.importorskip("matplotlib.figure", reason="extra plot").Figure()
    rows = [
        {
            "epoch": e + 1,
            "train_loss": 3.0,
            "train_error": 2.0,
            "val_loss": 4.0,
            "val_error": error,
            "val_distance": 0.1,
        }
        for e, error in enumerate((0.5, 0.2, 0.3))
    ]
    pictures._curves.__wrapped__(figure, rows)
    left, right = figure.axes
    assert (left.get_ylabel(), right.get_ylabel()) == ("error", "distance")
    assert [line.get_label() for line in left.get_lines()] == ["train", "val"]
    assert list(left.get_lines()[1].get_ydata()) == [0.5, 0.2, 0.3]
    assert [line.get_label() for line in right.get_lines()] == ["val", "chosen: epoch 2"]


def test_a_grid_of_images(tmp_path):
    """Gaps around each, rows of other lengths and sizes, grey beside colour, values beyond the range cut."""
    rows = [torch.full((2, 1, 3, 4), 2.0), torch.full((1, 3, 2, 2), -1.0)]
    assert pictures.grid(tmp_path / "a.png", rows, gap=1, scale=1, fill=0.0) == [tmp_path / "a.png"]
    image = Image.open(tmp_path / "a.png")
    found = torch.from_numpy(np.array(image))[..., 0].long()
    wanted = torch.full((8, 11), 128)
    wanted[1:4, 1:5] = wanted[1:4, 6:10] = 255
    wanted[5:7, 1:3] = 0
    assert torch.equal(found, wanted)


def test_without_matplotlib(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    pictures._matplotlib.cache_clear()
    rows = [{"epoch": 1, "test_loss": 1.0, "test_accuracy": 0.5}]
    assert pictures.curves(tmp_path / "a.png", rows) == pictures.curves(tmp_path / "a.png", rows) == []
    pictures._matplotlib.cache_clear()
    assert capsys.readouterr().out.count("pip install matplotlib") == 1


def test_command_exit_codes(capsys):
    class TaskError(ValueError):
        pass

    def codes(error):
        def main():
            raise error

        return engine.command(main, {TaskError: 3})

    assert [codes(e) for e in (engine.RunError("a"), engine.UsageError("b"), TaskError("c"))] == [
        1,
        2,
        3,
    ]
    assert [codes(e) for e in (engine.NonFiniteError("d"), engine.CheckpointError("e"), TaskError("f"))] == [
        4,
        5,
        3,
    ]
    assert [codes(e) for e in (engine.StoppedError(15), KeyboardInterrupt(), OSError("g"))] == [143, 130, 1]
    worker = TaskError(
        "Caught Task in DataLoader worker process 0.\nOriginal Traceback (most):\n  x\nTask: bad byte: 7"
    )
    assert codes(worker) == 3 and capsys.readouterr().err.splitlines()[-1] == "bad byte: 7"
    assert engine.command(lambda: None) == 0
    with pytest.raises(ZeroDivisionError):
        codes(ZeroDivisionError())
    with pytest.raises(engine.UsageError, match="wrong"), engine.usage():
        raise ValueError("wrong")
    with pytest.raises(TaskError), engine.usage():
        raise TaskError("data")


def test_durations():
    assert [duration(s) for s in (42.4, 185, 7620)] == ["42 s", "3 min 05 s", "2 h 07 min"]


def test_bar_on_a_terminal_and_lines_when_piped(capfd, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0)
    for terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        with progress.Progress("epoch 1/2", 20) as bar:
            for _ in range(2):
                time.sleep(0.15)
                bar.update(10, {"loss": 0.25, "accuracy": 0.5})
        captured = capfd.readouterr()
        if terminal:
            assert "samples/s" in captured.err and "loss=0.2500" in captured.err and not captured.out
        else:
            assert captured.out.count("\n") == 1 and "samples/s" in captured.out and "left" in captured.out
            assert "loss 0.2500  accuracy 0.5000" in captured.out and not captured.err


class Counting(nn.Module):
    """Scores that change with time, from a state: the class is known from the step that the input names."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def run(self, x, state=None):  # x [1, N, 2]: the class, and the step from which on it shows
        state = torch.zeros(x.shape[1]) if state is None else state
        state = state + 1
        shows = (state >= x[0, :, 1])[:, None]
        return (torch.nn.functional.one_hot(x[0, :, 0].long(), 3) * shows)[None].float(), state


def test_accuracy_after_each_step():
    """Of windows that vote; one whose scores are all equal has no vote yet."""

    def recording(label, *steps):  # a window each, of four steps
        return torch.tensor([[[label, step]] * 4 for step in steps]).float(), label

    recordings = [recording(0, 1), recording(2, 2), recording(1, 3), recording(1, 9)]
    found = engine.evaluate_by_step(Counting(), engine.in_order(recordings, 3), 3)
    assert found.accuracy == [0.25, 0.5, 0.75, 0.75] and found.recordings == 4 and found.known == 3
    assert found.seconds_per_step > 0
    assert "from step 3 of 4 on, 45 ms" in found.summary(15) and "75.00%" in found.summary(None)
    voting = [recording(0, 1, 2, 3), recording(1, 2, 2, 9)]
    assert engine.evaluate_by_step(Counting(), engine.in_order(voting, 2), 3).accuracy == [0.0, 1.0, 1.0, 1.0]
    assert engine.OverTime([0.5, 0.9, 0.2, 1.0], 1, 0.0).known == 4
    assert engine.OverTime([0.0, 0.0], 1, 0.0).known == 1
    limited = engine.evaluate_by_step(Counting(), engine.in_order(recordings, 1), 3, limit=1)
    assert limited.accuracy == [1.0] * 4 and limited.recordings == 1
