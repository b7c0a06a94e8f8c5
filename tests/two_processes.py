"""What tests/test_processes.py starts with `torchrun`: each check returns what it saw in this process.

python -m torch.distributed.run --nproc-per-node 2 tests/two_processes.py FOLDER [hang]
Leaves FOLDER/<rank>.json: {check: what it returned}. It expects FOLDER/one, a run that was stopped.
"""

import copy
import json
import math
import os
import resource
import signal
import sys
import time
import types
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset

from attsnn import _extension, data, engine, models
from attsnn.engine import pictures
from attsnn.engine.loop import Fit
from attsnn.engine.sampling import Share
from attsnn.layers import settle, synchronise
from attsnn.profile import profile

FOLDER = Path(sys.argv[1]) if __name__ == "__main__" else Path()
BACKEND = "reference" if _extension.compiled() is None else "fused"
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


# What one step does, with the whole batch in one process and with a share of it in each of two.


def network(kind: str) -> nn.Module:
    """In float64, without dropout: a network with norms and attention, or one without any."""
    torch.manual_seed(1)
    if kind == "plain":
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8), nn.Tanh(), nn.Linear(8, 5))
        return model.double()
    how = {"steps": 2, "num_classes": 5, "width": 0.125, "dropout": 0.0, "backend": BACKEND}
    return models.create(kind, **how).double()


def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(2)
    return torch.randn(count, 3, 32, 32, generator=draw, dtype=torch.float64), torch.arange(count) % 5


def cross_entropy(model, batch):
    scores = model(batch[0])
    accuracy = (scores.argmax(1) == batch[1]).float().mean()
    return nn.functional.cross_entropy(scores, batch[1]), {"accuracy": accuracy}


def fitted(model, processes, loss=cross_entropy, **update) -> Fit:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1)
    run = types.SimpleNamespace(last=lambda: None)
    return Fit(model, optimizer, schedule, loss, run, engine.Update(**update), processes)


def step(model, processes, count, loss=cross_entropy, **update) -> dict[str, float]:
    """One step of a batch of `count` images; the gradients stay where they are."""
    own = list(range(processes.rank, count, processes.world))
    batch = tuple(x[own] for x in images(count))
    return fitted(model, processes, loss, **update).step(Share(own, count), batch)


def differences(processes, kind: str, count: int, **update) -> dict[str, float]:
    """The largest difference to one process with the whole batch, relative to the tensor's largest value."""
    alone = network(kind)
    shared = synchronise(copy.deepcopy(alone))
    found = step(shared, processes, count, **update), step(alone, engine.Processes(), count, **update)

    def largest(of, tensors):
        pairs = zip(*([tensor.detach() for tensor in tensors(m)] for m in (shared, alone)), strict=True)
        errors = [(a - b).abs().max().item() / max(b.abs().max().item(), 1e-4) for a, b in pairs]
        return {of: max(errors)} if errors else {}

    return {
        **largest("gradients", lambda model: [p.grad for p in model.parameters()]),
        **largest("weights", nn.Module.parameters),
        **largest("statistics", nn.Module.buffers),
        "metrics": max(abs(found[0][name] - value) for name, value in found[1].items()),
    }


@check
def equal_shares(processes):
    return differences(processes, "att_ms_resnet18", 6)


@check
def unequal_shares(processes):
    return differences(processes, "att_ms_resnet18", 7)


@check
def unequal_shares_in_pieces(processes):
    """Three pieces of 4 and of 3 images: as many in both, for the norms meet in each."""
    return differences(processes, "att_ms_resnet18", 7, accumulate=3)


def furthest(a: nn.Module, b: nn.Module) -> float:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max((p.grad - q.grad).abs().max().item() for p, q in pairs)


@check
def pieces_of_a_small_share(processes):
    """Two images and one: no more than one piece, though five are asked for."""
    whole, pieces = network("plain"), network("plain")
    step(whole, engine.Processes(), 3)
    step(pieces, processes, 3, accumulate=5)
    return furthest(whole, pieces)


