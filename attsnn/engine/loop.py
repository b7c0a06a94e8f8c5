"""The training loop. Tasks differ only in the functions that they pass, such as the
loss and the evaluation.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from . import checkpoint, rng
from .errors import CheckpointError, NonFiniteError, StoppedError
from .inside import Inside, Rates
from .lineage import better
from .processes import Faults, Processes
from .progress import Progress
from .record import Run
from .sampling import Batches, Share
from .stop import StopRequest
from .update import Update

Loss = Callable[[nn.Module, Any], tuple[Tensor, Mapping[str, Tensor]]]
Evaluate = Callable[[nn.Module, Callable[[], None]], Mapping[str, float | None]]


@dataclass
class Position:
    """Where a run stands: all that the loop itself must remember to continue from a checkpoint."""

    epoch: int = 0  # epochs trained, evaluated and recorded
    batch: int = 0  # batches taken of the next epoch
    step: int = 0  # optimiser steps in all
    samples: int = 0  # samples taken in the epoch
    lr: float | None = None  # learning rate of the last step
    sums: dict[str, float] = field(default_factory=dict)  # sample-weighted sums of its metrics
    rates: dict[str, float] = field(default_factory=dict)  # of the layers, in the epoch's last step
    best: float | None = None

    def count(self, metrics: Mapping[str, float], samples: int) -> None:
        """Enters one step."""
        self.batch, self.step, self.samples = self.batch + 1, self.step + 1, self.samples + samples
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * samples

    def means(self) -> dict[str, float]:
        """The metrics of the epoch so far, as means over its samples."""
        return {name: total / max(self.samples, 1) for name, total in self.sums.items()}

    def close_epoch(self) -> None:
        """Moves on to the next epoch."""
        self.epoch, self.batch, self.samples, self.sums, self.rates = self.epoch + 1, 0, 0, {}, {}


@dataclass
class Fit:
    """A training run in progress: what a step changes, and what a checkpoint holds."""

    model: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler
    loss: Loss
    run: Run
    update: Update = field(default_factory=Update)
    processes: Processes = field(default_factory=Processes)
    stop: StopRequest = field(default_factory=lambda: StopRequest(Processes()))
    faults: Faults | None = None
    save_every: float = math.inf  # minutes
    inside: Inside | None = None
    settle: int = 0  # batches before an evaluation
    position: Position = field(default_factory=Position)
    saved: tuple[int, int] | None = None  # (epoch, batch) of the last checkpoint written
    due: bool = False  # whether the first process wants a checkpoint
    said: frozenset[str] = frozenset()  # the kinds of findings that are known already
    news: list[str] = field(default_factory=list)  # sentences of findings that are new in this epoch

    def __post_init__(self) -> None:
        self.shared = self.processes.share(self.model)
        self.saved_at = time.monotonic()

    def restore(self) -> None:
        """Goes back to the run's checkpoint if the run was resumed from one."""
        saved = self.run.checkpoint
        if saved is None:
            return
        try:
            self.model.load_state_dict(saved.model)
            self.optimizer.load_state_dict(saved.optimizer)
            self.schedule.load_state_dict(saved.state["schedule"])
            self.update.restore(saved)
            self.position = Position(**saved.state["position"])
            if "best" in self.run.known:  # the best of those that exist, not of lost ones
                self.position.best = self.run.known["best"]
            self._restore_rng(saved.state["rng"])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{saved.path} does not fit this model or optimiser: {error}") from error

    def _restore_rng(self, states: list[dict[str, Any]]) -> None:
        """Restores each process's generators. Processes that are new start from their own draws."""
        own, world = self.processes.rank, self.processes.world
        if own < len(states):
            rng.restore(states[own])
        else:
            rng.seed_all(self.position.step, own)
        if self.processes.first and len(states) != world:
            print(
                f"The run had {len(states)} processes and goes on with {world}: what dropout draws differs."
            )

    def check(self) -> None:
        """Raises NonFiniteError if a checkpoint of this moment would hold a number that is not finite."""
        states = self.model.state_dict(), self.optimizer.state_dict(), self.update.averaged()
        checkpoint.check_finite(self.run.path, self.position.step, *states)

    def save(self, measured: Mapping[str, Any] | None = None, best: bool = False) -> None:
        """Writes a checkpoint of this moment. `measured`: what was measured of it, as lineage.py takes it."""
        state = {
            "position": dataclasses.asdict(self.position),
            "measured": measured,
            "schedule": self.schedule.state_dict(),
            "rng": self.processes.gather(rng.capture()),
            **self.update.state(),
        }
        model, optimizer = self.model.state_dict(), self.optimizer.state_dict()
        averaged = self.update.averaged()
        self.processes.from_first(
            lambda: self.run.save(self.position.step, model, optimizer, state, best, averaged)
        )
        self.saved, self.saved_at = (self.position.epoch, self.position.batch), time.monotonic()

    @contextlib.contextmanager
    def watching(self, wanted: bool) -> Iterator[None]:
        """Inside, records the layers' rates, for this process's share."""
        if self.inside is None or not wanted:
            yield
            return
        with self.inside.rates(self.model) as rates:
            yield
        self.position.rates = dict(rates)

    def health(self, evaluation: Rates | None) -> dict[str, str]:
        """What the rates say, as {"health": ...}; empty if nothing is wrong."""
        if self.inside is None or not evaluation or not self.position.rates:
            return {}
        found = self.inside.sentences(self.position.rates, evaluation)
        self.news = [sentence for kind, sentence in found.items() if kind not in self.said]
        self.said = frozenset(found)
        return {"health": " ".join(found.values())} if found else {}

    def step(self, share: Share, batch: Any) -> dict[str, float]:
        """One update. Returns its metrics; raises NonFiniteError, before any weight has changed."""
        self.optimizer.zero_grad(set_to_none=True)
        sums: Tensor | None = None
        # Equally many in every process, because synchronised norms meet in each piece.
        count = min(self.update.accumulate, share.total // self.processes.world)
        pieces = _pieces(batch, len(share.indices), count)
        for i, (piece, count) in enumerate(pieces):
            with contextlib.ExitStack() as stack:
                if self.shared is not self.model and i + 1 < len(pieces):
                    stack.enter_context(cast(DistributedDataParallel, self.shared).no_sync())
                loss, metrics = self.loss(self.shared, piece)
                # The mean over all samples, however they are divided into processes and pieces.
                self.update.backward(loss * (count * self.processes.world / share.total))
            row = count * torch.stack([v.detach().double() for v in (loss, *metrics.values())])
            sums = row if sums is None else sums + row
        assert sums is not None
        names = ("loss", *metrics)
        values, norm = self._read(sums, self.update.gradient_norm(self.optimizer, self.model))
        means = {name: value / share.total for name, value in zip(names, values, strict=True)}
        if not (math.isfinite(means["loss"]) and self.update.accepts(norm)):
            raise NonFiniteError(self._not_finite(means["loss"], norm, share.indices))
        self.update.apply(self.optimizer, self.model, norm)
        self.position.lr = float(self.optimizer.param_groups[0]["lr"])
        if not isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step()
        return means

    def _read(self, sums: Tensor, norm: Tensor) -> tuple[list[float], float]:
        """Waits for the device and the other processes, which happens only here in a step.

        Returns the sums of loss and metrics over all processes, and the norm, which is NaN everywhere if it
        is NaN in one process.
        """
        due = self.processes.first and time.monotonic() - self.saved_at > 60 * self.save_every
        beside = [*self.stop.flags(), self.faults is not None and bool(self.faults.noted), due]
        row = torch.cat([sums, norm.double().view(1) / self.processes.world, sums.new_tensor(beside)])
        *values, norm_value, interrupts, terminations, faults, due = self.processes.sum(row).tolist()
        self.stop.settle((interrupts, terminations))
        self.due = due > 0
        if self.faults is not None and faults > 0:
            self.processes.count(self.faults)
        return values, norm_value

    def _not_finite(self, loss: float, norm: float, indices: list[int]) -> str:
        saved = self.run.last()
        return (
            f"Stopped before the update of step {self.position.step + 1} (epoch {self.position.epoch + 1}, "
            f"batch {self.position.batch + 1}): the loss is {loss:g}, the gradient norm {norm:g}. "
            f"The batch holds the training samples {', '.join(map(str, indices))}. "
            + (f"The last checkpoint is {saved}." if saved else "There is no checkpoint yet.")
        )


def fit(
    model: nn.Module,
    optimizer: Optimizer,
    schedule: LRScheduler,
    batches: Batches,
    *,
    loss: Loss,
    evaluate: Evaluate,
    run: Run,
    epochs: int,
    choose: str,
    lowest: bool = False,
    on_epoch: Callable[[int], None] | None = None,
    update: Update | None = None,
    processes: Processes | None = None,
    faults: Faults | None = None,
    save_every: float = math.inf,
    inside: Inside | None = None,
    settle: int = 0,
) -> None:
    """Trains until `epochs` epochs are done, from the start or from the checkpoint in `run.checkpoint`.

    Args:
        model: the network.
        optimizer: its optimiser.
        schedule: ReduceLROnPlateau steps once an epoch, on the mean training loss; any other schedule steps
            once a step.
        batches: the training batches.
        loss: (model, batch on the model's device) -> (mean over the batch to minimise, further scalars to
            report).
        evaluate: called after each epoch with the model and a function `poll`. It calls `poll` now and then,
            which raises if the run is to stop. Its numbers (None: not measured) are recorded as they are.
        run: the run directory.
        epochs: the number of epochs in all.
        choose: the name of the evaluated number whose highest value makes a checkpoint `best`.
        lowest: its lowest value makes a checkpoint `best`; for a loss, for example.
        on_epoch: called with the number of an epoch, from 0, before its batches are taken.
        update: clipping, accumulation, mixed precision, averaged weights; default: none of them.
        processes: the processes that share the batches; default: this one alone.
        faults: reads the batches, counts unreadable samples, and ends the run if there are too many.
        save_every: minutes between checkpoints within an epoch.
        inside: sees the layers' rates in the last step of an epoch and in the evaluation, and reports what is
            wrong with them. New findings are printed, all are recorded as `health`.
        settle: before each evaluation, `inside` sets the running statistics of all norms from this many
            batches of the epoch.

    Raises:
        NonFiniteError: the loss or the gradient norm is not finite; no weight has changed. Or, after an epoch
            or when saving, a weight or a number of the optimiser is not; nothing is saved.
        StoppedError: SIGINT or SIGTERM arrived; the step was finished and everything saved.
        CheckpointError: a checkpoint could not be written, or does not fit.
        ValueError: `settle` was given without `inside`.
    """
    if settle and inside is None:
        raise ValueError("settle: give `inside`, which knows the norms")
    processes = processes or Processes()
    with run.outcome(), StopRequest(processes) as stop, processes.explained():
        update = update or Update()
        parts = model, optimizer, schedule, loss, run, update, processes, stop, faults, save_every
        state = Fit(*parts, inside, settle)
        state.restore()
        processes.from_first(lambda: run.rewind(state.position.epoch))
        while state.position.epoch < epochs:
            if on_epoch is not None:
                on_epoch(state.position.epoch)
            started, from_sample = time.perf_counter(), state.position.samples
            waited = _train_epoch(state, batches, epochs)
            seconds = time.perf_counter() - started
            speed = (state.position.samples - from_sample) / seconds
            began = time.perf_counter()
            measured = _evaluate(state, evaluate, batches)
            evaluating = time.perf_counter() - began
            if isinstance(schedule, ReduceLROnPlateau):
                schedule.step(state.position.means()["loss"])
            pace = {"seconds": seconds, "samples_per_second": speed, "waiting_for_data": waited / seconds}
            # Not from this epoch's seconds: a resumed run may have trained only a part of it, or nothing.
            whole = batches.size / speed + evaluating if speed else None
            left = None if whole is None else (epochs - state.position.epoch - 1) * whole
            _close_epoch(state, measured, (choose, lowest), pace, epochs, left)
            stop.agree()
            _answer(state)
        if processes.first:
            print(run.conclusion(choose, lowest), flush=True)


def _train_epoch(state: Fit, batches: Batches, epochs: int) -> float:
    """Trains on the remaining batches of the epoch; returns the seconds spent waiting for them."""
    state.model.train()
    position, stop = state.position, state.stop
    title = f"epoch {position.epoch + 1}/{epochs}"
    with Progress(title, batches.size, position.samples, quiet=not state.processes.first) as progress:
        waiting = _Waiting(batches.epoch(position.epoch, position.batch))
        for share, batch in waiting:
            batch = batch if state.faults is None else state.faults.take(batch)
            with state.watching(position.batch + 1 == len(batches)):
                position.count(state.step(share, _to(batch, state.processes.device)), share.total)
            progress.update(share.total, position.means(), waiting.seconds)
            if stop.number is not None:
                break
            if state.due:
                state.save()
    _answer(state)
    return waiting.seconds


class _Waiting:
    """An iterator that records the seconds spent waiting for its items."""

    def __init__(self, items: Iterator[tuple[Share, Any]]) -> None:
        self._items, self.seconds = items, 0.0

    def __iter__(self) -> "_Waiting":
        return self

    def __next__(self) -> tuple[Share, Any]:
        began = time.perf_counter()
        try:
            return next(self._items)
        finally:
            self.seconds += time.perf_counter() - began


def _evaluate(state: Fit, evaluate: Evaluate, batches: Batches) -> Mapping[str, Any]:
    """Evaluates without touching the random generators. If interrupted, it is repeated after resuming."""
    try:
        with rng.kept(), state.stop.at_once():
            _settle(state, state.model, batches)
            state.processes.align(state.model)
            state.check()
            with (
                contextlib.nullcontext() if state.inside is None else state.inside.rates(state.model) as rates
            ):
                measured: Mapping[str, Any] = evaluate(state.model.eval(), state.stop.poll)
            measured = {**measured, **state.health(rates)}
            if state.update.ema is None:
                return measured
            _settle(state, state.update.ema.module, batches)
            state.processes.align(state.update.ema.module)
            averaged = evaluate(state.update.ema.module.eval(), state.stop.poll)
            return {**measured, **{f"ema_{name}": value for name, value in averaged.items()}}
    except StoppedError:
        _answer(state)
        raise


def _settle(state: Fit, model: nn.Module, batches: Batches) -> None:
    """Gives the norms the statistics of the first batches of the epoch."""
    if not state.settle:
        return
    assert state.inside is not None  # otherwise `fit` has raised

    def first() -> Iterator[Any]:
        for _, batch in batches.epoch(state.position.epoch, 0, state.settle):
            state.stop.poll()
            batch = batch if state.faults is None else state.faults.take(batch)
            yield _to(batch, state.processes.device)

    state.inside.settle(model, first(), lambda model, batch: state.loss(model, batch))


def _close_epoch(
    state: Fit,
    measured: Mapping[str, float | None],
    choose: tuple[str, bool],
    speed: Mapping[str, float],
    epochs: int,
    left: float | None,
) -> None:
    """Records the epoch and saves."""
    position = state.position
    row = {
        "epoch": position.epoch + 1,
        "step": position.step,
        **{f"train_{name}": mean for name, mean in position.means().items()},
        **measured,
        "lr": position.lr,
        **speed,
    }
    name, lowest = choose
    value = measured[name]
    best = better(value, position.best, lowest)
    if best:
        position.best = value
    position.close_epoch()
    state.processes.from_first(lambda: state.run.record(row, epochs, left))
    for sentence in state.news if state.processes.first else ():
        print(f"health: {sentence}", flush=True)
    state.news = []
    state.save({"name": name, "value": value, "lowest": lowest}, best)


def _answer(state: Fit) -> None:
    """Saves and raises StoppedError if a signal has asked for it."""
    stop = state.stop
    if stop.number is None:
        return
    if state.saved != (state.position.epoch, state.position.batch):
        state.save()
    raise StoppedError(
        stop.number,
        f"Stopped by signal {stop.number} after step {state.position.step}; saved {state.run.last()}. "
        "Go on with --resume auto.",
    )


def _pieces(batch: Any, count: int, pieces: int) -> list[tuple[Any, int]]:
    """(part, its samples) of a batch cut along its first dimension into `pieces`."""
    if pieces == 1:
        return [(batch, count)]
    cuts = pairwise(count * i // pieces for i in range(pieces + 1))
    return [(_map(lambda tensor: tensor[a:b], batch), b - a) for a, b in cuts]  # noqa: B023


def _to(batch: Any, device: torch.device) -> Any:
    """Moves the tensors of a tuple, list or dict to the device."""
    return _map(lambda tensor: tensor.to(device, non_blocking=True), batch)


def _map(change: Callable[[Tensor], Tensor], batch: Any) -> Any:
    if torch.is_tensor(batch):
        return change(batch)
    if isinstance(batch, Mapping):
        return {name: _map(change, value) for name, value in batch.items()}
    return type(batch)(_map(change, value) for value in batch)
