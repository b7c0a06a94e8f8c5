"""MS-ResNet (Hu et al., 2021) and Att-MS-ResNet (Attention SNN, TPAMI 2023), in the released codes' form.

They are residual spiking networks for images. Their shortcuts add membranes, not spikes. A block is neuron
-> 3x3 convolution -> norm -> neuron -> 3x3 convolution -> norm -> attention, plus its shortcut.

Here a block starts after its first neuron and ends after the next block's, so that shortcut, gates, norm and
neuron between two convolutions are one op. Blocks therefore pass on (membrane, spikes). Input [N, 3, H, W],
shown T times; output [N, classes].
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from attsnn import neurons
from attsnn._extension import Backend
from attsnn.attention import PFA, Attention, PrunedAttention, attention, check_counts
from attsnn.layers import (
    AveragePool,
    NormedLayer,
    SpikingLayer,
    State,
    over_time,
    plainly,
    streamed,
)

from .parts import asked_for, weighed
from .registry import register
from .sizes import check_widths, scaled

GATED_GAMMA = 0.1


class Stem(NamedTuple):
    """The first convolution, or convolutions, in words, and their stride."""

    what: str
    stride: int


STEMS = {
    "7x7": Stem("a 7x7 stem", 2),
    "three 3x3": Stem("a stem of three 3x3 convolutions", 2),  # with bias
    "3x3": Stem("a 3x3 stem", 1),
}


@dataclass(frozen=True)
class Plan:
    """What differs between the variants, and what a caller may change."""

    blocks: tuple[int, ...]  # by stage; the first block of each has stride 2
    first_stride: int = 2  # of the very first block; may be 1
    stem: str = "7x7"  # one of STEMS
    stem_channels: int | None = None  # None: those of the first stage
    shortcut: str = "pool"  # average pool, then 1x1; "stride": a 1x1 with the block's stride
    downsample: str = "stride"  # of a block's first convolution; "max": 3x3 maximum pool after its norm
    neuron: Callable[..., neurons.LIF] = neurons.ms_resnet
    gamma: float = GATED_GAMMA  # of a block's second norm; all others start at the neurons' threshold
    dropout: float = 0.2
    attention: str | None = "CSA"
    steps: int = 1
    classes: int = 1000
    channels: tuple[int, ...] = (64, 128, 256, 512)
    channel_ratio: int = 8
    temporal_ratio: int = 1
    rank: int | None = None  # of a PFA; None: this network has none
    scale: str = "mean"
    fusion: str = "multiply"
    keep_steps: float | None = None
    keep_channels: float | None = None
    reserve_coefficient: bool = True
    membrane_dtype: torch.dtype | None = None


BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 104: (3, 8, 32, 8)}
_MS = partial(Plan, gamma=0.0, attention=None, steps=6)
PLANS = {
    **{f"att_ms_resnet{depth}": Plan(blocks) for depth, blocks in BLOCKS.items()},
    **{f"ms_resnet{d}": _MS(BLOCKS[d], shortcut="stride", dropout=0.0) for d in (18, 34)},
    "ms_resnet104": _MS(BLOCKS[104], stem="three 3x3"),
}


class Block(nn.Module):
    """Maps (membrane, spikes) before a block's first convolution to the same before the next block's.

    The spikes are [T, N, C, H, W]. The membrane is too, or [1, N, C, H, W] if all steps are alike. The last
    block returns None in its place.
    """

    def __init__(self, first: nn.Module, second: SpikingLayer, pool: nn.Module, shortcut: NormedLayer | None):
        super().__init__()
        self.first, self.second, self.pool, self.shortcut = first, second, pool, shortcut

    def forward(self, membrane: Tensor, spikes: Tensor) -> tuple[Tensor | None, Tensor]:
        return self.walk(plainly, membrane, spikes)

    def walk(
        self, call: Callable[..., Any], membrane: Tensor, spikes: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        """`forward`, with its layers called by `call`."""
        steps, shown = spikes.shape[0], spikes.shape[0] // membrane.shape[0]
        if self.shortcut is not None:
            membrane = _for_layer(self.pool(membrane), self.shortcut.current, self.second.membrane_dtype)
            membrane = self.shortcut(membrane, repeats=shown)
        if shown > 1:
            membrane = membrane.expand(steps, *membrane.shape[1:])
        out = call(self.second, call(self.first, spikes), membrane)
        return out[::-1] if self.second.membrane else (None, out)


def _for_layer(x: Tensor, layer: nn.Module, membrane_dtype: torch.dtype | None) -> Tensor:
    """x in the type of the layer's weights, if the membrane may have another one."""
    return x if membrane_dtype is None else x.to(next(layer.parameters()).dtype)


