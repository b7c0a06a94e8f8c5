"""Runs and checkpoints under abuse: nothing is lost and nothing is silent, whatever two processes, a bit, a
disc or a NaN do.
"""

import contextlib
import errno
import fcntl
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import abuse
import pytest
import torch
from abuse import ended, forked, no_locks
from test_engine import STEPS_AN_EPOCH, Net, Recordings, open_run, stopping_at, train
from torch import nn

from attsnn import engine
from attsnn.engine import checkpoint, lock, opening, sealed, stored

pytestmark = pytest.mark.usefixtures("without_curves")

HERE = Path(__file__).parent
DAMAGES = int(os.environ.get("ATTSNN_DAMAGES", "50"))
PAIRS = int(os.environ.get("ATTSNN_PAIRS", "3"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(stopped in its last epoch, never stopped)."""
    torch.use_deterministic_algorithms(True)
    folder = tmp_path_factory.mktemp("runs")
    abuse.run(folder / "whole")
    abuse.stopped(folder / "stopped")
    return folder / "stopped", folder / "whole"


def test_damages_are_found_or_harm_nothing(runs, tmp_path):
    happened = [abuse.survives(*runs, seed, tmp_path) for seed in range(DAMAGES)]
    assert any("harmless" in what for what in happened) and any("aside-ckpt" in what for what in happened)


# ---- two processes
# ------------------------------------------------------------------------------------------


@pytest.fixture(params=["locks", "no locks"])
def locks(request, monkeypatch):
    """Of the file system."""
    if request.param == "no locks":
        monkeypatch.setattr(fcntl, "flock", no_locks)
    return request.param == "locks"


def test_of_two_that_start_at_once_one_trains(tmp_path, locks):
    words = f"import sys, abuse; abuse.pairs(abuse.Path(sys.argv[1]), {PAIRS}, {locks})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ["PYTHONPATH"]])}
    done = subprocess.run(
        [sys.executable, "-c", words, tmp_path],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0 and f"{PAIRS} pairs" in done.stdout, done.stderr


def listed(path: Path) -> dict[str, tuple[int, bytes]]:
    """All that is below a folder, with the time when it was written."""
    files = [p for p in path.rglob("*") if p.is_file()]
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in files} | {
        str(p): () for p in path.rglob("*")
    }


@pytest.mark.parametrize("resume", [None, "auto", "path"])
def test_a_second_process_says_who_has_it_and_touches_nothing(tmp_path, locks, resume, capsys):
    path = tmp_path / "run"
    abuse.stopped(path)
    with open_run(path, "auto", epochs=abuse.EPOCHS):
        assert ("has no locks: while .lock-" in capsys.readouterr().out) != locks
        before = listed(path)
        how = str(path) if resume == "path" else resume
        second = lambda: engine.command(lambda: open_run(path, how, epochs=abuse.EPOCHS))  # noqa: E731
        assert ended(forked(second, tmp_path / "said")) == 2
        assert listed(path) == before
        said = (tmp_path / "said").read_text()
        assert f"{path} is in use by process {os.getpid()} on " in said and "pytest" in said
        assert "choose another --name" in said
    assert ended(forked(lambda: engine.command(lambda: open_run(path, "auto", epochs=abuse.EPOCHS)))) == 0


def test_a_refused_resumption_leaves_the_exit_code_of_the_run_alone(tmp_path):
    path, where = tmp_path / "run", (tmp_path, "run", "auto", False)

    def second():
        with opening.reporting(*where, rank=0):
            raise engine.UsageError("other data")

    abuse.stopped(path)
    with open_run(path, "auto", epochs=abuse.EPOCHS):
        assert ended(forked(lambda: engine.command(second))) == 2
        assert not (path / "exit.json").exists()
    assert ended(forked(lambda: engine.command(second))) == 2
    assert json.loads((path / "exit.json").read_text()) == {"code": 2, "said": "other data"}


def test_who_dies_gives_it_up(tmp_path, locks):
    """At once, though what it has started lives on."""
    path, ready = tmp_path / "run", tmp_path / "ready"

    def hold():
        run = open_run(path)
        worker = forked(lambda: time.sleep(60))
        ready.write_text(str(worker))
        time.sleep(60)
        return run.rank

    process = forked(hold)
    while not (ready.exists() and ready.read_text()):
        time.sleep(0.01)
    with pytest.raises(lock.InUseError):
        open_run(path, "auto")
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    open_run(path, "auto").close()
    os.kill(int(ready.read_text()), signal.SIGKILL)
    assert not list(path.glob(".lock*"))


def test_a_token_of_another_machine_is_believed(tmp_path, monkeypatch):
    """Whether that process lives cannot be known here: the sentence says what to remove."""
    path = tmp_path / "run"
    path.mkdir()
    who = {"process": 7, "machine": "elsewhere", "since": "then", "command": "python train.py"}
    (path / ".lock-elsewhere-7-ab").write_text(json.dumps(who))
    for change in (lambda: None, lambda: monkeypatch.setattr(fcntl, "flock", no_locks)):
        change()
        with pytest.raises(engine.UsageError, match="process 7 on elsewhere, since then: `python train.py`"):
            open_run(path)
        assert [p.name for p in path.iterdir() if p.name != ".lock"] == [".lock-elsewhere-7-ab"]
    with pytest.raises(engine.UsageError, match=r"If that process is gone, remove .*\.lock-elsewhere-7-ab"):
        open_run(path)
    (path / ".lock-elsewhere-7-ab").unlink()
    open_run(path).close()


def test_a_name_that_another_process_has_is_taken(tmp_path):
    def hold():
        lock.take(tmp_path / "demo")
        (tmp_path / "ready").write_text("")
        time.sleep(60)

    process = forked(hold)
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    run = engine.Run.open(tmp_path, "demo", {}, numbered=True)
    assert run.path.name == "demo-2"
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def test_who_has_lost_it_stops(tmp_path):
    """Somebody deleted the lock, and another process came."""
    run, path = open_run(tmp_path / "run"), tmp_path / "run"
    (path / ".lock").unlink()
    run.save(1, {"a": torch.zeros(1)}, {"state": {}, "param_groups": []}, {})  # nobody came: it has it again
    assert (path / ".lock").exists()
    (path / ".lock").unlink()

    def hold():
        lock.take(path)
        (tmp_path / "ready").write_text("")
        time.sleep(60)

    process = forked(hold)
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    before = listed(path)
    for act in (
        lambda: run.save(2, {"a": torch.zeros(1)}, {"state": {}, "param_groups": []}, {}),
        lambda: run.record({"epoch": 1, "val_loss": 1.0}),
    ):
        with pytest.raises(engine.UsageError, match="This process lost it, stops and writes nothing"):
            act()
    with pytest.raises(ZeroDivisionError), run:
        raise ZeroDivisionError
    assert listed(path) == before
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def test_what_fails_before_a_run_leaves_no_folder(tmp_path):
    def fail():
        raise engine.CheckpointError("no such weights")

    with pytest.raises(engine.CheckpointError, match="no such weights"):
        engine.Run.open(tmp_path / "runs", "run", {}, start=fail)
    assert not (tmp_path / "runs").exists()
    (tmp_path / "runs").write_text("")
    with pytest.raises(engine.UsageError, match="is not a folder: choose another --name or --runs-dir"):
        engine.Run.open(tmp_path / "runs", "run", {})


# ---- a bit
# ------------------------------------------------------------------------------------------


def test_every_bit_of_a_manifest_counts(runs, tmp_path):
    """Its own checksum stands in it; a checkpoint with averaged weights and rows."""
    path = checkpoint.find(runs[0]).path
    content = (path / "manifest.json").read_bytes()
    files = set(json.loads(content)["files"])
    assert files == {p.name for p in path.iterdir()} - {"manifest.json"} and "ema.safetensors" in files
    copy = tmp_path / path.name
    copy.mkdir()
    for name in files:
        (copy / name).symlink_to(path / name)
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        (copy / "manifest.json").write_bytes(changed)
        with pytest.raises(engine.CheckpointError, match=path.name):
            checkpoint.read_state(copy)
    (copy / "manifest.json").write_bytes(content)
    assert abuse.same(checkpoint.read(copy), checkpoint.read(path))


def unsealed(path: Path, change: Callable[[dict], object] = lambda manifest: None) -> None:
    """A manifest as older versions wrote it."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    del manifest["sha256"]
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest, indent=1))


