"""Checkpoints: what is written is read back, and whatever happens to the disk, the last good one stays."""

import errno
import json
import os
import resource
import signal
import time

import pytest
import torch
from torch import nn

from attsnn.engine import CheckpointError, UsageError, checkpoint


def network() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    model(torch.randn(8, 5)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def write(directory, step, best=False, note=""):
    model, optimizer = network()
    path = checkpoint.write(
        directory, step, model.state_dict(), optimizer.state_dict(), {"note": note or step}, best
    )
    return path, model, optimizer


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_round_trip(tmp_path):
    path, model, optimizer = write(tmp_path, 7, note="seven")
    saved = checkpoint.read(path)
    assert saved.state == {"note": "seven"}
    other = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    other.load_state_dict(saved.model)
    again = torch.optim.Adam(other.parameters(), 0.5)
    again.load_state_dict(saved.optimizer)
    assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))
    for old, new in zip(
        optimizer.state_dict()["state"].values(), again.state_dict()["state"].values(), strict=True
    ):
        assert old.keys() == new.keys() and all(torch.equal(old[k], new[k]) for k in old)
    assert again.param_groups[0]["lr"] == 0.1


def test_momentum_free_and_views(tmp_path):
    """An optimiser without state, tied weights and channels-last weights can be saved."""
    weight = nn.Parameter(torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last))
    tensors = {
        "a": weight,
        "tied": weight,
        "view": torch.arange(6).reshape(2, 3).T,
        "scalar": torch.tensor(2),
    }
    optimizer = torch.optim.SGD([weight], 0.1)
    saved = checkpoint.read(checkpoint.write(tmp_path, 1, tensors, optimizer.state_dict(), {}, False))
    assert saved.model.keys() == tensors.keys()
    assert all(torch.equal(saved.model[name], tensors[name]) for name in tensors)
    optimizer.load_state_dict(saved.optimizer)


def test_files_and_pointers(tmp_path):
    write(tmp_path, 1, best=True)
    write(tmp_path, 2)
    assert (tmp_path / "last").read_text() == "ckpt-2\n" and (tmp_path / "best").read_text() == "ckpt-1\n"
    files = ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]
    assert names(tmp_path / "ckpt-2") == files
    manifest = json.loads((tmp_path / "ckpt-2" / "manifest.json").read_text())
    assert manifest["schema"] == 2 and sorted(manifest["files"]) == files[1:]
    assert checkpoint.find(tmp_path).path.name == "ckpt-1"  # the best one
    assert checkpoint.find(tmp_path / "ckpt-2").path.name == "ckpt-2"
    with pytest.raises(UsageError, match="neither a checkpoint"):
        checkpoint.find(tmp_path / "nothing")


def test_keeps_the_new_the_previous_and_the_best(tmp_path):
    for step in range(1, 6):
        write(tmp_path, step, best=step == 2)
    assert names(tmp_path) == ["best", "ckpt-2", "ckpt-4", "ckpt-5", "last"]
    write(tmp_path, 5)  # the same step again: never in place
    assert names(tmp_path) == ["best", "ckpt-2", "ckpt-5", "ckpt-5.1", "last"]
    assert checkpoint.read_last(tmp_path).path.name == "ckpt-5.1"


@pytest.mark.parametrize(
    "file", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
)
@pytest.mark.parametrize("how", ["flipped", "short", "missing"])
def test_damage_is_noticed_and_the_one_before_is_used(tmp_path, file, how):
    write(tmp_path, 1)
    path = write(tmp_path, 2)[0] / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content if how == "flipped" else content[:-3])
    if how == "missing":
        path.unlink()
    with pytest.raises(CheckpointError, match="ckpt-2"):
        checkpoint.read(tmp_path / "ckpt-2")
    said = []
    assert checkpoint.read_last(tmp_path, said.append).state["note"] == 1
    assert len(said) == 2 and "ckpt-2" in said[0] and "Falling back" in said[1]


def test_nothing_usable(tmp_path):
    assert checkpoint.read_last(tmp_path) is None
    (write(tmp_path, 1)[0] / "state.json").unlink()
    with pytest.raises(CheckpointError, match="is usable"):
        checkpoint.read_last(tmp_path, lambda _: None)


def test_lost_pointer_and_newer_schema(tmp_path):
    write(tmp_path, 9)
    newest = write(tmp_path, 10)[0]
    (tmp_path / "last").unlink()
    assert checkpoint.read_last(tmp_path).path == newest  # 10 is after 9
    manifest = json.loads((newest / "manifest.json").read_text())
    (newest / "manifest.json").write_text(json.dumps({**manifest, "schema": 99}))
    with pytest.raises(CheckpointError, match="schema 99"):
        checkpoint.read(newest)


def test_full_disk_leaves_the_old_one(tmp_path):
    """A limit on the size of files stands for a disk that fills up in the middle of a file."""
    write(tmp_path, 1, best=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    try:
        with pytest.raises(CheckpointError, match="step 2.*ckpt-1, is intact.*--resume auto") as caught:
            write(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.code == 5
    assert names(tmp_path) == ["best", "ckpt-1", "last"]
    assert checkpoint.read_last(tmp_path).state["note"] == 1


@pytest.mark.parametrize("lack", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_synchronise(lack, tmp_path, monkeypatch):
    """It is saved as far as can be; a disc that fails is another thing."""

    def fail(_):
        raise OSError(lack, os.strerror(lack))

    monkeypatch.setattr(os, "fsync", fail)
    write(tmp_path, 1, best=True)
    assert checkpoint.read_last(tmp_path).state["note"] == 1

    def broken(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(CheckpointError, match="Input/output error"):
        write(tmp_path, 2)
    assert checkpoint.read_last(tmp_path).state["note"] == 1


def test_unwritable_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="there is no older one"):
        write(tmp_path / "file", 1)


def test_killed_while_saving(tmp_path):
    """kill -9 at any moment: the last checkpoint that was announced, or a later one, is valid."""
    step, states = 0, [part.state_dict() for part in network()]
    for delay in (0.02, 0.03, 0.05, 0.07, 0.11, 0.13, 0.17, 0.19):
        child = os.fork()
        if child == 0:
            for i in range(step + 1, step + 10_000):
                checkpoint.write(tmp_path, i, *states, {"note": i}, False)
        while checkpoint.pointed(tmp_path, "last") in (None, tmp_path / f"ckpt-{step}"):
            time.sleep(0.001)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        saved = checkpoint.read_last(tmp_path, lambda text: pytest.fail(text))
        assert saved.state["note"] > step
        step = saved.state["note"]
    write(tmp_path, step + 1)
    assert not list(tmp_path.glob(".tmp-*"))


def test_killed_between_the_pointers(tmp_path, monkeypatch):
    """`best` never names an older checkpoint than the one that goes on knows of."""
    write(tmp_path, 1, best=True)
    point, pointed = checkpoint._point, []

    def killed(directory, pointer, name):
        if pointed:
            raise KeyboardInterrupt
        pointed.append(pointer)
        point(directory, pointer, name)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_point", killed)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, 2, best=True)
    saved = checkpoint.read_last(tmp_path)
    assert saved.state["note"] == 1 and (tmp_path / "best").read_text() == "ckpt-2\n"
    write(tmp_path, 2, best=True)  # the epoch again
    assert (tmp_path / "best").read_text() == (tmp_path / "last").read_text() == "ckpt-2.1\n"
