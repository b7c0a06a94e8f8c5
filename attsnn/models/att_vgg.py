"""Att-VGG: spiking VGGs with attention for CIFAR images (Attention SNN, TPAMI 2023; released code's form).

A layer is 3x3 convolution -> attention -> batch norm -> LIF: the gates stand before the norm, as published.
There are maximum pools between some layers. At the end come an average pool to 8 x 8, a linear layer of LIF
neurons, and a linear layer that reads their firing rates. Input [N, 3, 32, 32], shown T times; output
[N, classes]. What comes before the first neurons is the same at every step, and is computed once.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from attsnn import neurons
from attsnn._extension import Backend
from attsnn.attention import attention, check_counts
from attsnn.layers import (
    AveragePool,
    NormedLayer,
    Rate,
    SpikingLayer,
    State,
    plainly,
    streamed,
)

from .parts import EachStep, asked_for
from .registry import register
from .sizes import check_attention, check_widths, scaled

IMAGE = 32  # side of the images
SIDE = 8  # side of the maps that the linear layer reads
ATTENTIONS = ("CSA",)


@dataclass(frozen=True)
class Plan:
    """What differs between the depths, and what a caller may change."""

    channels: tuple[int, ...]  # by convolution
    pools: tuple[int, ...]  # those, numbered from 0, after which maps are halved
    hidden: int = 1024
    classes: int = 10
    steps: int = 1
    attention: str | None = "CSA"
    channel_ratio: int = 16
    dropout: float = 0.5


PLANS = {
    "att_vgg7": Plan((64, 64, 128, 256, 512), (1,)),  # the published 64 64 128 128 128 fits no linear layer
    "att_vgg11": Plan((64, 128, 256, 256, *[512] * 4), (3,)),
    "att_vgg13": Plan((64, 64, 128, 128, 256, 256, *[512] * 4), (5,)),
    "att_vgg16": Plan((64, 64, 128, 128, 256, 256, 256, *[512] * 6), (6,)),
    "att_vgg19": Plan((64, 64, 128, 128, *[256] * 4, *[512] * 8), (1, 3, 7, 11, 15)),
}


class Gated(nn.Module):
    """A convolution and the attention on its result, for maps [T N, ...] with T folded into the batch."""

    def __init__(self, conv: nn.Conv2d, gates: nn.Module, steps: int):
        super().__init__()
        self.conv, self.attention, self.steps = conv, gates, steps

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x).unflatten(0, (self.steps, x.shape[0] // self.steps))
        gated: Tensor = self.attention(maps)
        return gated.flatten(0, 1)

    def extra_repr(self) -> str:
        return f"steps={self.steps}"


class AttVGG(nn.Module):
    """The network of a plan: `stem`, `stem_neuron`, `features` (layers and maximum pools), `pool`, `hidden`,
    `classifier`.
    """

    averages_scores = True

    def __init__(self, plan: Plan, backend: Backend):
        super().__init__()
        neuron = partial(neurons.leaky, detach_reset=True, backend=backend)

        def current(c: int, width: int, steps: int) -> nn.Module:
            conv = nn.Conv2d(c, width, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
            if plan.attention is None:
                return conv
            gates = attention(plan.attention, channels=width, channel_ratio=plan.channel_ratio)
            return Gated(conv, gates, steps)

        def linear(c: int, width: int) -> nn.Linear:
            layer = nn.Linear(c, width)
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
            return layer

        def layer(c: int, width: int) -> SpikingLayer:
            return SpikingLayer(current(c, width, plan.steps), neuron(), norm=nn.BatchNorm2d(width))

        first, last = plan.channels[0], plan.channels[-1]
        self.stem = NormedLayer(current(3, first, steps=1), nn.BatchNorm2d(first), backend=backend)
        self.stem_neuron = neuron()
        self.features = nn.Sequential()
        for i, (c, width) in enumerate(pairwise(plan.channels), 1):
            self.features.append(layer(c, width))
            if i in plan.pools:
                self.features.append(EachStep(nn.MaxPool2d(2)))
        side = IMAGE >> len(plan.pools)
        # Both are the published adaptive average pool, which PyTorch has in no deterministic form on CUDA.
        larger = side >= SIDE
        self.pool = AveragePool(side // SIDE, backend=backend) if larger else EachStep(nn.Upsample(SIDE))
        self.hidden = SpikingLayer(linear(last * SIDE**2, plan.hidden), neuron())
        self.read_out = Rate()
        self.dropout = nn.Dropout(plan.dropout)  # of the rates: one mask for all steps unless every_step
        self.classifier = linear(plan.hidden, plan.classes)
        self.plan = plan

    def forward(self, x: Tensor, every_step: bool = False) -> Tensor:
        """Maps images x [N, 3, 32, 32] to scores [N, classes].

        With `every_step` it returns the scores of every step, [T, N, classes]. Their mean over T equals the
        former up to rounding. In training the dropout differs too: every step then has its own mask.
        """
        spikes = self._spikes(plainly, x, self.plan.steps)
        scores: Tensor = self.classifier(self.dropout(spikes if every_step else self.read_out(spikes)))
        return scores

    def run(self, x: Tensor, state: State | None = None, *, steps: int | None = None) -> tuple[Tensor, State]:
        """Takes `steps` more steps (None: T) of the images x and returns (scores, state).

        `state` is what the steps before returned; None: at rest. `scores` are [steps, N, classes]. Their
        mean over all steps is what `forward` returns with as many steps. In training mode, or with an
        attention, which needs whole windows, it raises ValueError.
        """
        spikes, state = streamed(self, self._spikes, state, x, asked_for(steps, self.plan))
        return self.classifier(spikes), state

    def _spikes(self, call: Callable[..., Tensor], x: Tensor, steps: int) -> Tensor:
        if x.shape[1:] != (3, IMAGE, IMAGE):
            raise ValueError(f"x must be images [N, 3, {IMAGE}, {IMAGE}], got shape {tuple(x.shape)}")
        currents = self.stem(x[None], repeats=steps)  # [1, N, C, H, W]: the same at every step
        spikes = call(self.stem_neuron, currents, steps=steps)  # [T, N, C, H, W]
        spikes = self.pool(call(self.features, spikes))
        return call(self.hidden, spikes.flatten(2))  # [T, N, F]


def _build(plan: Plan, backend: Backend, *, width: float, **overrides: Any) -> AttVGG:
    convolutions = len(plan.channels)
    plan = replace(plan, **overrides)
    check_attention(plan.attention, ATTENTIONS)
    check_counts(**{name: getattr(plan, name) for name in ("steps", "classes", "hidden", "channel_ratio")})
    check_widths(plan.channels, convolutions)
    *channels, hidden = scaled((*plan.channels, plan.hidden), width, plan.channel_ratio)
    return AttVGG(replace(plan, channels=tuple(channels), hidden=hidden), backend)


def _register(name: str, plan: Plan) -> None:
    def builder(
        *,
        attention: str | None = plan.attention,
        steps: int = plan.steps,
        num_classes: int = plan.classes,
        channels: tuple[int, ...] = plan.channels,
        hidden: int = plan.hidden,
        width: float = 1.0,
        channel_ratio: int = plan.channel_ratio,
        dropout: float = plan.dropout,
        backend: Backend = "auto",
    ) -> AttVGG:
        return _build(
            plan,
            backend,
            width=width,
            attention=attention,
            steps=steps,
            classes=num_classes,
            channels=channels,
            hidden=hidden,
            channel_ratio=channel_ratio,
            dropout=dropout,
        )

    builder.__name__ = name
    builder.__doc__ = f"""Att-VGG of {len(plan.channels)} convolutions: [N, 3, {IMAGE}, {IMAGE}] -> [N, 10].

    Args:
        attention: "CSA" or None.
        steps: T, how often the image is shown.
        num_classes, channels, hidden: the layer table itself: classes, channels of each convolution, hidden
            units.
        width: multiplies channels and hidden, for small machines.
        channel_ratio: of the gates' MLPs.
        dropout: of the rates that the last layer reads.
        backend: "auto", "fused" or "reference".
    """
    globals()[name] = register(builder)


for _name, _plan in PLANS.items():
    _register(_name, _plan)