@check
def accumulated(processes):
    """Without norms the pieces change nothing: against one process in one piece."""
    whole, pieces = network("plain"), network("plain")
    step(whole, engine.Processes(), 7)
    step(pieces, processes, 7, accumulate=3)
    return furthest(whole, pieces)


@check
def not_finite(processes):
    """Loss, or gradient alone, in the second process alone."""

    def spoil(what):
        def loss(model, batch):
            value, metrics = cross_entropy(model, batch)
            if processes.rank == 1 and what == "loss":
                value = value * math.nan
            if processes.rank == 1 and what == "gradient":  # sqrt at 0: the value is 0, its slope is not
                value = value + (0 * next(model.parameters()).sum()).abs().sqrt()
            return value, metrics

        return loss

    seen = {}
    for what in ("loss", "gradient"):
        model = network("plain")
        before = copy.deepcopy(model.state_dict())
        error = raised(lambda what=what, model=model: step(model, processes, 6, spoil(what)))
        kept = all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        seen[what] = {**error, "kept": kept}
    return seen


# Runs of several steps.


class Numbers(Dataset):
    """Noted when loaded: which samples, in which order."""

    def __init__(self, count: int = 32) -> None:
        draw = torch.Generator().manual_seed(3)
        self.x = torch.randn(count, 6, generator=draw, dtype=torch.float64)
        self.labels, self.loaded = torch.arange(count) % 4, []

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, key):
        self.loaded.append(key[0])
        return self.x[key[0]], self.labels[key[0]]


class Small(nn.Module):
    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(6, 16), nn.Linear(16, 4)
        self.norm = nn.BatchNorm1d(16) if norm else nn.Identity()

    def forward(self, x):
        return self.out(self.norm(self.hidden(x)).relu())


STEPS_AN_EPOCH, EPOCHS = 5, 2  # of batches of 7: the last has 4


def train(
    path, processes, *, loss=cross_entropy, evaluate=None, resume=None, norm=False, numbers=None, **rules
):
    """A run of two epochs; returns its model."""
    torch.manual_seed(5)
    model = Small(norm).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    numbers = numbers or Numbers()
    share = {"rank": processes.rank, "world": processes.world}
    batches = engine.Batches(numbers, 7, 0, key=lambda i, s: (i, s), **share)
    plan = engine.cosine(optimizer, EPOCHS * len(batches))
    run = engine.Run.open(path.parent, path.name, {}, resume=resume, processes=processes)
    evaluate = evaluate or (lambda model, poll: poll() or {"val_accuracy": 0.5})
    task = {"loss": loss, "evaluate": evaluate, "choose": "val_accuracy"}
    engine.fit(model, optimizer, plan, batches, **task, run=run, epochs=EPOCHS, processes=processes, **rules)
    return model


def at_call(number, action):
    """A loss that does something before its call `number`, from 1."""
    calls = 0

    def loss(model, batch):
        nonlocal calls
        calls += 1
        if calls == number:
            action()
        return cross_entropy(model, batch)

    return loss


def raised(action) -> dict:
    """What an action raises."""
    try:
        action()
    except Exception as error:
        return {"type": type(error).__name__, "code": getattr(error, "code", None), "said": str(error)}
    return {"type": None}


def signalled(processes, rank: int = 1):
    return lambda: os.kill(os.getpid(), signal.SIGTERM) if processes.rank == rank else None


@check
def stops(processes):
    """SIGTERM in the second process alone: before, and after, the flags of step 3 were summed."""

    class Late(engine.Processes):
        armed = False

        def sum(self, values):
            super().sum(values)
            if Late.armed:
                Late.armed = False
                signalled(self)()
            return values

    late = Late(processes.rank, processes.world, processes.device)
    early = at_call(3, signalled(processes))
    behind = at_call(3, lambda: setattr(Late, "armed", True))
    return {
        "before": raised(lambda: train(FOLDER / "before", processes, loss=early)),
        "after": raised(lambda: train(FOLDER / "after", late, loss=behind)),
    }


