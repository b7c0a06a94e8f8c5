"""The loop: the same bits after a stop, no update from a bad gradient, what a run leaves in its directory."""

import csv
import json
import math
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import traceback
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from attsnn import engine, models
from attsnn.engine import sampling

pytestmark = pytest.mark.usefixtures("without_curves")

STEPS_AN_EPOCH = 9
RECIPE = {"lr": 0.01, "epochs": 2, "workers": 0}


class Recordings(Dataset):
    """Long noisy signals of four classes; the key draws the window, then the augmentation."""

    def __init__(self, count: int = 70, windows: int = 0) -> None:
        self.signals = torch.randn(count, 30, 6, generator=torch.Generator().manual_seed(1))
        self.labels, self.windows = (torch.arange(count) * 7) % 4, windows
        self.signals[torch.arange(count), :, self.labels] += 1.0

    def __len__(self) -> int:
        return len(self.signals)

    def __getitem__(self, key):
        if self.windows:
            return self.signals[key].unfold(0, 8, 5).movedim(-1, 1)[: self.windows], self.labels[key]
        index, seed = key
        draw = torch.Generator().manual_seed(seed)
        start = torch.randint(0, 23, (1,), generator=draw).item()
        noise = 0.1 * torch.randn(8, 6, generator=draw)
        return self.signals[index, start : start + 8] + noise, self.labels[index]


