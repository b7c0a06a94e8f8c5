"""Classification of images: top-1, top-5 and loss, counted exactly over all processes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from . import losses
from .classify import own_batches
from .processes import Faults, Processes


@dataclass(frozen=True)
class TopK:
    """What an evaluation found. A sample whose scores are not finite counts as wrong.

    Args:
        top1: the top-1 accuracy, from 0 to 1; NaN if the scores of no sample are finite.
        top5: the top-5 accuracy, from 0 to 1; NaN in the same case.
        loss: the mean over the samples.
        samples: the number of samples.
    """

    top1: float
    top5: float
    loss: float
    samples: int


@torch.no_grad()
def top_k(
    model: nn.Module,
    loader: DataLoader[Any],
    processes: Processes | None = None,
    *,
    forward: Callable[[nn.Module, torch.Tensor], torch.Tensor] | None = None,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = losses.cross_entropy,
    limit: int | None = None,
    faults: Faults | None = None,
    poll: Callable[[], None] = lambda: None,
) -> TopK:
    """Scores `model` on the samples of all processes' loaders, each exactly once: no process repeats samples
    to fill up.

    Args:
        model: maps images to scores `[N, classes]`.
        loader: this process's share, `in_order(..., rank=, world=)`: (images `[N, 3, H, W]`, labels `[N]`).
        processes: the processes that share the samples; default: this one alone.
        forward: (model, images) -> `[N, classes]`; default: calls the model. Autocast belongs here.
        loss: a mean, of outputs `[N, classes]` and labels.
        limit: the most batches in each process.
        faults: reads the batches, which may lack samples, and counts those.
        poll: called between batches, in every process equally often; it raises if the run is to stop.
    """
    processes = processes or Processes()
    sums = torch.zeros(5, dtype=torch.float64, device=processes.device)
    model.eval()
    for batch in own_batches(loader, processes, limit, poll):
        batch = batch if faults is None else faults.take(batch)
        images, labels = (x.to(processes.device, non_blocking=True) for x in batch)
        if len(labels) == 0:
            continue
        out = (forward(model, images) if forward else model(images)).double()
        finite = out.isfinite().all(1)
        best = (out.topk(min(5, out.shape[1]), 1).indices == labels[:, None]) & finite[:, None]
        value, count = loss(out, labels) * len(labels), out.new_tensor(float(len(labels)))
        sums += torch.stack([best[:, 0].sum(), best.sum(), value, count, finite.sum()])
    if faults is not None:
        processes.count(faults)
    top1, top5, total, samples, scored = processes.sum(sums).tolist()
    whole = max(samples, 1) if scored or not samples else math.nan
    return TopK(top1 / whole, top5 / whole, total / max(samples, 1), int(samples))
