"""VGGs with projected full attention for event cameras (PFA; Deng et al., 2024; the released code's form).

A PFA weighs the frames. Four stages follow, each of two layers (3x3 convolution -> batch norm -> LIF), an
average pool, and a PFA on the pooled spikes. A linear layer of LIF neurons closes the network, and its
firing rate is the read-out. Input [T, N, 2, H, W], counts of events; output [N, classes].
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attsnn import neurons
from attsnn._extension import Backend
from attsnn.attention import check_counts
from attsnn.layers import AveragePool, Rate, SpikingLayer, State, plainly, streamed

from .parts import EachStep, weighed
from .registry import register
from .sizes import check_attention, check_widths, scaled, sides

HALVINGS = 16  # the four pools divide the sides by it
SIDE = 48  # frames of any size are averaged to it first, except those of gestures
GESTURE_SIDE = 128  # of the frames of gestures
VOTERS = 10  # outputs per class of gestures, side by side
PARITY_RANK = 64  # of the last PFA in the released gesture network, for any `rank`


@dataclass(frozen=True)
class Plan:
    """What differs between the data sets, and what a caller may change."""

    classes: int
    steps: int
    rank: int
    size: tuple[int, int] | None = None  # of the frames; None: any, averaged to SIDE x SIDE
    voters: int = 1
    parity: bool = False
    attention: str | None = "PFA"
    scale: str = "mean"
    fusion: str = "multiply"
    channels: tuple[int, ...] = (64, 128, 256, 256, 512, 512, 512, 512)


PLANS = {
    "pfa_vgg_cifar10_dvs": Plan(classes=10, steps=12, rank=8),
    "pfa_vgg_ncaltech101": Plan(classes=101, steps=14, rank=64),
    "pfa_vgg_dvs_gesture": Plan(
        classes=11, steps=20, rank=32, size=(GESTURE_SIDE, GESTURE_SIDE), voters=VOTERS
    ),
}


class Vote(nn.Module):
    """The mean over the voters of each class, which are adjacent.

    [..., classes x voters] -> [..., classes].
    """

    def __init__(self, voters: int):
        super().__init__()
        self.voters = voters

    def forward(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (-1, self.voters)).mean(-1)

    def extra_repr(self) -> str:
        return str(self.voters)


class PFAVGG(nn.Module):
    """The network of a plan: `resize`, `attention` of the frames, `stages`, `classifier`, `read_out`."""

    averages_scores = False  # it averages spikes

    def __init__(self, plan: Plan, backend: Backend):
        super().__init__()
        neuron = partial(neurons.leaky, detach_reset=True, backend=backend)

        def layer(c: int, width: int) -> SpikingLayer:
            conv = nn.Conv2d(c, width, 3, padding=1, bias=False)
            return SpikingLayer(conv, neuron(), norm=nn.BatchNorm2d(width))

        def stage(c: int, first: int, second: int, rank: int) -> nn.Sequential:
            parts: OrderedDict[str, nn.Module] = OrderedDict(
                first=layer(c, first),
                second=layer(first, second),
                pool=AveragePool(2, backend=backend),
                attention=weighed(replace(plan, rank=rank), second, backend),
            )
            return nn.Sequential(parts)

        self.resize = nn.Identity() if plan.size else EachStep(nn.AdaptiveAvgPool2d(SIDE))
        self.attention = weighed(plan, 2, backend)
        firsts, seconds = plan.channels[::2], plan.channels[1::2]
        ranks = [plan.rank] * 3 + [PARITY_RANK if plan.parity else plan.rank]
        self.stages = nn.Sequential(*map(stage, (2, *seconds), firsts, seconds, ranks))
        height, width = plan.size or (SIDE, SIDE)
        flat = plan.channels[-1] * (height // HALVINGS) * (width // HALVINGS)
        self.classifier = SpikingLayer(nn.Linear(flat, plan.classes * plan.voters), neuron())
        voting = plan.voters > 1 and not plan.parity
        self.read_out = nn.Sequential(Rate(), Vote(plan.voters)) if voting else Rate()
        self.plan = plan

    def forward(self, x: Tensor) -> Tensor:  # [T, N, 2, H, W] -> [N, classes]
        rates: Tensor = self.read_out(self._by_step(plainly, x))
        return rates

    def run(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Runs a chunk x [t, N, 2, H, W] of a sequence and returns (out, state).

        `state` is what the chunk before returned; None: at rest. `out` [t, N, classes] are the spikes, or
        the votes if there are voters. Its mean over the steps of all chunks is what `forward` returns. In
        training mode, or with an attention, which needs whole windows, it raises ValueError.
        """
        out, state = streamed(self, self._by_step, state, x)
        for vote in [*self.read_out][1:] if isinstance(self.read_out, nn.Sequential) else ():
            out = vote(out)
        return out, state

    def _by_step(self, call: Callable[..., Tensor], x: Tensor) -> Tensor:
        size = self.plan.size
        if x.dim() != 5 or x.shape[2] != 2 or 0 in x.shape[3:] or size not in (None, tuple(x.shape[3:])):
            sides = "H, W" if size is None else f"{size[0]}, {size[1]}"
            raise ValueError(f"x must be frames [T, N, 2, {sides}], got shape {tuple(x.shape)}")
        x = call(self.stages, self.attention(self.resize(x)))  # [T, N, C, h, w]
        return call(self.classifier, x.flatten(2))