class Net(nn.Module):
    """[T, N, 6] -> [N, 4], with dropout and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.norm, self.out = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x):
        return self.out(self.dropout(torch.relu(self.norm(self.hidden(x.mean(0))))))


def open_run(path: Path, resume: str | None = None, **changes) -> engine.Run:
    return engine.Run.open(path.parent, path.name, {**RECIPE, **changes}, resume=resume, free={"workers"})


def train(
    path,
    *,
    resume=None,
    loss=engine.one_hot_mse,
    workers=0,
    schedule="onecycle",
    epochs=2,
    model=None,
    **rules,
):
    """A run of two epochs of nine steps; returns its model and Run."""
    engine.seed_all(0)
    model = model or Net()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    batches = engine.Batches(Recordings(), 8, 3, key=lambda i, s: (i, s), workers=workers)
    measure = engine.Measure("test", engine.in_order(Recordings(40, windows=3), 16), "abcd")
    run = open_run(path, resume, epochs=epochs)
    plan = engine.schedule(schedule, optimizer, epochs * len(batches))
    task = {"loss": loss, "evaluate": measure, "choose": "test_accuracy"}
    engine.fit(model, optimizer, plan, batches, **task, run=run, epochs=epochs, **rules)
    return model, run


def stopping_at(step: int, number: int = signal.SIGTERM):
    """A loss during whose `step`-th call (from 1) a signal arrives."""
    calls = 0

    def loss(model, batch):
        nonlocal calls
        calls += 1
        if calls == step:
            os.kill(os.getpid(), number)
        return engine.one_hot_mse(model, batch)

    return loss


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    torch.use_deterministic_algorithms(True)
    return train(tmp_path_factory.mktemp("runs") / "whole")


@pytest.mark.parametrize("step", [1, 7, STEPS_AN_EPOCH, STEPS_AN_EPOCH + 4])
def test_resumed_is_bit_equal(tmp_path, uninterrupted, step):
    """Random windows, augmentation, dropout, two workers; stopped in, and at the end of, an epoch."""
    whole, whole_run = uninterrupted
    with pytest.raises(engine.StoppedError, match=f"after step {step}; .*--resume auto") as stopped:
        train(tmp_path / "run", loss=stopping_at(step), workers=2)
    assert stopped.value.code == 143
    # Ends the loading processes. The garbage collector would close their queues first, and then torch waits
    # 5 s for each of them.
    traceback.clear_frames(stopped.tb)
    torch.rand(5), random.random(), np.random.rand()
    model, run = train(tmp_path / "run", resume="auto", workers=2)
    assert equal(whole, model)
    kept = ("epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "lr")
    assert [[row[k] for k in kept] for row in run.rows()] == [
        [row[k] for k in kept] for row in whole_run.rows()
    ]


def test_plateau_resumes(tmp_path):
    whole, _ = train(tmp_path / "whole", schedule="plateau")
    with pytest.raises(engine.StoppedError):
        train(tmp_path / "run", schedule="plateau", loss=stopping_at(4))
    assert equal(whole, train(tmp_path / "run", schedule="plateau", resume="auto")[0])


def test_signal_during_the_evaluation(tmp_path, uninterrupted, monkeypatch):
    """The evaluation is given up and done again after resuming."""
    with monkeypatch.context() as patch:
        patch.setattr(
            engine.Measure, "__call__", lambda *_: (torch.rand(3), os.kill(os.getpid(), signal.SIGINT))
        )
        with pytest.raises(engine.StoppedError) as stopped:
            train(tmp_path / "run")
    assert stopped.value.code == 130
    assert equal(uninterrupted[0], train(tmp_path / "run", resume="auto")[0])


def test_a_finished_run_resumes_to_itself(tmp_path):
    model, run = train(tmp_path / "run")
    again, rerun = train(tmp_path / "run", resume="auto")
    assert equal(model, again) and len(run.rows()) == len(rerun.rows()) == 2


def test_other_weights_do_not_fit(tmp_path):
    train(tmp_path / "run", epochs=1)
    small = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    with pytest.raises(engine.CheckpointError, match="does not fit"):
        train(tmp_path / "run", epochs=1, resume="auto", model=small)


def spiking(backend: str = "reference", emit: str = "spike") -> nn.Module:
    """A small MA-SNN for the recordings, through `frames`."""
    sizes = {"steps": 8, "size": 4, "num_classes": 4, "width": 0.125}
    return models.create("ma_snn_dvs_gesture", emit=emit, backend=backend, **sizes)


def frames(batch):  # signals [T, N, 6] -> [T, N, 2, 4, 4]
    signals, labels = batch
    return signals.repeat(1, 1, 6)[..., :32].unflatten(2, (2, 4, 4)), labels


def poisoned(model: nn.Module, what: str):
    """(loss, notes) of a run whose step 6 goes wrong: in that parameter, or in the loss itself."""
    parameters, seen, calls = dict(model.named_parameters()), {}, 0

    def loss(model, batch):
        nonlocal calls
        calls += 1
        if calls == 6 and what in parameters:
            with torch.no_grad():
                parameters[what].view(-1)[3] = math.nan
        value, metrics = engine.one_hot_mse(model, frames(batch))
        if calls == 6:
            seen["weights"] = {k: v.clone() for k, v in model.state_dict().items()}
            value = value * {"loss nan": math.nan, "loss inf": math.inf}.get(what, 1)
            seen["loss"] = value.item()
        return value, metrics

    return loss, seen


@pytest.mark.parametrize(
    ("what", "emit", "loss_is_finite"),
    [
        ("features.0.current.weight", "spike", True),  # NaN is no spike: the gradient alone shows it
        ("features.1.attention.temporal.reduce.weight", "spike", True),
        ("classifier.1.current.bias", "spike", True),
        ("features.0.current.weight", "membrane", False),
        ("loss nan", "spike", False),
        ("loss inf", "spike", False),
    ],
)
def test_not_finite_stops_before_the_update(tmp_path, backend, what, emit, loss_is_finite):
    model = spiking(backend, emit)
    loss, seen = poisoned(model, what)
    with pytest.raises(engine.NonFiniteError) as caught:
        train(tmp_path / "run", loss=loss, model=model)
    assert math.isfinite(seen["loss"]) == loss_is_finite
    indices = sampling.order(70, 3, 0)[40:48].tolist()
    text = str(caught.value)
    assert caught.value.code == 4 and "step 6 (epoch 1, batch 6)" in text
    assert re.search("the gradient norm (nan|inf)", text)
    assert ", ".join(map(str, indices)) in text and "There is no checkpoint yet." in text
    for name, value in model.state_dict().items():
        assert torch.equal(value.nan_to_num(7), seen["weights"][name].nan_to_num(7)), name


def test_one_read_a_step(monkeypatch):
    """The host waits for the device once a step."""
    reads = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: reads.append("tolist") or tolist(self))
    for name in ("item", "__bool__", "__float__", "numpy", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, name=name: pytest.fail(name))
    model = spiking()
    loss = lambda model, batch: engine.one_hot_mse(model, frames(batch))  # noqa: E731
    state = engine.loop.Fit(model, torch.optim.SGD(model.parameters(), 0.1), None, loss, None)
    state.schedule = type("Constant", (), {"step": lambda self: None})()
    state.step(sampling.Share([0, 1], 2), (torch.zeros(2, 8, 6), torch.tensor([0, 1])))
    assert reads == ["tolist"]


def test_checkpoints_are_due_after_minutes(monkeypatch):
    clock = types.SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr(engine.loop, "time", clock)
    now, model = 1000.0, Net()
    plan = types.SimpleNamespace(step=lambda: None)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    state = engine.loop.Fit(model, optimizer, plan, engine.one_hot_mse, None, save_every=1.5)
    found = []
    for seconds in (0.0, 90.0, 90.5):
        now = 1000.0 + seconds
        state.step(sampling.Share([0, 1], 2), (torch.zeros(2, 8, 6), torch.tensor([0, 1])))
        found.append(state.due)
    assert found == [False, False, True]


def test_pace_of_an_epoch(tmp_path, monkeypatch):
    """By a clock that only a sample, 2 s, and a step, 4 s, move."""
    now, load = 0.0, Recordings.__getitem__

    def passes(seconds, result):
        nonlocal now
        now += seconds
        return result

    clock = types.SimpleNamespace(perf_counter=lambda: now, monotonic=lambda: now)
    monkeypatch.setattr(engine.loop, "time", clock)
    monkeypatch.setattr(Recordings, "__getitem__", lambda self, key: passes(2, load(self, key)))
    _, run = train(tmp_path / "run", loss=lambda *given: passes(4, engine.one_hot_mse(*given)))
    for row in run.rows():
        assert row["seconds"] == 70 * 2 + STEPS_AN_EPOCH * 4 == 176
        assert row["waiting_for_data"] == 140 / 176 and row["samples_per_second"] == 70 / 176


def test_the_first_measurement_that_is_a_number_is_the_best_so_far(tmp_path, monkeypatch):
    """NaN neither stays the best nor becomes it."""
    values = iter([math.nan, 0.25, 0.5, math.nan, 0.5])
    monkeypatch.setattr(engine.Measure, "__call__", lambda *_: {"test_accuracy": next(values)})
    best, save = [], engine.Run.save
    monkeypatch.setattr(engine.Run, "save", lambda *given: best.append((given[1], given[5])) or save(*given))
    _, run = train(tmp_path / "run", epochs=5)
    assert best == [(9, True), (18, True), (27, True), (36, False), (45, False)]
    assert engine.find_checkpoint(run.path).state["position"]["best"] == 0.5


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_engine as t
def loss(model, batch):
    print("step", flush=True); time.sleep(0.05)
    return t.engine.one_hot_mse(model, batch)
sys.exit(t.engine.command(lambda: t.train(Path(sys.argv[2]), loss=loss, workers=2, epochs=50)))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_exit(tmp_path, number):
    """From outside; Ctrl-C, `timeout` and schedulers signal the loading workers too."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, Path(__file__).parent, tmp_path / "run"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    for _ in range(3):
        while process.stdout.readline() != "step\n":
            assert process.poll() is None, process.stderr.read()
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number, err
    saved = engine.find_checkpoint(tmp_path / "run")
    assert saved.state["position"]["step"] == 3 + out.count("step\n")
    assert f"saved {saved.path}" in err and "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_outside_the_loop(number, capsys):
    """In the set-up and in the final measurement nothing is to be saved: one sentence, the same codes."""
    before = signal.getsignal(signal.SIGTERM)
    # A shell that starts pytest in the background has SIGINT ignored.
    sigint = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert engine.command(lambda: signal.raise_signal(number)) == 128 + number
    finally:
        signal.signal(signal.SIGINT, sigint)
    assert capsys.readouterr().err == f"Stopped by {number.name}.\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_run_directory(uninterrupted):
    _, run = uninterrupted
    config = json.loads((run.path / "config.json").read_text())
    assert config["recipe"] == {**RECIPE, "epochs": 2}
    assert {"attsnn", "torch", "numpy", "python"} == config["versions"].keys()
    assert config["command"].endswith(shlex.join(sys.argv))
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2] and rows[-1]["step"] == 2 * STEPS_AN_EPOCH
    assert all(0 <= row["test_accuracy"] <= 1 and row["test_loss"] > 0 < row["train_loss"] for row in rows)
    with open(run.path / "metrics.csv") as file:
        table = list(csv.DictReader(file))
    assert [float(row["test_accuracy"]) for row in table] == [row["test_accuracy"] for row in rows]
    best = engine.find_checkpoint(run.path).state
    assert best["position"]["best"] == max(row["test_accuracy"] for row in rows)
    assert best["recipe"] == config["recipe"]