def rename(manifest: dict) -> None:
    manifest["files"]["dma.safetensors"] = manifest["files"].pop("ema.safetensors")


def drop(manifest: dict) -> None:
    del manifest["files"]["ema.safetensors"]


def test_averaged_weights_are_not_lost_in_silence(runs, tmp_path):
    """Of a manifest without a checksum, too: it names exactly the files that there are."""
    for i, change in enumerate((rename, drop)):
        path = tmp_path / f"{i}"
        abuse.stopped(path)
        unsealed(checkpoint.find(path).path, change)
        with pytest.raises(
            engine.CheckpointError, match=r"does not hold what its manifest names: see .*ema.sa"
        ):
            checkpoint.find(path)
    path = tmp_path / "whole"
    abuse.stopped(path)
    unsealed(checkpoint.find(path).path)
    assert abuse.same(checkpoint.find(path), checkpoint.find(runs[0]))


def test_a_checkpoint_of_a_later_version_is_not_gone_back_from(tmp_path, capsys):
    """It is whole: an older version of the package must not train on from an older checkpoint."""
    path = tmp_path / "run"
    abuse.stopped(path)
    last = checkpoint.pointed(path, "last")
    manifest = json.loads((last / "manifest.json").read_bytes())
    (last / "manifest.json").write_bytes(sealed.seal({**manifest, "schema": 3}))
    with pytest.raises(
        engine.CheckpointError, match="schema 3; this version reads schema 2: go on with the ver"
    ):
        abuse.run(path, resume="auto")
    unsealed(last, lambda manifest: manifest.update(schema=3))  # a flipped bit, perhaps
    capsys.readouterr()
    abuse.run(path, resume="auto")
    assert "Falling back" in capsys.readouterr().out


