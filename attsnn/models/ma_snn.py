"""MA-SNN: spiking networks with attention for event cameras (Attention SNN, TPAMI 2023; the released code's
form).

A layer is convolution -> batch norm -> [average pool] -> attention -> LIF; the read-out is the mean over time
of what the last layer emits. Input [T, N, 2, H, W], output [N, classes].
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attsnn import neurons
from attsnn._extension import Backend
from attsnn.attention import attention, check_counts
from attsnn.layers import Rate, SpikingLayer, State, plainly, streamed

from .registry import register
from .sizes import scaled, sides

EMITS = {"spike": "spike", "membrane": "relu_membrane"}  # "membrane" is the published LIAF


@dataclass(frozen=True)
class Plan:
    """What differs between the data sets."""

    channels: tuple[int, ...]
    pools: tuple[int, ...]
    size: tuple[int, int]  # (H, W) of the frames, in pixels
    classes: int
    steps: int
    temporal_ratio: int
    half_width: float  # of the surrogate's window
    hidden: int = 256
    channel_ratio: int = 8


_FIVE = partial(
    Plan, channels=(32, 64, 128, 256, 512), pools=(2, 2, 2, 2, 4), size=(128, 128), temporal_ratio=2
)
PLANS = {
    "ma_snn_dvs_gesture": Plan(
        (64, 128, 128), (1, 2, 2), size=(32, 32), classes=11, steps=60, temporal_ratio=5, half_width=0.25
    ),
    "ma_snn_cifar10_dvs": _FIVE(classes=10, steps=20, half_width=0.5),
    "ma_snn_dvs_gait": _FIVE(classes=21, steps=8, half_width=0.25),
}


class MASNN(nn.Module):
    """The network of a plan. `features` and `classifier` are the layers of the paper's table, in order.

    `averages_scores` is True if the last layer emits membranes, which are scores, and False if it emits
    spikes.
    """

    def __init__(
        self, plan: Plan, attention_name: str | None, emit: str, learn: tuple[str, ...], backend: Backend
    ):
        super().__init__()
        if emit not in EMITS:
            raise ValueError(f"emit must be one of {', '.join(EMITS)}, got {emit!r}")

        def layer(
            current: nn.Module, norm: _BatchNorm, width: int, pool: int = 1, *, maps: bool
        ) -> SpikingLayer:
            neuron = neurons.ma_snn(
                half_width=plan.half_width,
                emit=EMITS[emit],
                learn=learn,
                channels=width if learn else None,
                backend=backend,
            )
            gates = attention(
                attention_name,
                channels=width if maps else None,
                maps=maps,
                steps=plan.steps,
                channel_ratio=plan.channel_ratio,
                temporal_ratio=plan.temporal_ratio,
            )
            return SpikingLayer(current, neuron, norm=norm, pool=pool, attention=gates)

        def conv(c: int, width: int, pool: int) -> SpikingLayer:
            return layer(nn.Conv2d(c, width, 3, padding=1), nn.BatchNorm2d(width), width, pool, maps=True)

        def linear(c: int, width: int) -> SpikingLayer:
            return layer(nn.Linear(c, width), nn.BatchNorm1d(width), width, maps=False)

        widths = (2, *plan.channels)
        flat = widths[-1] * math.prod(side // math.prod(plan.pools) for side in plan.size)
        self.features = nn.Sequential(*map(conv, widths[:-1], widths[1:], plan.pools))
        self.classifier = nn.Sequential(linear(flat, plan.hidden), linear(plan.hidden, plan.classes))
        self.read_out = Rate()
        self.averages_scores = emit == "membrane"
        self.plan = plan

    def forward(self, x: Tensor, every_step: bool = False) -> Tensor:
        """Maps x [T, N, 2, H, W] to [N, classes], the mean over T of what the last layer emits.

        With `every_step` it returns the scores of every step instead, [T, N, classes]. Raises ValueError for
        frames of another shape, and for `every_step` if the network emits spikes.
        """
        if every_step and not self.averages_scores:
            raise ValueError(
                "every_step: this network ends in spikes, which are not the scores of a step; make it with "
                "emit='membrane'"
            )
        x = self._by_step(plainly, x)
        return x if every_step else self.read_out(x)

    def run(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Runs a chunk x [t, N, 2, H, W] of a sequence and returns (out, state).

        `state` is what the chunk before returned; None: at rest. `out` [t, N, classes] is what the last
        layer emits. Its mean over the steps of all chunks is what `forward` returns. In training mode, or
        with an attention, which needs whole windows, it raises ValueError.
        """
        return streamed(self, self._by_step, state, x)

    def _by_step(self, call: Callable[..., Tensor], x: Tensor) -> Tensor:
        height, width = self.plan.size
        if x.dim() != 5 or x.shape[2:] != (2, height, width):
            want = f"[T, N, 2, {height}, {width}]"
            raise ValueError(f"x must be frames {want}, got shape {tuple(x.shape)}")
        x = call(self.features, x)  # [T, N, C, H, W]
        return call(self.classifier, x.flatten(2))  # [T, N, classes]