def test_a_run_is_not_overwritten(tmp_path):
    train(tmp_path / "run", epochs=1)
    with pytest.raises(engine.UsageError, match="this run already.*--resume auto.*--name"):
        open_run(tmp_path / "run", epochs=1)
    with pytest.raises(engine.UsageError, match="(?s)another run.*lr: 0.01, now 0.5.*--name"):
        open_run(tmp_path / "run", epochs=1, lr=0.5)
    with pytest.raises(engine.UsageError, match="(?s)another recipe.*lr: 0.01, now 0.5") as refused:
        open_run(tmp_path / "run", "auto", epochs=1, lr=0.5)
    assert refused.value.code == 2 and "epochs" not in str(refused.value)
    assert open_run(tmp_path / "run", "auto", epochs=1, workers=4).checkpoint is not None
    assert len(json.loads((tmp_path / "run" / "config.json").read_text())["resumed"]) == 1


def test_resume_by_path(tmp_path):
    _, run = train(tmp_path / "run")
    for path in (run.path, run.last()):
        again = open_run(tmp_path / "elsewhere", str(path))
        assert again.path == run.path and again.checkpoint.path == run.last()
    with pytest.raises(engine.UsageError, match="neither a checkpoint"):
        open_run(tmp_path / "elsewhere", str(tmp_path / "nothing"))
    assert open_run(tmp_path / "fresh", "auto").checkpoint is None  # nothing to resume: a new run