def test_a_pointer_that_dangles_is_mended(tmp_path, capsys):
    path = tmp_path / "run"
    abuse.run(path)
    (path / "best").write_text("ckpt-99\n")
    assert checkpoint.find(path).path.name == "ckpt-18"
    assert "names ckpt-99, which is not there: taking ckpt-18, the best" in capsys.readouterr().err
    abuse.run(path, resume="auto")
    said = capsys.readouterr().out
    assert (
        "`best` names ckpt-99, which is not there: ckpt-18 is the best of what there is (val_accuracy 75.00%)"
        in said
    )
    assert "its highest val_accuracy is 75.00%, of epoch 2" in said
    assert (path / "best").read_text() == "ckpt-18\n" and checkpoint.find(path).path.name == "ckpt-18"


def test_what_is_lost_is_no_record_to_beat(tmp_path, capsys):
    """The best checkpoint is gone: the best of what there is takes its place, and a later one may."""
    path = tmp_path / "run"
    abuse.stopped(path)
    for file in (path / "ckpt-18").iterdir():
        file.write_bytes(b"")
    with pytest.raises(
        engine.CheckpointError, match="Whole ones there are ckpt-31, ckpt-27; --resume auto mends"
    ):
        checkpoint.find(path)
    abuse.run(path, resume="auto")
    said = capsys.readouterr().out
    assert "ckpt-27 is the best of what there is (val_accuracy 50.00%)" in said
    assert "its highest val_accuracy is 62.50%, of epoch 4" in said
    assert (path / "best").read_text() == "ckpt-36\n" and (path / "aside-ckpt-18").is_dir()


def test_after_a_fallback_the_good_one_is_kept(tmp_path):
    path = tmp_path / "run"
    abuse.stopped(path)
    (path / "ckpt-31" / "model.safetensors").write_bytes(b"")
    with pytest.raises(engine.StoppedError):
        abuse.run(path, resume="auto", loss=stopping_at(2))
    assert {p.name for p in path.glob("*ckpt-*")} == {"ckpt-18", "ckpt-27", "ckpt-29", "aside-ckpt-31"}


def test_going_back_loses_nothing(tmp_path, capsys):
    """To an older checkpoint, by its path: what came after it is set aside, and may be gone on from."""
    path = tmp_path / "run"
    abuse.stopped(path)
    before = abuse.weights_of(path)
    with pytest.raises(engine.StoppedError):
        abuse.run(path, resume=str(path / "ckpt-27"), loss=stopping_at(1))
    assert "ckpt-31 is not what led to ckpt-27: it is aside-ckpt-31 now" in capsys.readouterr().out
    assert set(before.values()) <= set(abuse.weights_of(path).values())
    assert (path / "last").read_text() == "ckpt-28\n"
    abuse.run(path, resume=str(path / "aside-ckpt-31"))
    assert checkpoint.read_last(path).state["position"]["step"] == 36


def test_a_kill_between_the_pointers_repeats_nothing(tmp_path, monkeypatch):
    path, point = tmp_path / "run", checkpoint._point

    def killed(directory, pointer, name):
        if (pointer, name) == ("last", "ckpt-18"):
            raise KeyboardInterrupt
        point(directory, pointer, name)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "_point", killed)
        abuse.run(path)
    assert (path / "last").read_text() == "ckpt-9\n" and (path / "best").read_text() == "ckpt-18\n"
    run = open_run(path, "auto", epochs=abuse.EPOCHS)
    assert run.checkpoint.path.name == "ckpt-18" and run.known == {"best": 0.75}
    assert not list(path.glob("aside-*"))


def test_a_pointer_that_is_lost_while_the_run_goes_on(tmp_path, capsys):
    def loss(model, batch):
        if (path / "last").exists() and (path / "last").read_text() == "ckpt-27\n":
            (path / "best").unlink(missing_ok=True)
        return engine.one_hot_mse(model, batch)

    path = tmp_path / "run"
    abuse.run(path, loss=loss)
    assert (path / "best").read_text() == "ckpt-18\n"
    assert f"`best` of {path} was lost: it names ckpt-18 again." in capsys.readouterr().out


