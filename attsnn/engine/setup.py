"""What a training script sets up before the loop: device, schedules, parameter groups."""

import math
from collections.abc import Callable, Collection
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from .errors import UsageError


def device(name: Literal["auto", "cpu", "cuda"], threads: int = 0) -> torch.device:
    """The device of that name; "auto" is a GPU if there is one.

    `threads` above 0 sets the number of CPU threads. Raises UsageError for "cuda" if PyTorch sees no CUDA
    device.
    """
    if threads > 0:
        torch.set_num_threads(threads)
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch sees no CUDA device here; use --device cpu or auto.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def schedule(name: Literal["plateau", "onecycle", "cosine"], optimizer: Optimizer, steps: int) -> LRScheduler:
    """A schedule of the learning rate over `steps` optimiser steps.

    "plateau" multiplies the rate by 0.1 if the mean training loss has not improved in more than 5 epochs.
    "onecycle" goes up to the optimiser's rate and down again. "cosine" goes from the optimiser's rate down to
    0. Raises ValueError for another name.
    """
    if name == "plateau":
        return ReduceLROnPlateau(optimizer, "min", factor=0.1, patience=5)
    if name == "onecycle":
        return OneCycleLR(optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=steps)
    if name != "cosine":
        raise ValueError(f"schedule must be plateau, onecycle or cosine, got {name!r}")
    return cosine(optimizer, steps)


def cosine(
    optimizer: Optimizer,
    steps: int,
    *,
    period: int | None = None,
    warmup: int = 0,
    hold: int = 1,
    floor: float = 0.0,
) -> LRScheduler:
    """A LambdaLR that multiplies the optimiser's rate by (1 + cos(pi s / steps)) / 2 at step s.

    Args:
        optimizer: its rate is the highest.
        steps: the number of optimiser steps.
        period: the steps from the highest rate to the lowest, in place of all `steps`; if it is shorter, the
            rate rises again.
        warmup: the steps in which the rate rises from 0 to that of the cosine.
        hold: the steps for which the rate stays the same, namely that of the last of them. Use the steps of
            an epoch for a rate that changes once an epoch.
        floor: the lowest rate, as a share of the highest; the cosine ends there.
    """
    period = steps if period is None else period

    def wave(step: int) -> float:
        reached = step if hold == 1 else (step // hold + 1) * hold
        reached = min(reached, steps)  # after the end it stays where the last step leaves it
        return floor + (1 - floor) * (1 + math.cos(math.pi * reached / period)) / 2

    return _warmed(optimizer, wave, warmup)


def staircase(optimizer: Optimizer, every: int, *, warmup: int = 0) -> LRScheduler:
    """A LambdaLR that multiplies the optimiser's rate by 0.1 after every so many steps.

    Args:
        optimizer: its rate is the first.
        every: the number of steps.
        warmup: as for `cosine`.
    """
    return _warmed(optimizer, lambda step: 0.1 ** (step // every), warmup)


def _warmed(optimizer: Optimizer, factor: Callable[[int], float], warmup: int) -> LRScheduler:
    return LambdaLR(optimizer, lambda step: factor(step) * min(1, (step + 1) / (warmup + 1)))


def decayed(model: nn.Module, weight_decay: float, exempt: Collection[str] = ()) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser: weight decay for matrices and kernels only.

    There is none for vectors (norms, biases, constants of neurons), nor for parameters inside a module whose
    name is in `exempt`.
    """
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[parameter.dim() > 1 and not set(name.split(".")) & set(exempt)].append(parameter)
    return [
        {"params": groups[True], "weight_decay": weight_decay},
        {"params": groups[False], "weight_decay": 0.0},
    ]
