"""From the options of a training to a run that `fit` can continue, for any task."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .config import as_json
from .errors import usage
from .inside import Inside
from .loop import Evaluate, Loss
from .opening import recorded as recipe_of
from .opening import reporting
from .processes import Faults, Processes
from .record import Run
from .rng import seed_all
from .sampling import Batches
from .training import Training
from .trial import Step, settled

T = TypeVar("T", bound=Training)


@dataclass(frozen=True)
class Prepared:
    """What a task makes of its options, for `begin`.

    Args:
        model: the network.
        batches: the training batches.
        loss, evaluate, lowest, faults, on_epoch: see `fit`.
        choose: the name of the number, among those of `evaluate`, that chooses the checkpoint. With an EMA,
            the number measured on the averaged weights is used.
        data: names the data, as `Run.open` takes it.
        build: how `load` makes the model and its transform again.
        start: loads weights to start from.
        exempt: names of modules without weight decay, if `decay_all` is off.
        period: the epochs in which a cosine falls, if it rises again.
        inside: looks into the network.
        called: `choose` in words.
        bits: as `Run.open` takes them, in addition to `Training.bits`.
    """

    model: nn.Module
    batches: Batches
    loss: Loss
    evaluate: Evaluate
    choose: str
    data: Mapping[str, Any]
    build: Mapping[str, Any]
    start: Callable[[], None] = lambda: None
    lowest: bool = False
    exempt: Collection[str] = ()
    period: int | None = None
    faults: Faults | None = None
    on_epoch: Callable[[int], None] | None = None
    inside: Inside | None = None
    called: str | None = None
    bits: Mapping[str, Any] = field(default_factory=dict)


class Beginning(NamedTuple, Generic[T]):
    """A run that is ready to train: `fit(*parts, **rules)` trains it.

    Use it as a context around all that a command does with its run: exit.json then says how all of that
    ended.

    Args:
        options: the given options, with "auto" replaced by what it stands for.
        run: the open run directory.
        parts: (model, optimizer, schedule, batches).
        rules: keywords of `fit`.
    """

    options: T
    run: Run
    parts: tuple[nn.Module, Optimizer, LRScheduler, Batches]
    rules: dict[str, Any]

    def __enter__(self) -> "Beginning[T]":
        self.run.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.run.__exit__(*error)


def recorded(t: Training) -> dict[str, Any] | None:
    """The recipe of the run that these options continue, in today's fields; None for a new run."""
    found = recipe_of(t.runs_dir, t.name or t.recipe, t.resume, not t.name)
    return None if found is None else t.today(found)


def begin(
    t: T, processes: Processes, prepare: Callable[[T], Prepared], trial: Callable[[T], Step]
) -> Beginning[T]:
    """Opens the run that the options mean, and makes what `fit` takes.

    Args:
        t: the options.
        processes: the processes of the run.
        prepare: makes of the options what the task needs; "auto" is settled by then.
        trial: makes a training step with options, as `step_of` does; "auto" is settled by it.

    Raises:
        UsageError: the command line is wrong. If the run has a directory, its exit.json says so, too.
    """
    where = t.runs_dir, t.name or t.recipe
    how: dict[str, Any] = {"resume": t.resume, "numbered": not t.name}
    with reporting(*where, **how, rank=processes.rank), usage():
        t = settled(t, processes, recorded(t), trial)
        t.set_precision()
        p = prepare(t)
        optimizer = t.optimiser(p.model, p.exempt)
        schedule = t.scheduler(optimizer, len(p.batches), p.period)
        how |= {"free": t.FREE, "data": p.data, "build": p.build, "start": p.start, "processes": processes}
        how |= {"bits": {**t.bits(processes.device), **p.bits}, "today": t.today}
        run = Run.open(*where, as_json(t), **how)
    with run.failing():
        return _beginning(t, processes, p, run, optimizer, schedule)


def _beginning(
    t: T, processes: Processes, p: Prepared, run: Run, optimizer: Optimizer, schedule: LRScheduler
) -> Beginning[T]:
    before = "" if t.ema is None else "ema_"
    if processes.first:
        which = f"{'lowest' if p.lowest else 'highest'} {before}{p.called or p.choose}"
        print(f"{run.path}: the checkpoint of the {which} is the result.", flush=True)
    seed_all(t.seed, processes.rank)
    update = t.update(p.model)
    inside = p.inside
    if t.compile:
        p.model.compile()
        inside = None
        if p.inside is not None and processes.first:
            print("--compile: firing rates of the layers are not watched, so no health warnings appear.")
    rules = {
        **{"loss": p.loss, "evaluate": p.evaluate, "choose": before + p.choose, "lowest": p.lowest},
        **{"run": run, "epochs": t.epochs, "update": update, "processes": processes, "faults": p.faults},
        **{"save_every": t.save_minutes, "on_epoch": p.on_epoch, "inside": inside, "settle": t.settle},
    }
    return Beginning(t, run, (p.model, optimizer, schedule, p.batches), rules)