def test_copies_that_a_user_made_stay(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    for name in ("ckpt-5-backup", "ckpt-best", "old-ckpt-3"):
        (path / name).mkdir()
    abuse.run(path)
    assert {"ckpt-5-backup", "ckpt-best", "old-ckpt-3"} <= {p.name for p in path.iterdir()}


# ---- what is not needed, and what is
# ------------------------------------------------------------------------------------------

BROKEN = [b"", b'{"recipe": {"lr": 0.0', b"\xff\xfe", b"[" * 100_000, b"3", b'{"recipe": 3}']


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_config_is_read_from_the_checkpoint(tmp_path, content, capsys):
    path = tmp_path / "run"
    abuse.stopped(path)
    recipe = opening.recorded(tmp_path, "run", "auto", False)
    (path / "config.json").write_bytes(content)
    assert opening.recorded(tmp_path, "run", "auto", False) == recipe != None  # noqa: E711
    with pytest.raises(engine.UsageError, match="is not a run's config .*choose another --name"):
        abuse.run(path)
    abuse.run(path, resume="auto")
    assert "config.json was changed or damaged" in capsys.readouterr().out
    config = json.loads((path / "config.json").read_text())
    assert config["recipe"] == recipe and "versions" in config
    assert (path / "aside-config.json").read_bytes() == content


def test_checkpoints_without_a_config_are_no_new_run(tmp_path):
    path = tmp_path / "run"
    abuse.stopped(path)
    (path / "config.json").unlink()
    with pytest.raises(
        engine.UsageError, match="holds checkpoints of a run whose config.json is gone: choose an"
    ):
        abuse.run(path)
    assert engine.Run.open(tmp_path, "run", {}, numbered=True).path.name == "run-2"


def test_rows_that_were_changed_are_those_of_the_checkpoint(tmp_path, capsys):
    path = tmp_path / "run"
    abuse.stopped(path)
    text = (path / "metrics.jsonl").read_text()
    (path / "metrics.jsonl").write_text(text.replace('"val_accuracy": 0.5', '"val_accuracy": 0.9'))
    run = open_run(path, "auto", epochs=abuse.EPOCHS)
    assert (
        "metrics.jsonl was not what had been recorded: it is what ckpt-31 holds again"
        in capsys.readouterr().out
    )
    assert (path / "metrics.jsonl").read_text() == text and len(run.rows()) == 3


# ---- a disc
# ------------------------------------------------------------------------------------------


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def read_only(path: object, flags: int, *mode: int) -> int:
    if flags & os.O_CREAT:
        raise OSError(errno.EROFS, "Read-only file system")
    return OPEN(path, flags, *mode)


OPEN = os.open


@pytest.mark.parametrize("resume", [None, "auto"])
@pytest.mark.parametrize("what", ["full", "read-only"])
def test_a_disc_that_takes_nothing_at_the_start(tmp_path, monkeypatch, what, resume):
    path = tmp_path / ("run" if resume else "new")
    abuse.stopped(tmp_path / "run")
    before = listed(tmp_path / "run")
    with monkeypatch.context() as patch:
        if what == "full":
            patch.setattr("attsnn._files.write_file", full)
        else:
            patch.setattr(lock.os, "open", read_only)
        with pytest.raises(engine.CheckpointError) as refused:
            open_run(path, resume, epochs=abuse.EPOCHS)
    said = str(refused.value)
    assert (
        refused.value.code == 5
        and f"Cannot write into {path} (" in said
        and "make it writable" in said.lower()
    )
    assert ("No space left" if what == "full" else "Read-only") in said
    assert listed(tmp_path / "run") == before
    assert not (tmp_path / "new").exists()


# ---- a NaN
# ------------------------------------------------------------------------------------------


class Poisoned(torch.optim.Adam):
    """Puts a number into a weight, or into what it keeps, with its update of that step."""

    where, step_, number = "weight", 2 * STEPS_AN_EPOCH, math.nan

    def step(self, closure=None):
        super().step(closure)
        weight = self.param_groups[0]["params"][0]
        if int(self.state[weight]["step"]) == self.step_:
            with torch.no_grad():
                (weight if self.where == "weight" else self.state[weight]["exp_avg"]).view(-1)[1] = (
                    self.number
                )


@pytest.mark.parametrize(
    ("where", "number", "epochs", "step"),
    [
        ("weight", math.nan, 3, 18),
        ("weight", math.inf, 2, 18),  # the run's last step
        ("slot", math.nan, 3, 18),
        ("weight", math.nan, 1, 9),
        ("weight", math.nan, 3, 12),  # within an epoch, where it is stopped before the next step shows it
    ],
)
def test_what_is_not_finite_is_neither_measured_nor_saved(tmp_path, monkeypatch, where, number, epochs, step):
    monkeypatch.setattr(torch.optim, "Adam", Poisoned)
    for name, value in (("where", where), ("number", number), ("step_", step)):
        monkeypatch.setattr(Poisoned, name, value)
    loss = stopping_at(12) if step == 12 else engine.one_hot_mse
    with pytest.raises(engine.NonFiniteError) as stopped:
        train(tmp_path / "run", epochs=epochs, loss=loss)
    said, run = str(stopped.value), engine.Run(tmp_path / "run", {})
    name = "the weight or statistic hidden.weight" if where == "weight" else "the optimiser's 0.exp_avg"
    assert (
        stopped.value.code == 4 and f"After step {step} {name} is not finite, so nothing was saved." in said
    )
    assert json.loads((run.path / "exit.json").read_text()) == {"code": 4, "said": said}
    if step == 9:
        assert "There is no good checkpoint yet" in said and not run.rows() and run.last() is None
    else:
        assert [row["epoch"] for row in run.rows()] == [1]
        assert f"The last good checkpoint is {run.path / 'ckpt-9'}" in said
        assert run.last().name == checkpoint.find(run.path).path.name == "ckpt-9"
    assert "--init-from" in said or step == 9


def test_statistics_and_averaged_weights_are_looked_at_too(tmp_path):
    model = Net()
    states = model.state_dict(), {"state": {}, "param_groups": []}
    for name, ema in (("norm.running_var", None), ("module.hidden.weight", "ema")):
        averaged = engine.ema_of(model, 0.9).state_dict() if ema else None
        broken = {**(averaged or states[0])}
        broken[name] = broken[name] * math.nan
        given = (states[0], states[1], {}, False, broken) if ema else (broken, states[1], {}, False)
        with pytest.raises(engine.NonFiniteError, match=f"{name} is not finite"):
            checkpoint.write(tmp_path, 1, *given)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_an_older_version_saved_of_nan_is_gone_back_from(tmp_path, monkeypatch, capsys):
    path = tmp_path / "run"
    abuse.stopped(path)
    saved = checkpoint.read_last(path)
    weights = {**saved.model, "out.bias": saved.model["out.bias"] * math.nan}
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "not_finite", lambda *_: None)
        patch.setattr(stored, "not_finite", lambda *_: None)
        state = {**saved.state, "measured": {"name": "val_accuracy", "value": 0.99, "lowest": False}}
        state["position"] = {**state["position"], "step": 32}
        checkpoint.write(path, 32, weights, saved.optimizer, state, True, saved.ema, saved.rows)
    with pytest.raises(
        engine.CheckpointError, match="ckpt-32 is of no use: the weight or statistic out.bias is not"
    ):
        checkpoint.find(path)
    abuse.run(path, resume="auto")
    said = capsys.readouterr().out
    assert (
        "out.bias is not finite" in said and "Falling back to" in said and (path / "aside-ckpt-32").is_dir()
    )


