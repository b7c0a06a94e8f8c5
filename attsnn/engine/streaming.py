"""Accuracy over time: what a streaming network knows after each step."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from attsnn._text import table

from .classify import count_votes, own_batches
from .processes import Processes

Step = Callable[[nn.Module, Tensor, object], tuple[Tensor, object]]
NEARLY = 0.95  # of the last accuracy: from there on a class counts as known
ROWS = 12  # of the printed table


@dataclass
class OverTime:
    """Accuracy after each step.

    Args:
        accuracy: `[T]`, from 0 to 1.
        recordings: the number of recordings.
        seconds_per_step: the time of a step of one window.
    """

    accuracy: list[float]
    recordings: int
    seconds_per_step: float

    @property
    def known(self) -> int:
        """The step from which on the accuracy is at least `NEARLY` (0.95) times the last
        one, counted from 1.
        """
        wanted = NEARLY * self.accuracy[-1]
        below = [t for t, accuracy in enumerate(self.accuracy) if accuracy < wanted]
        return max(below, default=-1) + 2

    def sentence(self, step_ms: float | None) -> str:
        """When the class is known, in steps and, if `step_ms` is the length of a step, in milliseconds."""
        after = "" if step_ms is None else f", {self.known * step_ms:g} ms"
        return (
            f"{NEARLY:.0%} of the last accuracy, {self.accuracy[-1]:.2%}, from step {self.known} of "
            f"{len(self.accuracy)} on{after}"
        )

    def summary(self, step_ms: float | None) -> str:
        """A table of about a dozen steps, and the sentence."""
        steps = len(self.accuracy)
        shown = sorted({max(1, round(steps * k / ROWS)) for k in range(1, ROWS + 1)} | {self.known})
        rows = [
            (t, "-" if step_ms is None else f"{t * step_ms:g}", f"{self.accuracy[t - 1]:.2%}") for t in shown
        ]
        time = f"{1e3 * self.seconds_per_step:.2f} ms a step and sample"
        head = ("step", "ms", f"accuracy of {self.recordings} recordings")
        return f"{table(head, rows)}\n\n{self.sentence(step_ms)}; {time}"


@torch.no_grad()
def evaluate_by_step(
    model: nn.Module,
    loader: DataLoader[Any],
    classes: int,
    *,
    step: Step | None = None,
    processes: Processes | None = None,
    limit: int | None = None,
) -> OverTime:
    """As `evaluate`, but after every step, by the mean of the scores so far, which come one step at a time.

    A window whose scores are all equal, as before the first spike, votes for no class.

    Args:
        model, loader, classes, processes, limit: see `evaluate`.
        step: (model, x `[1, N W, ...]`, state) -> (scores `[1, N W, classes]`, state), with None as the first
            state; default: the model's `run`.
    """
    processes, device = processes or Processes(), next(model.parameters()).device
    step = step or _run
    model.eval()
    confusions: list[Tensor] = []
    sums = torch.zeros(2, dtype=torch.float64, device=device)  # seconds, windows x steps
    for batch in own_batches(loader, processes, limit, lambda: None):
        sequences, labels = (tensor.to(device) for tensor in batch)
        state: object = None
        total: Tensor | float = 0.0
        for t, x in enumerate(sequences.flatten(0, 1).transpose(0, 1).unbind(0)):
            began = time.perf_counter()
            out, state = step(model, x[None], state)
            total = total + out[0].double().cpu().to(device)  # waits for it
            sums += sums.new_tensor([time.perf_counter() - began, len(x)])
            decided = total.isfinite().all(1) & (total.amax(1) > total.amin(1))
            found = count_votes(labels, total, decided)
            confusions[t : t + 1] = [confusions[t] + found if t < len(confusions) else found]
    steps = max(processes.gather(len(confusions)))  # a process without a recording has none
    empty = torch.zeros(classes, classes + 1, dtype=torch.int64, device=device)
    counted = processes.sum(torch.stack([*confusions, *[empty] * (steps - len(confusions))])).cpu()
    seconds, shown = processes.sum(sums).tolist()
    totals = counted.sum((1, 2))
    correct = counted.diagonal(dim1=1, dim2=2).sum(1)
    accuracy = (correct / totals.clamp(min=1)).tolist()
    return OverTime(accuracy, int(totals[0]), seconds / max(shown, 1))


def _run(model: Any, x: Tensor, state: object) -> tuple[Tensor, object]:
    found: tuple[Tensor, object] = model.run(x, state)
    return found