def _build(
    plan: Plan,
    attention: str | None,
    emit: str,
    learn: Iterable[str],
    backend: Backend,
    *,
    width: float,
    **overrides: Any,
) -> MASNN:
    values = {**plan.__dict__, **{k: v for k, v in overrides.items() if v is not None}}
    if len(values["channels"]) != len(plan.pools):
        raise ValueError(f"channels must name {len(plan.pools)} widths, got {values['channels']!r}")
    counts = ("steps", "classes", "hidden", "channel_ratio", "temporal_ratio")
    check_counts(**{name: values[name] for name in counts})
    *channels, hidden = scaled((*values["channels"], values["hidden"]), width, values["channel_ratio"])
    values |= {"channels": tuple(channels), "hidden": hidden}
    if min(channels) < 1:
        raise ValueError(f"channels must be at least 1 each, got {values['channels']!r}")
    values["size"] = sides(values["size"], math.prod(plan.pools))
    return MASNN(Plan(**values), attention, emit, tuple(learn), backend)


def _register(name: str, what: str) -> None:
    plan = PLANS[name]

    def builder(
        *,
        attention: str | None = "TCSA",
        steps: int = plan.steps,
        emit: str = "spike",
        learn: tuple[str, ...] = (),
        backend: Backend = "auto",
        num_classes: int = plan.classes,
        size: int | tuple[int, int] = plan.size,
        channels: tuple[int, ...] | None = None,
        hidden: int | None = None,
        width: float = 1.0,
        channel_ratio: int = plan.channel_ratio,
        temporal_ratio: int = plan.temporal_ratio,
    ) -> MASNN:
        return _build(
            plan,
            attention,
            emit,
            learn,
            backend,
            width=width,
            steps=steps,
            classes=num_classes,
            size=size,
            channels=channels,
            hidden=hidden,
            channel_ratio=channel_ratio,
            temporal_ratio=temporal_ratio,
        )

    builder.__name__ = name
    builder.__doc__ = f"""MA-SNN for {what}: [T, N, 2, {plan.size[0]}, {plan.size[1]}] -> [N, {plan.classes}].

    Args:
        attention: "TA", "CA", "SA", "TCA", "TSA", "CSA", "TCSA" or None.
        steps: T. Temporal attention fixes it.
        emit: "spike", or "membrane" for the published LIAF.
        learn: which of "alpha", "beta" and "threshold" each neuron layer learns, one value per channel.
        num_classes, channels, hidden: the layer table itself: classes, channels of each convolution, width of
            the fully connected layer.
        width: multiplies channels and hidden, for small machines.
        size: side of the frames in pixels, or (H, W), multiples of {math.prod(plan.pools)}.
        channel_ratio, temporal_ratio: of the gates' MLPs.
        backend: "auto", "fused" or "reference".
    """
    globals()[name] = register(builder)


_register("ma_snn_dvs_gesture", "DVS128 Gesture, three convolutions")
_register("ma_snn_cifar10_dvs", "CIFAR10-DVS, five convolutions")
_register("ma_snn_dvs_gait", "DVS128 Gait, five convolutions")
