"""From the options of a training to a run that `fit` goes on with, whatever the task."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from torch import nn

from .config import as_json
from .errors import usage
from .loop import Evaluate, Loss
from .processes import Faults, Processes
from .record import Run, reporting
from .record import recorded as recipe_of
from .rng import seed_all
from .sampling import Batches
from .training import Training
from .trial import Step, settled

T = TypeVar("T", bound=Training)


@dataclass(frozen=True)
class Prepared:
    """What a task makes of its options."""

    model: nn.Module
    batches: Batches
    loss: Loss
    evaluate: Evaluate
    choose: str  # the number of `evaluate` that chooses the checkpoint; with an EMA that of its weights
    data: Mapping[str, Any]  # names the data, as `Run.open` takes it
    build: Mapping[str, Any]  # how `load` makes the model and its transform again
    start: Callable[[], None] = lambda: None  # loads weights to start from
    lowest: bool = False
    exempt: Collection[str] = ()  # modules without weight decay where not all have it
    period: int | None = None  # epochs in which a cosine falls, where it rises again
    faults: Faults | None = None
    on_epoch: Callable[[int], None] | None = None
    called: str | None = None  # `choose` in words


class Beginning(NamedTuple, Generic[T]):
    """`fit(*parts, **rules)` trains; `options` are those given, with what "auto" means."""

    options: T
    run: Run
    parts: tuple
    rules: dict[str, Any]


def recorded(t: Training) -> dict[str, Any] | None:
    """The recipe of the run that these options go on with, in today's fields; None of a new one."""
    found = recipe_of(t.runs_dir, t.name or t.recipe, t.resume, not t.name)
    return None if found is None else t.today(found)


def begin(
    t: T, processes: Processes, prepare: Callable[[T], Prepared], trial: Callable[[T], Step]
) -> Beginning[T]:
    """Opens the run that the options mean, and makes what `fit` takes.

    `trial` makes a step with options, as `step_of` does, by which "auto" is settled. What is wrong with the
    command line is a UsageError, which is left in exit.json where the run has a directory.
    """
    where, how = (t.runs_dir, t.name or t.recipe), {"resume": t.resume, "numbered": not t.name}
    with reporting(*where, **how, rank=processes.rank), usage():
        t = settled(t, processes, recorded(t), trial)
        t.set_precision()
        p = prepare(t)
        optimizer = t.optimiser(p.model, p.exempt)
        schedule = t.scheduler(optimizer, len(p.batches), p.period)
        how |= {"free": t.FREE, "data": p.data, "build": p.build, "start": p.start, "processes": processes}
        run = Run.open(*where, as_json(t), today=t.today, **how)
    before = "" if t.ema is None else "ema_"
    if processes.first:
        which = f"{'lowest' if p.lowest else 'highest'} {before}{p.called or p.choose}"
        print(f"{run.path}: the checkpoint of the {which} is the result.", flush=True)
    seed_all(t.seed, processes.rank)
    update = t.update(p.model)
    if t.compile:
        p.model.compile()
    rules = {
        **{"loss": p.loss, "evaluate": p.evaluate, "choose": before + p.choose, "lowest": p.lowest},
        **{"run": run, "epochs": t.epochs, "update": update, "processes": processes, "faults": p.faults},
        **{"save_every": t.save_minutes, "on_epoch": p.on_epoch},
    }
    return Beginning(t, run, (p.model, optimizer, schedule, p.batches), rules)