class Says(nn.Module):
    """Gives the scores that it is fed [T, N, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return (x.mean(0) if x.dim() == 3 else x) + self.anchor


@pytest.mark.parametrize(("broken", "accuracy"), [(0, 1.0), (1, 0.75), (4, math.nan)])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_no_accuracy(broken, accuracy, number):
    """A NaN is not class 0, whose label the broken ones have."""
    scores, labels = torch.eye(3)[[0, 0, 1, 2]], torch.tensor([0, 0, 1, 2])
    labels[:broken] = 0
    scores[:broken] = number
    if number == math.inf:
        scores[:broken, 1:] = -math.inf
    found = engine.top_k(Says(), [(scores, labels)])
    assert (found.top1, found.samples) == pytest.approx((accuracy, 4), nan_ok=True)
    assert math.isnan(found.top5) == (broken == 4)
    windows = scores[:, None, None].expand(4, 1, 5, 3)
    found = engine.evaluate(Says(), [(windows, labels)], 3)
    assert found.accuracy == pytest.approx(accuracy, nan_ok=True)
    assert found.confusion[:, 3].sum() == broken


def test_windows_that_are_no_numbers_do_not_vote():
    """More than half of all windows must vote for a class."""
    windows = torch.eye(3)[[1, 1, 1, 0]].clone()
    windows[3] = math.nan
    three, two = windows.clone(), windows.clone()
    two[2] = math.nan
    batch = torch.stack([three, two])[:, :, None].expand(2, 4, 5, 3), torch.tensor([1, 1])
    assert engine.evaluate(Says(), [batch], 3).confusion.tolist()[1] == [0, 1, 0, 1]


# ---- what strangers do
# ------------------------------------------------------------------------------------------


def test_another_process_came_and_went(tmp_path):
    """The lock was deleted, another went on with the run and ended: this one has lost it all the same."""
    path = tmp_path / "run"
    abuse.stopped(path)
    run = open_run(path, "auto", epochs=abuse.EPOCHS)
    (path / ".lock").unlink()
    assert ended(forked(lambda: engine.command(lambda: open_run(path, "auto", epochs=abuse.EPOCHS)))) == 0
    before = listed(path)
    with pytest.raises(engine.UsageError, match="was in use by another process meanwhile. This process lost"):
        run.record({"epoch": 4, "val_loss": 1.0})
    run.close()
    assert {k: v for k, v in listed(path).items() if ".lock" not in k} == {
        k: v for k, v in before.items() if ".lock" not in k
    }


@pytest.mark.parametrize("name", ["epoch2", "ckpt-99", "ckpt-9"])
def test_a_checkpoint_by_another_name_is_refused_before_anything_is_touched(tmp_path, name):
    path = tmp_path / "run"
    abuse.stopped(path)
    (path / "ckpt-27").rename(path / name)
    before = listed(path)
    with pytest.raises(engine.UsageError, match=r"call it .*/ckpt-27, or start a run .*--init-from"):
        open_run(path, str(path / name), epochs=abuse.EPOCHS)
    assert listed(path) == before
    (path / name).rename(path / "ckpt-27-kept")  # its own number it may have
    opened = open_run(path, str(path / "ckpt-27-kept"), epochs=abuse.EPOCHS)
    assert opened.checkpoint.path.name == checkpoint.read_last(path).path.name == "ckpt-27-kept"


def test_resumed_from_within_a_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "run"
    abuse.stopped(path)
    monkeypatch.chdir(path / "ckpt-31")
    assert open_run(path, ".", epochs=abuse.EPOCHS).checkpoint.path == path / "ckpt-31"
    with pytest.raises(engine.UsageError), opening.reporting(path, "run", ".", False, 0):
        raise engine.UsageError("other data")
    assert not (path / "ckpt-31" / "exit.json").exists()


def test_a_run_does_not_start_anew_beside_what_was_set_aside(tmp_path):
    path = tmp_path / "run"
    abuse.stopped(path)
    for folder in path.glob("ckpt-*"):
        folder.rename(path / f"aside-{folder.name}")
    with pytest.raises(engine.CheckpointError, match="go on from it with --resume .*/aside-ckpt-31"):
        open_run(path, "auto", epochs=abuse.EPOCHS)
    assert open_run(path, str(path / "aside-ckpt-31"), epochs=abuse.EPOCHS).checkpoint is not None


def test_a_checkpoint_is_gone_on_from_though_last_names_none(tmp_path):
    path = tmp_path / "run"
    abuse.stopped(path)
    (path / "ckpt-31").rename(tmp_path / "elsewhere")
    opened = open_run(path, str(path / "ckpt-27"), epochs=abuse.EPOCHS)
    assert opened.checkpoint.path.name == "ckpt-27"


@pytest.mark.parametrize("what", ["ckpt-27\n", "", None])
def test_the_best_is_not_lost_to_a_pointer_that_is_changed_meanwhile(tmp_path, what, capsys):
    def loss(model, batch):
        if (path / "last").exists() and (path / "last").read_text() == "ckpt-27\n":
            (path / "best").unlink(missing_ok=True)
            if what is not None:
                (path / "best").write_text(what)
        return engine.one_hot_mse(model, batch)

    path = tmp_path / "run"
    abuse.run(path, loss=loss)
    assert (path / "best").read_text() == "ckpt-18\n"
    said = capsys.readouterr().out
    assert f"`best` of {path} was lost: it names ckpt-18 again." in said and "75.00%, of epoch 2" in said


@pytest.mark.parametrize("content", [b"", b'{"epoch": 1, "val_accuracy": {"a": 1}}\n', None])
def test_the_record_is_not_lost_to_a_file_that_is_changed_meanwhile(runs, tmp_path, content, capsys):
    def loss(model, batch):
        if (path / "last").exists() and (path / "last").read_text() == "ckpt-27\n":
            file = path / "metrics.jsonl"
            file.unlink(missing_ok=True)
            if content is not None:
                file.write_bytes(content)
        return engine.one_hot_mse(model, batch)

    path = tmp_path / "run"
    ended = abuse.run(path, loss=loss)
    assert abuse.untimed(ended.rows()) == abuse.untimed(engine.Run(runs[1], {}).rows())
    assert "metrics.jsonl was changed: it is as it was recorded again" in capsys.readouterr().out


def test_what_a_user_puts_beside_them_is_not_dropped(tmp_path):
    """A checkpoint of another run, a copy by a name as the run's own, while the run goes on."""
    path, other = tmp_path / "run", tmp_path / "other"
    abuse.stopped(other)

    def loss(model, batch):
        if (path / "ckpt-9").exists() and not (path / "ckpt-9.5").exists():
            shutil.copytree(path / "ckpt-9", path / "ckpt-9.5")
            shutil.copytree(other / "ckpt-31", path / "ckpt-99")
        return engine.one_hot_mse(model, batch)

    abuse.run(path, loss=loss)
    assert {"ckpt-9.5", "ckpt-99"} <= {p.name for p in path.iterdir()} and not (path / "ckpt-9").exists()


