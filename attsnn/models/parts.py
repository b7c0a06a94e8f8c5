"""What networks of more than one family are made of, beside `attsnn.layers`."""

from torch import Tensor, nn

from attsnn._extension import Backend
from attsnn.attention import PFA, check_counts
from attsnn.layers import over_time


class EachStep(nn.Module):
    """A layer that knows no time, applied to every step: [T, N, ...] -> [T, N, ...]."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return over_time(self.layer, x)


def asked_for(steps: int | None, plan) -> int:
    """Of a network of static images: how many steps more, those of its plan where nobody says."""
    if steps is None:
        return plan.steps
    check_counts(steps=steps)
    return steps


def weighed(plan, channels: int, backend: Backend) -> nn.Module:
    """The `PFA` of a plan for maps of that many channels, or without an attention the identity."""
    if plan.attention is None:
        return nn.Identity()
    rules = {"scale": plan.scale, "fusion": plan.fusion, "backend": backend}
    return PFA(plan.steps, channels, plan.rank, **rules)
