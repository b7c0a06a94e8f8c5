"""What a training script sets up before the loop."""

from typing import Literal

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

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

    "plateau": x 0.1 when the mean training loss of 5 epochs has not improved; "onecycle": up to the
    optimiser's rate and down again; "cosine": from it down to 0.
    """
    if name == "plateau":
        return ReduceLROnPlateau(optimizer, "min", factor=0.1, patience=5)
    if name == "onecycle":
        return OneCycleLR(optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=steps)
    return CosineAnnealingLR(optimizer, steps)