def test_a_finished_run_is_not_overwritten_when_its_checkpoints_are_gone(tmp_path):
    path = tmp_path / "run"
    abuse.run(path)
    for folder in path.glob("ckpt-*"):
        shutil.rmtree(folder)
    with pytest.raises(engine.UsageError, match="holds this run already"):
        abuse.run(path)
    assert engine.Run.open(tmp_path, "run", {}, numbered=True).path.name == "run-2"


def test_the_files_of_others_are_kept(tmp_path, capsys):
    """Nothing is written where no run lies, nothing lost where one is made."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "exit.json").write_text("precious")
    with pytest.raises(engine.UsageError), opening.reporting(tmp_path, "x", str(folder), False, 0):
        open_run(tmp_path / "x", str(folder))
    assert (folder / "exit.json").read_text() == "precious"
    (folder / "metrics.jsonl").write_text("mine")
    (folder / "exit-notes.json").write_text("mine")
    open_run(folder)
    assert (folder / "aside-metrics.jsonl").read_text() == "mine" == (folder / "exit-notes.json").read_text()
    assert (folder / "aside-exit.json").read_text() == "precious"
    assert (
        "metrics.jsonl does not belong to a run of attsnn: it is aside-metrics.jsonl now"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("content", [b"", b"{}", b"[", b'{"process": 1}'])
def test_a_lock_that_says_nothing_is_a_lock(tmp_path, content):
    path = tmp_path / "run"
    run = open_run(path)
    (path / ".lock").write_bytes(content)
    said = tmp_path / "said"
    assert ended(forked(lambda: engine.command(lambda: open_run(path, "auto")), said)) == 2
    assert "is in use by another process. Wait for its end" in said.read_text()
    run.close()
    (path / ".lock-vm-123-ab").write_bytes(content)
    with pytest.raises(engine.UsageError, match="by another process.* If that process is gone, remove "):
        open_run(path, "auto")


TOO_MUCH = ["ckpt-31\n" * 60, "ckpt-" + "3" * 300, "ckpt-" + "3" * 5000, "ckpt-31\nckpt-27"]


@pytest.mark.parametrize("content", TOO_MUCH, ids=range(len(TOO_MUCH)))
@pytest.mark.parametrize("pointer", ["last", "best"])
def test_a_pointer_that_says_too_much(tmp_path, content, pointer, capsys):
    path = tmp_path / "run"
    abuse.stopped(path)
    (path / pointer).write_text(content)
    assert checkpoint.find(path).path.name == "ckpt-18"
    assert open_run(path, "auto", epochs=abuse.EPOCHS).checkpoint.path.name == "ckpt-31"
    assert (path / pointer).read_text() == ("ckpt-31\n" if pointer == "last" else "ckpt-18\n")
    assert f"`{pointer}` names no checkpoint" in capsys.readouterr().out


def test_a_config_that_contradicts_the_run_is_said(tmp_path, capsys):
    path = tmp_path / "run"
    abuse.stopped(path)
    config = json.loads((path / "config.json").read_text())
    del config["sha256"]
    (path / "config.json").write_text(json.dumps({**config, "recipe": {**config["recipe"], "lr": 7}}))
    open_run(path, "auto", epochs=abuse.EPOCHS)
    assert "was changed or damaged (it says lr: 7, now 0.01)" in capsys.readouterr().out
    assert json.loads((path / "config.json").read_text())["recipe"]["lr"] == 0.01


def test_names_that_are_none():
    for name in ("ckpt-5", "aside-x", ".x", "x" * 201):
        with pytest.raises(engine.UsageError, match="a run is called otherwise than a checkpoint"):
            engine.Training(name=name).check()


class Gone(io.StringIO):
    """A pipe whose reader has ended."""

    def write(self, text):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    def flush(self):
        self.write("")


@pytest.mark.parametrize("stream", [Gone, lambda: None], ids=["a broken pipe", "closed"])
def test_nobody_listens(tmp_path, monkeypatch, stream):
    """`| tee log` dies of the same Ctrl-C: the step is finished and saved; the code is the signal's."""
    before, write = signal.signal(signal.SIGINT, signal.default_int_handler), os.write
    monkeypatch.setattr(os, "write", lambda fd, text: Gone().write(text) if fd == 2 else write(fd, text))
    try:
        with contextlib.redirect_stdout(stream()), contextlib.redirect_stderr(stream()):
            code = engine.command(lambda: train(tmp_path / "run", loss=stopping_at(3, signal.SIGINT)))
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 130 == exit_json(tmp_path / "run")["code"]
    assert checkpoint.read_last(tmp_path / "run").state["position"]["step"] == 3


