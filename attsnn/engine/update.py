"""How gradients become an update, apart from the optimiser: scaling, clipping, averaged weights."""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .checkpoint import Checkpoint


@dataclass
class Update:
    """What a step does with its gradients.

    Args:
        accumulate: the pieces that a batch is cut into, whose gradients are added. A norm sees one piece at a
            time.
        clip: the largest gradient norm; longer gradients are scaled down to it. None: no clipping.
        scaler: scales the loss, for float16. If gradients overflow, the step is left out and the scale
            halved.
        ema: averaged weights (`ema_of`), which are evaluated and saved in addition to the model's.

    Raises ValueError for an `accumulate` below 1 or a `clip` that is not above 0.
    """

    accumulate: int = 1
    clip: float | None = None
    scaler: torch.amp.GradScaler | None = None
    ema: AveragedModel | None = None

    def __post_init__(self) -> None:
        if self.accumulate < 1 or (self.clip is not None and not self.clip > 0):
            raise ValueError(
                "accumulate must be at least 1 and clip above 0, or None; "
                f"got {self.accumulate} and {self.clip}"
            )

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of the loss to those that are there."""
        scaled = loss if self.scaler is None else self.scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]

    def gradient_norm(self, optimizer: Optimizer, model: nn.Module) -> Tensor:
        """The norm of all gradients, at the loss's own scale."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)
        return torch.nn.utils.get_total_norm(p.grad for p in model.parameters() if p.grad is not None)

    def accepts(self, norm: float) -> bool:
        """Whether gradients of that norm may be applied, or left out because the scale can still fall."""
        return math.isfinite(norm) or (self.scaler is not None and self.scaler.get_scale() > 1)

    def apply(self, optimizer: Optimizer, model: nn.Module, norm: float) -> None:
        """Clips the gradients, updates the weights, and averages them."""
        if self.clip is not None and norm > self.clip:
            length = torch.tensor(norm, device=next(model.parameters()).device)
            torch.nn.utils.clip_grads_with_norm_(model.parameters(), self.clip, length)
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()
        if self.ema is not None:
            self.ema.update_parameters(model)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of this as JSON values."""
        return {} if self.scaler is None else {"scaler": self.scaler.state_dict()}

    def averaged(self) -> dict[str, Tensor] | None:
        """What a checkpoint holds of this as tensors."""
        return None if self.ema is None else self.ema.state_dict()

    def restore(self, saved: Checkpoint) -> None:
        """Restores `state` and `averaged` from a checkpoint."""
        if self.scaler is not None:
            self.scaler.load_state_dict(saved.state["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(cast(dict[str, Tensor], saved.ema))  # a TypeError if there are none


def ema_of(model: nn.Module, decay: float) -> AveragedModel:
    """The exponential moving average of the weights and running statistics, over steps.

    After n steps its decay is at most (1 + n) / (10 + n), so that it forgets where it started.
    """

    def average(
        averaged: tuple[Tensor, ...] | list[Tensor],
        current: tuple[Tensor, ...] | list[Tensor],
        count: Tensor | int,
    ) -> None:
        steps = int(count)  # on the CPU
        rate = min(decay, (1 + steps) / (10 + steps))
        get_ema_multi_avg_fn(rate)(averaged, current, count)  # type: ignore[no-untyped-call]

    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)
