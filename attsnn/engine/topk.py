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
    """What an evaluation found; from 0 to 1 but for `samples`, a count. A sample whose scores are not finite
    is taken for no class; where those of none are, the accuracies are NaN.
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
    """Scores `model` on the samples of all processes' loaders, each once: no process repeats one to fill up.

    Args:
        loader: this process's share, `in_order(..., rank=, world=)`: (images [N, 3, H, W], labels [N]).
        forward: (model, images) -> [N, classes]; default: calls the model. A place for autocast.
        loss: of outputs [N, classes] and labels, a mean.
        limit: at most so many batches, in each process.
        faults: reads the batches, which may lack samples, and counts those.
        poll: called as often in every process, between batches; raises where the run is to stop.
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
