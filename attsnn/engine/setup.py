"""What a training script sets up before the loop."""

import math
from collections.abc import Callable, Collection
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from .errors import UsageError


def device(name: Literal["auto", "cpu", "cuda"], threads: int = 0) -> torch.device:
    """The device of that name ("auto": a GPU if there is one); `threads` above 0 sets those of the CPU."""
    if threads > 0:
        torch.set_num_threads(threads)
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch sees no CUDA device here; use --device cpu or auto.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def schedule(name: Literal["plateau", "onecycle", "cosine"], optimizer: Optimizer, steps: int) -> LRScheduler:
    """The schedule of the learning rate over `steps` optimiser steps.

    "plateau": x 0.1 where the mean training loss has not improved in more than 5 epochs; "onecycle": up to
    the optimiser's rate and down again; "cosine": from it down to 0.
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
    """The optimiser's rate times (1 + cos(pi s / steps)) / 2 at step s, a LambdaLR.

    Args:
        period: the steps from the rate to its lowest in place of all `steps`; a shorter one rises again.
        warmup: steps in which the rate rises from 0 to that of the cosine.
        hold: steps for which the rate stays the same, that of the last of them: those of an epoch, where it
            changes once an epoch.
        floor: the lowest, as a share of the rate, from which the cosine is counted.
    """
    period = steps if period is None else period

    def wave(step: int) -> float:
        reached = step if hold == 1 else (step // hold + 1) * hold
        reached = min(reached, steps)  # behind the end, where the last step leaves it
        return floor + (1 - floor) * (1 + math.cos(math.pi * reached / period)) / 2

    return _warmed(optimizer, wave, warmup)


def staircase(optimizer: Optimizer, every: int, *, warmup: int = 0) -> LRScheduler:
    """The optimiser's rate, x 0.1 behind every so many steps, a LambdaLR; `warmup` as of `cosine`."""
    return _warmed(optimizer, lambda step: 0.1 ** (step // every), warmup)


def _warmed(optimizer: Optimizer, factor: Callable[[int], float], warmup: int) -> LRScheduler:
    return LambdaLR(optimizer, lambda step: factor(step) * min(1, (step + 1) / (warmup + 1)))


def decayed(model: nn.Module, weight_decay: float, exempt: Collection[str] = ()) -> list[dict[str, Any]]:
    """Parameter groups: weight decay for matrices and kernels, none for vectors (norms, biases, constants of
    neurons) and for what lies in a module of one of the names `exempt`.
    """
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[parameter.dim() > 1 and not set(name.split(".")) & set(exempt)].append(parameter)
    return [
        {"params": groups[True], "weight_decay": weight_decay},
        {"params": groups[False], "weight_decay": 0.0},
    ]
