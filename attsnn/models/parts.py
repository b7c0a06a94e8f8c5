"""Parts that the networks of several families share, besides `attsnn.layers`."""

from typing import Protocol

from torch import Tensor, nn

from attsnn._extension import Backend
from attsnn.attention import PFA, check_counts
from attsnn.layers import over_time


class Shown(Protocol):
    """The plan of a network for static images."""

    @property
    def steps(self) -> int: ...


class Weighed(Shown, Protocol):
    """The plan of a network that may have PFAs. Without any, the rank is None."""

    @property
    def rank(self) -> int | None: ...
    @property
    def attention(self) -> str | None: ...
    @property
    def scale(self) -> str: ...
    @property
    def fusion(self) -> str: ...


class EachStep(nn.Module):
    """A layer that knows no time, applied to every step: [T, N, ...] -> [T, N, ...]."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return over_time(self.layer, x)


def asked_for(steps: int | None, plan: Shown) -> int:
    """The number of steps that `run` of a network for static images takes: by default those of its plan."""
    if steps is None:
        return plan.steps
    check_counts(steps=steps)
    return steps


def weighed(plan: Weighed, channels: int, backend: Backend) -> PFA | nn.Identity:
    """The `PFA` of a plan for maps of so many channels, or the identity if there is no attention."""
    if plan.attention is None:
        return nn.Identity()
    assert plan.rank is not None
    return PFA(plan.steps, channels, plan.rank, scale=plan.scale, fusion=plan.fusion, backend=backend)
