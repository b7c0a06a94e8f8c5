"""What may happen to a run directory, by seed, and what must then be true of it."""

import contextlib
import errno
import fcntl
import io
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from test_engine import Net, Recordings, open_run, stopping_at

from attsnn import engine
from attsnn.engine import checkpoint, pictures

EPOCHS = 4
TIMED = {"seconds", "samples_per_second", "waiting_for_data"}


WORTH = {9: 0.25, 18: 0.75, 27: 0.5, 36: 0.625}  # by step: the best is neither the last nor the one before


def measured(model: torch.nn.Module, poll: Callable[[], None]) -> dict[str, float]:
    return {"val_accuracy": WORTH.get(int(model.norm.num_batches_tracked), 0.0)}


def run(path: Path, resume: str | None = None, loss: Callable = engine.one_hot_mse) -> engine.Run:
    """The run that is abused: four epochs with averaged weights."""
    engine.seed_all(0)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    batches = engine.Batches(Recordings(), 8, 3, key=lambda i, s: (i, s))
    how = {"update": engine.Update(ema=engine.ema_of(model, 0.9)), "loss": loss, "evaluate": measured}
    with open_run(path, resume, epochs=EPOCHS) as opened:
        plan = engine.schedule("onecycle", optimizer, EPOCHS * len(batches))
        choice = {"choose": "val_accuracy", "epochs": EPOCHS}
        engine.fit(model, optimizer, plan, batches, run=opened, **how, **choice)
    return opened


def stopped(path: Path) -> None:
    """Stopped within its last epoch; there are `last`, the one before, and `best`."""
    with contextlib.suppress(engine.StoppedError):
        run(path, loss=stopping_at(9 * (EPOCHS - 1) + 4))


def damage(path: Path, draw: random.Random) -> str:
    """Does one thing to a run directory; returns what."""
    files = sorted(p for p in path.rglob("*") if p.is_file() and not p.is_symlink())
    # As often in a pointer as in a checkpoint's files, which are many.
    top, deep = [p for p in files if p.parent == path], [p for p in files if p.parent != path]
    file = draw.choice(draw.choice([top, deep]))
    folders = sorted(p for p in path.glob("ckpt-*") if p.is_dir())
    folder = draw.choice(folders)
    content = file.read_bytes()

    def flip() -> None:
        changed = bytearray(content)
        place = draw.randrange(8 * max(1, len(changed)))
        if changed:
            changed[place // 8] ^= 1 << place % 8
        file.write_bytes(changed)

    def instead(make: Callable[[Path], object]) -> Callable[[], None]:
        def act() -> None:
            file.unlink()
            make(file)

        return act

    def moved() -> None:
        file.rename(file.with_name(draw.choice("abcd") + file.name[1:]))

    def exchanged() -> None:
        other = draw.choice([p for p in files if p.name == file.name and p != file] or [file])
        file.write_bytes(other.read_bytes())

    def pointed() -> None:
        names = [p.name for p in folders] + [
            "ckpt-99",
            "config.json",
            "..",
            "",
            "ckpt-\0",
            "\u2028",
            "/etc/passwd",
        ]
        (path / draw.choice(["last", "best"])).write_text(draw.choice(names) + draw.choice(["\n", ""]))

    def copied() -> None:
        name = draw.choice(["ckpt-99", "ckpt-1", "ckpt-5.7", f"{folder.name}-copy", "ckpt-x"])
        shutil.copytree(folder, path / name, dirs_exist_ok=True)

    def renamed() -> None:
        folder.rename(path / draw.choice(["ckpt-99", "ckpt-1", "ckpt-8.8", "gone"]))

    kinds = {
        "flipped": flip,
        "flipped too": flip,  # the commonest
        "cut": lambda: file.write_bytes(content[: draw.randrange(len(content) + 1)]),
        "emptied": lambda: file.write_bytes(b""),
        "longer": lambda: file.write_bytes(content + draw.randbytes(5)),
        "zeroed": lambda: file.write_bytes(bytes(len(content))),
        "no text": lambda: file.write_bytes(b"\xff\xfe" + content),
        "too deep": lambda: file.write_bytes(b"[" * 100_000 + b"]" * 100_000),
        "other JSON": lambda: file.write_bytes(draw.choice([b"3\n", b"[]", b"{}", b"null", b'"x"', b"NaN"])),
        "deleted": file.unlink,
        "moved": moved,
        "exchanged": exchanged,
        "a folder": instead(Path.mkdir),
        "a pipe": instead(os.mkfifo),
        "a link to itself": instead(lambda p: p.symlink_to(p.name)),
        "a link to nothing": instead(lambda p: p.symlink_to("nowhere")),
        "pointed": pointed,
        "checkpoint copied": copied,
        "checkpoint renamed": renamed,
        "checkpoint deleted": lambda: shutil.rmtree(folder),
        "all checkpoints damaged": lambda: [(p / "state.json").write_bytes(b"{}") for p in folders],
        "a stranger's file": lambda: (folder / draw.choice([".DS_Store", "notes.txt", "x.json"])).write_text(
            "x"
        ),
        "a stale lock": lambda: (path / ".lock").write_bytes(draw.choice([b"", b"x", b'{"process": 1}'])),
    }
    kind = draw.choice(sorted(kinds))
    kinds[kind]()
    return f"{file.relative_to(path)}: {kind}"


def weights_of(path: Path) -> dict[Path, bytes]:
    """{checkpoint: its weights} of those that are whole."""
    found = {}
    for folder in path.iterdir():
        with contextlib.suppress(engine.CheckpointError):
            checkpoint.read(folder)
            found[folder] = (folder / "model.safetensors").read_bytes()
    return found


def same(a: checkpoint.Checkpoint, b: checkpoint.Checkpoint) -> bool:
    return all(
        x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)
        for x, y in ((a.model, b.model), (a.ema, b.ema))
    )