@check
def stops_in_the_evaluation(processes):
    """Before, and after, the last time that it asks."""

    def evaluate(ask, model, poll):
        signalled(processes)()
        ask and poll()
        return {"val_accuracy": 0.5}

    seen = {}
    for name, ask in (("asked", True), ("not asked", False)):
        do = lambda name=name, ask=ask: train(FOLDER / name, processes, evaluate=lambda *a: evaluate(ask, *a))  # noqa: E731
        seen[name] = raised(do)
    return seen


@check
def writes(processes):
    """The paths below the run that this process opened to write, made or renamed."""
    written, watching = [], True

    def watch(event, arguments):
        if not watching or event not in ("open", "os.mkdir", "os.rename"):
            return
        path = str(arguments[0])
        reads = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if path.startswith(str(FOLDER / "writes")) and not reads:
            written.append(Path(path).name)

    sys.addaudithook(watch)
    train(FOLDER / "writes", processes, save_every=0)
    watching = False
    return written


@check
def statistics_of_the_first(processes):
    """Of norms that are not synchronised: at the end of an epoch, and in its evaluation."""
    seen = {"trained": [], "evaluated": []}

    def loss(model, batch):
        result = cross_entropy(model, batch)
        seen["trained"].append(model.module.norm.running_mean.tolist())
        return result

    def evaluate(model, poll):
        seen["evaluated"].append(model.norm.running_mean.tolist())
        return {"val_accuracy": 0.5}

    train(FOLDER / "statistics", processes, loss=loss, evaluate=evaluate, norm=True)
    return {"trained": seen["trained"][STEPS_AN_EPOCH - 1], "evaluated": seen["evaluated"][0]}


