"""Classification of sequences: the loss, the evaluation with its vote, and tables to read."""

import itertools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from attsnn._text import table

from . import losses
from .processes import Processes

Forward = Callable[[nn.Module, Tensor], Tensor]
Observe = Callable[[nn.Module], AbstractContextManager[Mapping[str, Tensor]]]


def one_hot_mse(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean squared error between output and one-hot label, over all elements, and {"accuracy": ...}.

    Args:
        model: maps `[T, N, ...]` to `[N, classes]`.
        batch: (sequences `[N, T, ...]`, labels int64 `[N]`).
    """
    sequences, labels = batch
    out = model(sequences.transpose(0, 1))
    return losses.rate_mse(out, labels), {"accuracy": (out.argmax(1) == labels).float().mean()}


@dataclass
class Scores:
    """What an evaluation found. A window whose scores are not finite votes for no class.

    Args:
        loss: the mean over the windows.
        confusion: int64 `[classes, classes + 1]`: true class by predicted class; the last column counts
            recordings without a majority.
        seconds_per_window: the time of a window.
        rates: {layer: share of (neuron, step) pairs that emit}.
        voted: whether the scores of any window were finite.
    """

    loss: float
    confusion: Tensor
    seconds_per_window: float
    rates: dict[str, float] = field(default_factory=dict)
    voted: bool = True

    @property
    def accuracy(self) -> float:
        """From 0 to 1; NaN if there were scores and none was finite."""
        if not self.voted:
            return math.nan
        return self.confusion.diagonal().sum().item() / max(self.confusion.sum().item(), 1)

    def per_class(self, classes: Sequence[str]) -> str:
        """A table with one row per class: recordings, correct ones, accuracy."""
        total, correct = self.confusion.sum(1).tolist(), self.confusion.diagonal().tolist()
        rows = [(name, n, c, _percent(c, n)) for name, n, c in zip(classes, total, correct, strict=True)]
        return table(
            ("class", "recordings", "correct", "accuracy"),
            [*rows, ("all", sum(total), sum(correct), _percent(sum(correct), sum(total)))],
        )


@dataclass(frozen=True)
class Measure:
    """An evaluation as `fit` calls it. It returns `<name>_loss` and `<name>_accuracy`; unless `name` is
    "test", the loss and accuracy of the test set are None.

    Args:
        name: what is evaluated, such as "val".
        loader: the recordings, as `evaluate` takes them.
        classes: the names of the classes.
        how: keywords of `evaluate`.
    """

    name: str
    loader: DataLoader[Any]
    classes: Sequence[str]
    how: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, model: nn.Module, poll: Callable[[], None] = lambda: None) -> dict[str, float | None]:
        scores = evaluate(model, self.loader, len(self.classes), poll=poll, **self.how)
        found = {f"{self.name}_loss": scores.loss, f"{self.name}_accuracy": scores.accuracy}
        return {"test_loss": None, "test_accuracy": None, **found}


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: DataLoader[Any],
    classes: int,
    observe: Observe | None = None,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = losses.rate_mse,
    forward: Forward | None = None,
    processes: Processes | None = None,
    limit: int | None = None,
    poll: Callable[[], None] = lambda: None,
) -> Scores:
    """Scores `model` on every recording of all processes' loaders, each once.

    Args:
        model: maps `[T, N W, ...]` to scores `[N W, classes]`.
        loader: this process's share: (windows `[N, W, T, ...]`, labels `[N]`). With W = 1, a recording
            belongs to the class with the highest score. Otherwise it belongs to the class that more than half
            of its W windows vote for, or to none.
        classes: the number of classes.
        observe: `with observe(model) as seen: model(x)` fills `seen` with the tensor `[T, N, ...]` that each
            layer emits; `rates` are measured on these.
        loss: a mean, of outputs `[N W, classes]` and labels.
        forward: (model, windows `[T, N W, ...]`) -> outputs; default: calls the model. Autocast belongs here.
        processes: the processes that share the recordings; default: this one alone.
        limit: the most batches in each process.
        poll: called between batches, in every process equally often; it raises if the run is to stop.
    """
    processes, device = processes or Processes(), next(model.parameters()).device
    confusion = torch.zeros(classes, classes + 1, dtype=torch.int64, device=device)
    sums = torch.zeros(4, dtype=torch.float64, device=device)  # loss, windows, seconds, finite windows
    emitted: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64, device=device))
    model.eval()
    for batch in own_batches(loader, processes, limit, poll):
        sequences, labels = (tensor.to(device) for tensor in batch)
        x = sequences.flatten(0, 1).transpose(0, 1)
        began = time.perf_counter()
        with observe(model) if observe is not None else nullcontext({}) as seen:
            out = (forward(model, x) if forward else model(x)).double()
        out = out.cpu().to(device)  # waits for it
        seconds = time.perf_counter() - began
        for name, tensor in seen.items():
            emitted[name] += (tensor != 0).double().mean() * len(out)
        finite = out.isfinite().all(1)
        confusion += count_votes(labels, out, finite)
        mean = loss(out, labels.repeat_interleave(len(out) // len(labels)))
        sums += sums.new_tensor([mean.item() * len(out), len(out), seconds, finite.sum().item()])
    names = max(processes.gather(sorted(emitted)), key=len)  # a process without a recording has none
    row = torch.cat([sums, *(emitted[name].view(1) for name in names)])
    loss_sum, windows, seconds, finite, *rates = processes.sum(row).tolist()
    voted, windows = finite > 0 or windows == 0, max(windows, 1)
    shares = {name: total / windows for name, total in zip(names, rates, strict=True)}
    return Scores(loss_sum / windows, processes.sum(confusion).cpu(), seconds / windows, shares, voted)


def own_batches(
    loader: DataLoader[Any], processes: Processes, limit: int | None, poll: Callable[[], None]
) -> Iterator[Any]:
    """This process's batches, at most `limit`. `poll` is called equally often in every process."""
    most, batches = max(processes.gather(len(loader))), iter(loader)
    for _ in range(most if limit is None else min(most, limit)):
        poll()
        yield from itertools.islice(batches, 1)


def summary(scores: Scores, model: nn.Module) -> str:
    """A table of accuracy, firing rate of each layer, parameters and time per window."""
    rates = [(f"firing rate of {name}", f"{rate:.2%}") for name, rate in scores.rates.items()]
    return table(
        ("measured on the test set", "value"),
        [
            ("accuracy", f"{scores.accuracy:.2%}"),
            *rates,
            ("parameters", f"{sum(p.numel() for p in model.parameters()):,}"),
            ("time per sample", f"{1e3 * scores.seconds_per_window:.2f} ms"),
        ],
    )


def count_votes(labels: Tensor, scores: Tensor, votes: Tensor) -> Tensor:
    """A confusion matrix `[classes, classes + 1]`.

    It is counted from labels `[N]`, scores `[N W, classes]` of W windows each, and a mask `[N W]` of windows
    that vote.
    """
    classes, windows = scores.shape[1], len(scores) // max(len(labels), 1)
    ballots = F.one_hot(scores.argmax(1), classes) * votes[:, None]
    votes = ballots.reshape(len(labels), windows, classes).sum(1)
    majority = 2 * votes.max(1).values > windows
    predicted = torch.where(majority, votes.argmax(1), classes)
    cells = torch.bincount(labels * (classes + 1) + predicted, minlength=classes * (classes + 1))
    return cells.view(classes, classes + 1)


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "-"