@pytest.mark.parametrize("reader", ["| true", "> /dev/full", ">&-"])
def test_nobody_reads_what_a_command_prints(reader):
    """Its exit code is that of the command; what it has not flushed yet does not fail at the end."""
    words = f"from attsnn import engine; engine.leave(engine.command(lambda: print('x' * {10**5})))"
    shell = f"'{sys.executable}' -c \"{words}\" {reader}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_second_signal_does_not_lose_the_outcome(tmp_path, monkeypatch):
    """It comes while exit.json is written."""
    left = []

    def leaves(path, content):
        if path.name == "exit.json" and not left:
            left.append(1)
            signal.raise_signal(signal.SIGTERM)
        return write(path, content)

    write = opening.replace_file
    monkeypatch.setattr(opening, "replace_file", leaves)

    def act():
        with open_run(tmp_path / "run"):
            signal.raise_signal(signal.SIGTERM)

    assert engine.command(act) == 143 and exit_json(tmp_path / "run")["code"] == 143 and left


# ---- how it ended
# ------------------------------------------------------------------------------------------


def exit_json(path: Path) -> dict:
    return json.loads((path / "exit.json").read_text())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (engine.StoppedError(signal.SIGTERM), 143),
        (KeyboardInterrupt(), 130),
        (engine.CheckpointError("damaged"), 5),
        (ValueError("a defect"), 1),
        (SystemExit("text"), 1),
    ],
)
def test_the_outcome_is_that_of_all_that_is_done_with_a_run(tmp_path, error, code):
    path = tmp_path / "run"
    with contextlib.suppress(BaseException), open_run(path, epochs=1) as run:
        train_in(run)
        assert not (path / "exit.json").exists()  # the training is not all
        raise error
    assert exit_json(path)["code"] == code
    with open_run(path, "auto", epochs=1):
        assert not (path / "exit.json").exists()
    assert exit_json(path) == {"code": 0, "said": ""}