def untimed(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in TIMED} for row in rows]


@contextlib.contextmanager
def heard() -> Iterator[io.StringIO]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        yield out


USUAL = ("Resuming from", "No checkpoint in", "epoch ")


def unusual(text: str, done: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith((*USUAL, f"{done} is done"))]


def survives(base: Path, whole: Path, seed: int, where: Path) -> str:
    """Damages a copy of the stopped run `base`, reads it, goes on with it; `whole` was never stopped. Returns
    what happened; raises AssertionError for what must not.
    """
    draw, path = random.Random(seed), where / f"run-{seed}"
    shutil.copytree(base, path)
    best = checkpoint.find(base)
    what = f"{seed}: {damage(path, draw)}"
    before = weights_of(path)
    signal.alarm(30)  # nothing waits
    try:
        with heard() as said:
            try:
                found = checkpoint.find(path)
                assert same(found, best) or unusual(said.getvalue(), ""), f"{what}: other weights, silently"
            except engine.RunError as error:
                assert str(error), what
        with heard() as said:
            try:
                opened = open_run(path, "auto", epochs=EPOCHS)
                opened.close()
                after = weights_of(path)
                assert set(before.values()) <= set(after.values()), f"{what}: a whole checkpoint is gone"
                ended = run(path, resume="auto")
            except engine.RunError as error:
                assert str(error) and error.code in (2, 5), f"{what}: {error!r}"
                assert "Traceback" not in str(error)
                return f"{what}: {error}"
        lines = unusual(said.getvalue(), str(path))
        reached = checkpoint.read_last(path)
        equal = same(reached, checkpoint.read_last(whole))
        assert equal, f"{what}: other weights in the end"
        assert untimed(ended.rows()) == untimed(engine.Run(whole, {}).rows()), f"{what}: other rows"
        chosen = checkpoint.find(path)
        assert json.loads((path / "config.json").read_text())["recipe"] == {
            **json.loads((whole / "config.json").read_text())["recipe"]
        }, what
        assert same(chosen, checkpoint.find(whole)) or lines, f"{what}: another best, silently"
        assert str(chosen.state["position"]["epoch"]) in said.getvalue().rsplit("of epoch ", 1)[1], what
        return f"{what}: {lines or 'harmless'}"
    finally:
        signal.alarm(0)
        shutil.rmtree(path, ignore_errors=True)


def no_locks(*_: object) -> None:
    """fcntl.flock where a file system has none."""
    raise OSError(errno.ENOLCK, "No locks available")


def forked(act: Callable[[], int | None], said: Path | None = None) -> int:
    """A process that ends with what `act` returns; what it says on stderr is in `said`."""
    process = os.fork()
    if process == 0:
        signal.alarm(60)
        out, nothing = (os.open(p or os.devnull, os.O_WRONLY | os.O_CREAT, 0o666) for p in (said, None))
        os.dup2(out, 2)
        os.dup2(nothing, 1)
        with os.fdopen(2, "w", closefd=False) as sys.stderr:
            code = act() or 0
        os._exit(code)
    return process


def ended(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def pairs(folder: Path, count: int, locks: bool) -> None:
    """Starts two processes at once that want to train one run: one does, the other says why it does not. In a
    process of its own: threads that computed before do not outlive a fork.
    """
    torch.set_num_threads(1)
    pictures.curves = lambda *_: []
    run(folder / "whole")
    if not locks:
        fcntl.flock = no_locks
    for pair in range(count):
        path, start = folder / f"{pair}", time.monotonic() + 0.02

        def act(path: Path = path, start: float = start) -> int:
            while time.monotonic() < start:
                pass
            return engine.command(lambda: run(path))

        said = [folder / f"{pair}-{i}.txt" for i in (0, 1)]
        codes = [ended(process) for process in [forked(act, name) for name in said]]
        texts = [name.read_text() for name in said]
        assert sorted(codes) == [0, 2], (codes, texts)
        sentence = texts[codes.index(2)]
        assert f"{path} is in use by process " in sentence or f"{path} holds this run already" in sentence
        for found in (checkpoint.find, checkpoint.read_last):
            assert same(found(path), found(folder / "whole")), found
        assert not list(path.glob(".*")) and not list(path.glob("aside-*"))
    print(f"{count} pairs")