def _build(plan: Plan, backend: Backend, *, width: float, **overrides: Any) -> PFAVGG:
    plan = replace(plan, **overrides)
    check_attention(plan.attention, ("PFA",))
    check_counts(**{name: getattr(plan, name) for name in ("steps", "rank", "classes")})
    check_widths(plan.channels, len(Plan.channels))
    return PFAVGG(replace(plan, channels=scaled(plan.channels, width, 1)), backend)


_KEYWORDS = """attention: "PFA" or None.
        steps: T. A PFA fixes it.
        rank: of every PFA, 1 to 64.
        num_classes, channels: the layer table itself: classes, channels of the eight convolutions.
        width: multiplies the channels, for small machines.
        scale, fusion: of the PFAs, as `attsnn.attention.PFA` documents them.
        backend: "auto", "fused" or "reference"."""


def _register(name: str, what: str) -> None:
    plan = PLANS[name]

    def builder(
        *,
        attention: str | None = plan.attention,
        steps: int = plan.steps,
        rank: int = plan.rank,
        num_classes: int = plan.classes,
        channels: tuple[int, ...] = plan.channels,
        width: float = 1.0,
        scale: str = plan.scale,
        fusion: str = plan.fusion,
        backend: Backend = "auto",
    ) -> PFAVGG:
        return _build(
            plan,
            backend,
            width=width,
            attention=attention,
            steps=steps,
            rank=rank,
            classes=num_classes,
            channels=channels,
            scale=scale,
            fusion=fusion,
        )

    builder.__name__ = name
    builder.__doc__ = f"""VGG with PFA for {what}: [T, N, 2, H, W] -> [N, {plan.classes}], of frames of any
    size, which are averaged to {SIDE} x {SIDE}.

    Args:
        {_KEYWORDS}
    """
    globals()[name] = register(builder)


_register("pfa_vgg_cifar10_dvs", "CIFAR10-DVS")
_register("pfa_vgg_ncaltech101", "N-Caltech101")

_GESTURE = PLANS["pfa_vgg_dvs_gesture"]


@register
def pfa_vgg_dvs_gesture(
    *,
    attention: str | None = _GESTURE.attention,
    steps: int = _GESTURE.steps,
    rank: int = _GESTURE.rank,
    num_classes: int = _GESTURE.classes,
    size: int | tuple[int, int] = GESTURE_SIDE,
    parity: bool = False,
    channels: tuple[int, ...] = _GESTURE.channels,
    width: float = 1.0,
    scale: str = _GESTURE.scale,
    fusion: str = _GESTURE.fusion,
    backend: Backend = "auto",
) -> PFAVGG:
    return _build(
        _GESTURE,
        backend,
        width=width,
        attention=attention,
        steps=steps,
        rank=rank,
        classes=num_classes,
        size=sides(size, HALVINGS),
        parity=parity,
        channels=channels,
        scale=scale,
        fusion=fusion,
    )


pfa_vgg_dvs_gesture.__doc__ = f"""VGG with PFA for DVS128 Gesture: [T, N, 2, 128, 128] -> [N, 11].

    Frames are read in their own size; each class has {VOTERS} outputs, whose rates are averaged.

    Args:
        size: side of the frames in pixels, or (H, W), multiples of {HALVINGS}.
        parity: the released code, whose last PFA has rank {PARITY_RANK} and whose {VOTERS} x 11 rates are the
            result, without a vote.
        {_KEYWORDS}
    """