class MaxPooledLayer(NormedLayer):
    """A block's first layer with a maximum pool that halves the maps, in place of a stride.

    It is convolution -> norm -> 3x3 pool -> neuron, composed. It has the same tensors as the `SpikingLayer`
    that it replaces.
    """

    def __init__(self, current: nn.Module, neuron: neurons.LIF, stride: int, *, norm: nn.BatchNorm2d):
        super().__init__(current, norm, backend=neuron.backend)
        self.pool, self.neuron = nn.MaxPool2d(3, stride, padding=1), neuron

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # no repeats: its steps differ
        return self.walk(plainly, x)

    def walk(self, call: Callable[..., Tensor], x: Tensor) -> Tensor:
        """`forward`, with its neuron called by `call`."""
        return call(self.neuron, over_time(self.pool, super().forward(x)))


class MSResNet(nn.Module):
    """The network of a plan: `stem`, `stem_neuron`, `stages` of blocks, `classifier`."""

    averages_scores = True

    def __init__(self, plan: Plan, backend: Backend):
        super().__init__()
        # A ReLU follows the gates: at gamma = 0 it would pass no gradient, ever.
        gamma = plan.gamma if plan.attention is None else max(plan.gamma, GATED_GAMMA)

        def neuron() -> neurons.LIF:
            return plan.neuron(backend=backend)

        threshold = cast(float, neuron().constants()["threshold"])  # a number in every plan

        def norm(channels: int, gamma: float = threshold) -> nn.BatchNorm2d:
            layer = nn.BatchNorm2d(channels)
            nn.init.constant_(layer.weight, gamma)
            return layer

        def conv(c: int, width: int, stride: int = 1) -> nn.Conv2d:
            return nn.Conv2d(c, width, 3, stride, padding=1, bias=False)

        def block(c: int, width: int, stride: int, last: bool) -> Block:
            gates = _gates(plan, width, backend)
            if stride > 1 and plan.downsample == "max":
                first: nn.Module = MaxPooledLayer(conv(c, width), neuron(), stride, norm=norm(width))
            else:
                first = SpikingLayer(conv(c, width, stride), neuron(), norm=norm(width))
            second = SpikingLayer(
                conv(width, width),
                neuron(),
                norm=norm(width, gamma),
                attention=gates,
                membrane=not last,
                membrane_dtype=plan.membrane_dtype,
            )
            pool: nn.Module = nn.Identity()
            shortcut: NormedLayer | None = None
            if stride > 1 or c != width:
                pools = plan.shortcut == "pool" and stride > 1
                if pools:
                    pool = AveragePool(stride, backend=backend)
                current = nn.Conv2d(c, width, 1, 1 if pools else stride, bias=False)
                shortcut = NormedLayer(
                    current, norm(width), membrane_dtype=plan.membrane_dtype, backend=backend
                )
            return Block(first, second, pool, shortcut)

        widths = (plan.stem_channels or plan.channels[0], *plan.channels)
        stem = _stem(plan.stem, widths[0])
        self.stem = NormedLayer(stem, norm(widths[0]), membrane_dtype=plan.membrane_dtype, backend=backend)
        self.stem_neuron = neuron()
        self.stages = nn.ModuleList()
        for i, count in enumerate(plan.blocks):
            ends = [i == len(plan.blocks) - 1 and j == count - 1 for j in range(count)]
            inputs = (widths[i], *[widths[i + 1]] * (count - 1))
            strides = (2 if i else plan.first_stride, *[1] * (count - 1))
            blocks = map(block, inputs, [widths[i + 1]] * count, strides, ends)
            self.stages.append(nn.ModuleList(blocks))
        self.dropout = nn.Dropout(plan.dropout)
        self.classifier = nn.Linear(widths[-1], plan.classes)
        self.plan = plan

    def forward(self, x: Tensor, every_step: bool = False) -> Tensor:
        """Maps images x [N, 3, H, W] to scores [N, classes].

        With `every_step` it returns the scores of every step, [T, N, classes]. Their mean over T equals the
        former up to rounding. In training the dropout differs too: every step then has its own mask.
        """
        spikes = self._spikes(plainly, x, self.plan.steps)
        scores: Tensor = self.classifier(self.dropout(spikes.mean((3, 4) if every_step else (0, 3, 4))))
        return scores

    def run(self, x: Tensor, state: State | None = None, *, steps: int | None = None) -> tuple[Tensor, State]:
        """Takes `steps` more steps (None: T) of the images x and returns (scores, state).

        `state` is what the steps before returned; None: at rest. `scores` are [steps, N, classes]. Their
        mean over all steps is what `forward` returns with as many steps. In training mode, or with an
        attention, which needs whole windows, it raises ValueError.
        """
        spikes, state = streamed(self, self._spikes, state, x, asked_for(steps, self.plan))
        return self.classifier(spikes.mean((3, 4))), state

    def _spikes(self, call: Callable[..., Any], x: Tensor, steps: int) -> Tensor:
        self._check(x)
        membrane = self.stem(x[None], repeats=steps)  # [1, N, C, H, W]: the same at every step
        spikes: Tensor = call(self.stem_neuron, membrane, steps=steps)  # [T, N, C, H, W]
        spikes = _for_layer(spikes, self.stages, self.plan.membrane_dtype)
        for stage in cast(Iterable[nn.ModuleList], self.stages):
            for block in stage:
                membrane, spikes = call(block, membrane, spikes)
        return spikes

    def _check(self, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != 3:
            raise ValueError(f"x must be images [N, 3, H, W], got shape {tuple(x.shape)}")
        plan, stride = self.plan, STEMS[self.plan.stem].stride
        halvings = plan.first_stride * 2 ** (len(plan.blocks) - 1)
        if plan.shortcut == "pool" and any(-(-side // stride) % halvings for side in x.shape[2:]):
            raise ValueError(
                f"x: height and width must be multiples of {stride * halvings}, which the network halves "
                f"them by, got shape {tuple(x.shape)}"
            )


def _gates(plan: Plan, channels: int, backend: Backend) -> Attention | PrunedAttention | PFA | nn.Identity:
    if plan.attention == "PFA" and plan.rank is not None:
        return weighed(plan, channels, backend)
    return attention(
        plan.attention,
        channels=channels,
        steps=plan.steps,
        channel_ratio=plan.channel_ratio,
        temporal_ratio=plan.temporal_ratio,
        keep_steps=plan.keep_steps,
        keep_channels=plan.keep_channels,
        reserve_coefficient=plan.reserve_coefficient,
    )


def _stem(kind: str, width: int) -> nn.Module:
    stride = STEMS[kind].stride
    if kind != "three 3x3":
        side = 7 if kind == "7x7" else 3
        return nn.Conv2d(3, width, side, stride, padding=side // 2, bias=False)
    second, third = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
    return nn.Sequential(nn.Conv2d(3, width, 3, stride, padding=1), second, third)


def build(plan: Plan, backend: Backend, *, width: float, **overrides: Any) -> MSResNet:
    """The network of a plan with these fields replaced. `width` multiplies all its channels."""
    plan = replace(plan, **overrides)
    counts = ("steps", "classes", "channel_ratio", "temporal_ratio")
    check_counts(**{name: getattr(plan, name) for name in counts})
    check_widths(plan.channels, len(plan.blocks))
    widths = (plan.stem_channels or plan.channels[0], *plan.channels)
    stem, *channels = scaled(widths, width, plan.channel_ratio)
    plan = replace(plan, stem_channels=stem, channels=tuple(channels))
    if not (plan.membrane_dtype is None or plan.membrane_dtype.is_floating_point):
        raise ValueError(f"membrane_dtype must be None or a floating-point type, got {plan.membrane_dtype}")
    return MSResNet(plan, backend)


def _register(name: str, plan: Plan) -> None:
    def builder(
        *,
        attention: str | None = plan.attention,
        steps: int = plan.steps,
        num_classes: int = plan.classes,
        channels: tuple[int, ...] = plan.channels,
        width: float = 1.0,
        channel_ratio: int = plan.channel_ratio,
        temporal_ratio: int = plan.temporal_ratio,
        dropout: float = plan.dropout,
        keep_steps: float | None = None,
        keep_channels: float | None = None,
        reserve_coefficient: bool = True,
        membrane_dtype: torch.dtype | None = None,
        backend: Backend = "auto",
    ) -> MSResNet:
        return build(
            plan,
            backend,
            width=width,
            attention=attention,
            steps=steps,
            classes=num_classes,
            channels=tuple(channels),
            channel_ratio=channel_ratio,
            temporal_ratio=temporal_ratio,
            dropout=dropout,
            keep_steps=keep_steps,
            keep_channels=keep_channels,
            reserve_coefficient=reserve_coefficient,
            membrane_dtype=membrane_dtype,
        )

    stem = STEMS[plan.stem].what
    gamma = f"{plan.gamma}" + (f", {GATED_GAMMA} with an attention" if plan.gamma < GATED_GAMMA else "")
    reads = "an average pool and a 1x1 convolution" if plan.shortcut == "pool" else "a 1x1 of stride 2"
    builder.__name__ = name
    builder.__doc__ = f"""{name}: [N, 3, H, W] -> [N, {plan.classes}]; {stem}, shortcuts of {reads}, second
    gamma {gamma}.

    Args:
        attention: "CSA", "CA" or another of the seven names, or None.
        steps: T, how often the image is shown.
        num_classes, channels, dropout: the layer table itself. Channels are given by stage.
        width: multiplies the channels, for small machines.
        channel_ratio, temporal_ratio: of the gates' MLPs.
        keep_channels, keep_steps: shares of channels and steps that pass, chosen by winner-take-all on the
            scores of TA, CA or TCA. This path is composed in plain PyTorch before the shortcut is added.
        reserve_coefficient: weight what passes with its score.
        membrane_dtype: torch.float32 keeps the residual stream in float32 while the convolutions compute in
            16 bit.
        backend: "auto", "fused" or "reference".
    """
    globals()[name] = register(builder)


for _name, _plan in PLANS.items():
    _register(_name, _plan)