def limited():
    """No file may grow beyond 300 bytes: a disk that is full in the middle of one."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@check
def full_disk(processes):
    """Of the first process, where it saves within an epoch and where it records one."""
    first = lambda: limited() if processes.first else None  # noqa: E731
    calls = []

    def evaluate(model, poll):
        calls.append(1)
        if len(calls) == 2:
            first()
        return {"val_accuracy": 0.5}

    seen = {}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    saving = {"loss": at_call(3, first), "save_every": 0}
    for name, how in (("saving", saving), ("recording", {"evaluate": evaluate})):
        seen[name] = raised(lambda name=name, how=how: train(FOLDER / name, processes, **how))
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    return seen


@check
def goes_on_from_one_process(processes):
    """`one` was stopped by one process."""
    numbers = Numbers()
    model = train(FOLDER / "one", processes, resume="auto", numbers=numbers)
    return {"loaded": numbers.loaded, "weights": [p.flatten().tolist() for p in model.parameters()]}


@check
def stopped_for_one_process(processes):
    numbers = Numbers()
    loss = at_call(7, signalled(processes, 0))
    error = raised(lambda: train(FOLDER / "two", processes, loss=loss, numbers=numbers))
    return {**error, "loaded": numbers.loaded}


# What the processes tell each other.


@check
def counts(processes):
    """Seven samples in batches of three: two in the first process, one in the second."""
    model = Small().double().requires_grad_(False)
    torch.manual_seed(6)
    model.load_state_dict({k: torch.randn_like(v) for k, v in model.state_dict().items()})
    samples = [data.Sample(x, int(y), {}) for x, y in zip(Numbers(7).x, Numbers(7).labels, strict=True)]
    samples[5] = data.Sample(None, 3, {"five": "five: is cut short"})  # of the second process, left out
    bad = data.BadImages(5, report=False)
    share = {"rank": processes.rank, "world": processes.world}
    loader = engine.in_order(samples, 3, collate=data.collate, **share)
    scores = engine.top_k(model, loader, processes, faults=bad)
    whole = engine.in_order(samples, 7, collate=data.collate)
    alone = engine.top_k(model, whole, faults=data.BadImages(5, report=False))
    limited = engine.top_k(model, loader, processes, limit=1, faults=bad)
    return {"together": vars(scores), "alone": vars(alone), "bad": bad.reasons, "limited": limited.samples}


@check
def profiled(processes):
    """Five images and two: the sum of both profiles is that of all seven in one process."""
    model, (x, _) = network("att_ms_resnet18").eval(), images(7)
    wrapped = nn.parallel.DistributedDataParallel(model)
    share = x[:5] if processes.first else x[5:]
    with torch.no_grad(), profile(wrapped) as own:
        wrapped(share)
    with torch.no_grad(), profile(model) as whole:
        model(x)
    found = own.sum_over_processes()
    return [found.as_dict(), whole.as_dict(), own.samples]


@check
def settled(processes):
    """Two batches in each process, of 3 and 1 images and of 2 and 1: of the first norm, whose input hangs on
    no other, the error to all in one batch; of a later one the mean. Norms of their own, and shared ones.
    """
    (x, _), found = images(7), {}
    for kind in ("own", "shared"):
        model = network("att_ms_resnet18")
        stem, first = copy.deepcopy(model.stem.current), model.stages[0][0].first
        model = synchronise(model) if kind == "shared" else model
        settle(model, [x[:3], x[3:4]] if processes.first else [x[4:6], x[6:]])
        z = stem(x).transpose(0, 1).flatten(1)
        n = z.shape[1]
        want = z.mean(1), z.var(1, correction=0) * (2 * n / (2 * n - 1))
        got = model.stem.norm.running_mean, model.stem.norm.running_var
        errors = [(a - b).abs().max().item() for a, b in zip(got, want, strict=True)]
        found[kind] = [*errors, first.norm.running_mean.tolist()]
    return found


@check
def errors_of_the_first(processes):
    errors = {
        "data": data.DataError("a"),
        "format": data.DataFormatError("is cut short", path="b.JPEG", offset=7),
        "checkpoint": engine.CheckpointError("c"),
        "usage": engine.UsageError("d"),
        "stopped": engine.StoppedError(signal.SIGTERM, "e"),
        "stopped in the set-up": engine.StoppedError(signal.SIGTERM),
        "system": OSError(28, "No space left on device", "f"),
    }

    def throw(error):
        raise error

    seen = {name: raised(lambda e=e: processes.from_first(lambda: throw(e))) for name, e in errors.items()}
    return {**seen, "value": processes.from_first(lambda: processes.rank)}


@check
def faults(processes):
    """Each process met two bad images, one of them both."""
    noted = [{"a": "a: bad", "b": "b: bad"}, {"b": "b: bad", "c": "c: bad"}][processes.rank]
    seen = {}
    for most in (3, 2):
        bad = data.BadImages(most, report=False)
        bad.take((None, None, noted))
        seen[str(most)] = {**raised(lambda bad=bad: processes.count(bad)), "names": sorted(bad.reasons)}
    return seen


# What becomes of a process that is left alone.


def hangs(processes):
    """The second one does not answer until the first has given up."""

    def wait():
        while processes.rank == 1 and not (FOLDER / "hangs" / "exit.json").exists():
            time.sleep(0.05)

    train(FOLDER / "hangs", processes, loss=at_call(3, wait))


def main() -> None:
    """FOLDER: all checks; FOLDER hang: the last one alone, with a timeout of 4 seconds."""
    pictures.curves = lambda *_: []  # half of the time
    hang = sys.argv[2:] == ["hang"]
    with engine.processes("cpu", threads=1, timeout=4 if hang else 60) as processes:
        if hang:
            hangs(processes)
        seen = {function.__name__: function(processes) for function in CHECKS}
        (FOLDER / f"{processes.rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    ended = engine.command(main)
    sys.stdout.flush()
    sys.stderr.flush()
    # DistributedDataParallel of torch 2.13 keeps gloo's threads beyond destroy_process_group; one of them
    # that is late when the interpreter ends aborts it ("terminate called without an active exception").
    os._exit(ended)