def train_in(run: engine.Run) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    batches = engine.Batches(Recordings(), 8, 3, key=lambda i, s: (i, s))
    plan = engine.schedule("cosine", optimizer, len(batches))
    task = {"loss": engine.one_hot_mse, "evaluate": abuse.measured, "choose": "val_accuracy"}
    engine.fit(model, optimizer, plan, batches, run=run, epochs=1, **task)


@pytest.mark.parametrize("moment", ["seed_all", "restore", "SummaryWriter"])
def test_stopped_between_its_creation_and_its_first_step(tmp_path, monkeypatch, moment):
    """It says so, and its name can be used again, by another recipe too."""
    from test_training import begun

    def stop(*_, **__):
        assert (tmp_path / "run" / "config.json").exists()
        raise engine.StoppedError(signal.SIGTERM)

    with monkeypatch.context() as patch:
        if moment == "seed_all":
            patch.setattr(sys.modules["attsnn.engine.begin"], "seed_all", stop)
        elif moment == "restore":
            patch.setattr(engine.loop.Fit, "restore", stop)
        else:
            patch.setattr(sys.modules["attsnn.engine.record"], "_tensorboard", stop)
        with pytest.raises(engine.StoppedError):
            parts, _ = begun(tmp_path / "run")
            engine.fit(*parts.parts, **parts.rules)
    assert exit_json(tmp_path / "run")["code"] == 143
    assert not list((tmp_path / "run").glob(".lock*")) or moment == "restore"
    parts, _ = begun(tmp_path / "run", knob=7)
    engine.fit(*parts.parts, **parts.rules)
    assert exit_json(tmp_path / "run")["code"] == 0


def test_three_signals_in_a_row_stop_at_once(tmp_path):
    """INT, TERM, INT: the second INT is the second, whatever came between. Two TERM are one, as `timeout`
    sends it to a process and to its group.
    """

    def loss(model, batch):
        for number in numbers:
            os.kill(os.getpid(), number)
        passed.append(1)
        return engine.one_hot_mse(model, batch)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        numbers, passed = [signal.SIGINT, signal.SIGTERM, signal.SIGINT], []
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "int", loss=loss)
        assert not passed and exit_json(tmp_path / "int")["code"] == 130
        numbers = [signal.SIGTERM, signal.SIGTERM]
        with pytest.raises(engine.StoppedError):
            train(tmp_path / "term", loss=loss)
        assert passed and exit_json(tmp_path / "term")["code"] == 143
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_behind_the_last_step_is_not_lost(tmp_path, monkeypatch):
    """While the closing sentence is made, say: what follows, a final test, does not begin."""
    monkeypatch.setattr(engine.Run, "conclusion", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert engine.command(lambda: [train(tmp_path / "run", epochs=1), pytest.fail("went on")]) == 143
    assert exit_json(tmp_path / "run")["code"] == 143


# ---- what the bits hang on
# ------------------------------------------------------------------------------------------


def test_what_changes_the_bits_is_said(tmp_path, capsys):
    from test_training import Options, begun

    bits = Options().bits(torch.device("cpu"))
    assert bits.keys() >= {"threads", "backend", "channels_last", "processor", "torch", "device"}
    with pytest.raises(engine.StoppedError):
        parts, _ = begun(tmp_path / "run")
        engine.fit(*parts.parts, **{**parts.rules, "loss": stopping_at(2)})
    assert checkpoint.read_last(tmp_path / "run").state["bits"] == bits
    begun(tmp_path / "run", resume="auto", workers=1)
    assert "very bits" not in capsys.readouterr().out
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        begun(tmp_path / "run", resume="auto", backend="reference")
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().out
    assert "What follows has not the very bits of a run that was never stopped, for these differ:" in said
    assert f"  threads: {threads}, now {threads + 1}" in said and '  backend: "auto", now "reference"' in said
    assert "torch:" not in said and "channels_last" not in said
