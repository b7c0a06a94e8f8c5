"""The training loop. Tasks differ in the functions they pass: the loss, the evaluation; never in here."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from . import rng
from .errors import CheckpointError, NonFiniteError, StoppedError
from .progress import Progress
from .record import Run
from .sampling import Batches
from .stop import StopRequest

Loss = Callable[[nn.Module, Any], tuple[Tensor, Mapping[str, Tensor]]]
Evaluate = Callable[[nn.Module], Mapping[str, float | None]]


@dataclass
class Position:
    """Where a run stands: all that the loop itself must remember to go on from a checkpoint."""

    epoch: int = 0  # epochs trained, evaluated and recorded
    batch: int = 0  # batches taken of the next one
    step: int = 0  # optimiser steps in all
    samples: int = 0  # samples taken in the epoch
    sums: dict[str, float] = field(default_factory=dict)  # sample-weighted sums of its metrics
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
        self.epoch, self.batch, self.samples, self.sums = self.epoch + 1, 0, 0, {}


@dataclass
class Fit:
    """A training run in progress: what a step changes, and what a checkpoint holds."""

    model: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler
    loss: Loss
    run: Run
    position: Position = field(default_factory=Position)
    saved: tuple[int, int] | None = None  # (epoch, batch) of the last checkpoint written

    def restore(self) -> None:
        """Goes back to the run's checkpoint, if it was resumed from one."""
        saved = self.run.checkpoint
        if saved is None:
            return
        try:
            self.model.load_state_dict(saved.model)
            self.optimizer.load_state_dict(saved.optimizer)
            self.schedule.load_state_dict(saved.state["schedule"])
            self.position = Position(**saved.state["position"])
            rng.restore(saved.state["rng"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{saved.path} does not fit this model or optimiser: {error}") from error

    def save(self, best: bool = False) -> None:
        """Writes a checkpoint of this moment."""
        state = {
            "position": dataclasses.asdict(self.position),
            "schedule": self.schedule.state_dict(),
            "rng": rng.capture(),
        }
        self.run.save(self.position.step, self.model.state_dict(), self.optimizer.state_dict(), state, best)
        self.saved = self.position.epoch, self.position.batch

    def step(self, indices: list[int], batch: Any) -> dict[str, float]:
        """One update. Returns its metrics; raises NonFiniteError, before any weight has changed."""
        self.optimizer.zero_grad(set_to_none=True)
        loss, metrics = self.loss(self.model, batch)
        loss.backward()
        norm = torch.nn.utils.get_total_norm(p.grad for p in self.model.parameters() if p.grad is not None)
        values = self._read(loss, norm, *metrics.values())
        if not (math.isfinite(values[0]) and math.isfinite(values[1])):
            raise NonFiniteError(self._not_finite(values, indices))
        self.optimizer.step()
        if not isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step()
        return {"loss": values[0], **dict(zip(metrics, values[2:], strict=True))}

    @staticmethod
    def _read(*scalars: Tensor) -> list[float]:
        """The step's only wait for the device: loss, gradient norm and metrics in one copy."""
        return torch.stack([scalar.detach().double() for scalar in scalars]).tolist()

    def _not_finite(self, values: list[float], indices: list[int]) -> str:
        saved = self.run.last()
        return (
            f"Stopped before the update of step {self.position.step + 1} (epoch {self.position.epoch + 1}, "
            f"batch {self.position.batch + 1}): the loss is {values[0]:g}, the gradient norm {values[1]:g}. "
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
) -> None:
    """Trains until `epochs` epochs are done, from the start or from the checkpoint `run` was opened with.

    Args:
        schedule: ReduceLROnPlateau steps once an epoch on the mean training loss, any other once a step.
        loss: (model, batch on the model's device) -> (scalar to minimise, further scalars to report).
        evaluate: called after each epoch; its numbers (None: not measured) are recorded as they are.
        choose: the evaluated number whose highest value makes a checkpoint `best`.

    Raises:
        NonFiniteError: loss or gradient norm is not finite; no weight has changed.
        StoppedError: SIGINT or SIGTERM; the step was finished and everything saved.
        CheckpointError: a checkpoint could not be written, or does not fit.
    """
    state = Fit(model, optimizer, schedule, loss, run)
    state.restore()
    run.rewind(state.position.epoch)
    with StopRequest() as stop:
        while state.position.epoch < epochs:
            started, from_sample = time.perf_counter(), state.position.samples
            _train_epoch(state, batches, epochs, stop)
            seconds = time.perf_counter() - started
            speed = (state.position.samples - from_sample) / seconds
            measured = _evaluate(state, evaluate, stop)
            if isinstance(schedule, ReduceLROnPlateau):
                schedule.step(state.position.means()["loss"])
            _close_epoch(state, measured, choose, {"seconds": seconds, "samples_per_second": speed}, epochs)
            _answer(state, stop)


def _train_epoch(state: Fit, batches: Batches, epochs: int, stop: StopRequest) -> None:
    """The batches of the epoch that are still to be taken."""
    state.model.train()
    device = next(state.model.parameters()).device
    position = state.position
    title = f"epoch {position.epoch + 1}/{epochs}"
    with Progress(title, batches.size, position.samples) as progress:
        for indices, batch in batches.epoch(position.epoch, position.batch):
            position.count(state.step(indices, _to(batch, device)), len(indices))
            progress.update(len(indices), position.means())
            if stop.number is not None:
                break
    _answer(state, stop)


def _evaluate(state: Fit, evaluate: Evaluate, stop: StopRequest) -> Mapping[str, float | None]:
    """Evaluates without touching the random generators; interrupted, it is done again after resuming."""
    try:
        with rng.kept(), stop.at_once():
            state.model.eval()
            return evaluate(state.model)
    except StoppedError:
        _answer(state, stop)
        raise


def _close_epoch(
    state: Fit, measured: Mapping[str, float | None], choose: str, speed: Mapping[str, float], epochs: int
) -> None:
    """Records the epoch and saves."""
    position = state.position
    row = {
        "epoch": position.epoch + 1,
        "step": position.step,
        **{f"train_{name}": mean for name, mean in position.means().items()},
        **measured,
        "lr": state.optimizer.param_groups[0]["lr"],
        **speed,
    }
    best = position.best is None or measured[choose] > position.best
    if best:
        position.best = measured[choose]
    position.close_epoch()
    state.run.record(row, epochs)
    state.save(best)


def _answer(state: Fit, stop: StopRequest) -> None:
    """Saves and leaves if a signal asked for it."""
    if stop.number is None:
        return
    if state.saved != (state.position.epoch, state.position.batch):
        state.save()
    raise StoppedError(
        stop.number,
        f"Stopped by signal {stop.number} after step {state.position.step}; saved {state.run.last()}. "
        "Go on with --resume auto.",
    )


def _to(batch: Any, device: torch.device) -> Any:
    """Moves the tensors of a tuple, list or dict to the device."""
    if torch.is_tensor(batch):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: _to(value, device) for name, value in batch.items()}
    return type(batch)(_to(value, device) for value in batch)