def test_numbered_names(tmp_path):
    names = [engine.Run.open(tmp_path, "demo", RECIPE, numbered=True).path.name for _ in range(3)]
    assert names == ["demo", "demo-2", "demo-3"]
    assert engine.Run.open(tmp_path, "demo", RECIPE, numbered=True, resume="auto").path.name == "demo-3"


def test_resuming_drops_rows_after_the_checkpoint(tmp_path):
    """A crash between recording an epoch and saving it records that epoch once."""
    _, run = train(tmp_path / "run", epochs=1)
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"epoch": 2, "train_loss": 9.0}) + '\n{"epoch": 3, "tr')
    assert [row["epoch"] for row in run.rows()] == [1, 2]
    run.rewind(1)
    assert [row["epoch"] for row in run.rows()] == [1]


class SummaryWriter:
    """What torch.utils.tensorboard would be asked to write."""

    opened: list["SummaryWriter"]

    def __init__(self, log_dir, purge_step=None) -> None:
        self.log_dir, self.purge_step, self.scalars = log_dir, purge_step, {}
        self.opened.append(self)

    def add_scalar(self, tag, value, step) -> None:
        self.scalars[tag, step] = value

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def test_tensorboard(tmp_path, monkeypatch):
    """Where it is installed, what an epoch measured becomes scalars; resuming purges the epochs to come."""
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(SummaryWriter, "opened", [], raising=False)
    _, run = train(tmp_path / "run")
    (board,) = SummaryWriter.opened
    assert board.log_dir == str(run.path) and board.purge_step is None
    tags = {
        "train_loss": "train/loss",
        "test_loss": "test/loss",
        "test_accuracy": "test/accuracy",
        "samples_per_second": "samples/per_second",
        "lr": "lr",
    }
    for row in run.rows():
        for name, tag in tags.items():
            assert board.scalars[tag, row["epoch"]] == row[name]
    assert {step for _, step in board.scalars} == {1, 2}
    open_run(tmp_path / "run", "auto").record({"epoch": 3, "test_loss": None, "test_accuracy": 0.5})
    _, board = SummaryWriter.opened
    assert board.purge_step == 3 and board.scalars == {("test/accuracy", 3): 0.5}


def test_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    _, run = train(tmp_path / "run", epochs=1)
    assert len(run.rows()) == 1 and not list(run.path.glob("events.*"))
