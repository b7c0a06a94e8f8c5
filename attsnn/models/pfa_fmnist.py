"""The spiking network with projected full attention for Fashion-MNIST, and its baseline without it.

It has the form of the released code (PFA; Deng et al., 2024). A static part, 3x3 convolution -> batch norm,
is computed once, and its neurons read it T times. Then follow maximum pool -> 3x3 convolution -> batch norm
-> PFA -> neuron -> maximum pool, and two linear layers of neurons. The firing rate of the last one is the
read-out. Input [N, 1, 28, 28], shown T times; output [N, classes].
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor, nn

from attsnn import neurons
from attsnn._extension import Backend
from attsnn.attention import check_counts
from attsnn.layers import NormedLayer, Rate, SpikingLayer, State, plainly, streamed

from .parts import EachStep, asked_for, weighed
from .registry import register
from .sizes import check_attention, scaled

SIDE = 28


@dataclass(frozen=True)
class Plan:
    """What differs between the two networks, and what a caller may change."""

    channels: int = 128
    hidden: int = 2048
    classes: int = 10
    steps: int = 4
    rank: int = 4
    attention: str | None = "PFA"
    scale: str = "sum"
    fusion: str = "add"
    dropout: float = 0.7
    neuron: Callable[..., neurons.LIF] = neurons.leaky


class PFAFMNIST(nn.Module):
    """The network of a plan: `stem`, `stem_neuron`, `features`, which holds the PFA, `hidden`, `classifier`,
    `read_out`.
    """

    averages_scores = False  # it averages spikes

    def __init__(self, plan: Plan, backend: Backend):
        super().__init__()
        neuron, channels = partial(plan.neuron, backend=backend), plan.channels

        def conv(c: int) -> nn.Conv2d:
            return nn.Conv2d(c, channels, 3, padding=1, bias=False)

        def linear(c: int, width: int) -> SpikingLayer:
            return SpikingLayer(nn.Linear(c, width, bias=False), neuron())

        self.stem = NormedLayer(conv(1), nn.BatchNorm2d(channels), backend=backend)
        self.stem_neuron = neuron()
        self.pool = EachStep(nn.MaxPool2d(2))
        current, norm = conv(channels), nn.BatchNorm2d(channels)
        self.features = SpikingLayer(current, neuron(), norm=norm, attention=weighed(plan, channels, backend))
        self.dropout = nn.Dropout(plan.dropout)  # of [T, N, F]: every step has its own mask
        self.hidden = linear(channels * (SIDE // 4) ** 2, plan.hidden)
        self.classifier = linear(plan.hidden, plan.classes)
        self.read_out = Rate()
        self.plan = plan

    def forward(self, x: Tensor) -> Tensor:  # [N, 1, 28, 28] -> [N, classes]
        rates: Tensor = self.read_out(self._by_step(plainly, x, self.plan.steps))
        return rates

    def run(self, x: Tensor, state: State | None = None, *, steps: int | None = None) -> tuple[Tensor, State]:
        """Takes `steps` more steps (None: T) of the images x and returns (spikes, state).

        `state` is what the steps before returned; None: at rest. `spikes` are [steps, N, classes]. Their
        mean over all steps is what `forward` returns with as many steps. In training mode, or with an
        attention, which needs whole windows, it raises ValueError.
        """
        return streamed(self, self._by_step, state, x, asked_for(steps, self.plan))

    def _by_step(self, call: Callable[..., Tensor], x: Tensor, steps: int) -> Tensor:
        if x.shape[1:] != (1, SIDE, SIDE):
            raise ValueError(f"x must be images [N, 1, {SIDE}, {SIDE}], got shape {tuple(x.shape)}")
        # [1, N, C, H, W]: the same at every step. The norm's variance counts it once, as published.
        currents = self.stem(x[None])
        spikes = call(self.stem_neuron, currents, steps=steps)  # [T, N, C, H, W]
        spikes = self.pool(call(self.features, self.pool(spikes)))
        spikes = call(self.hidden, self.dropout(spikes.flatten(2)))  # [T, N, F]
        return call(self.classifier, self.dropout(spikes))


@register
def pfa_fmnist(
    *,
    attention: str | None = Plan.attention,
    steps: int = Plan.steps,
    rank: int = Plan.rank,
    num_classes: int = Plan.classes,
    channels: int = Plan.channels,
    hidden: int = Plan.hidden,
    width: float = 1.0,
    dropout: float = Plan.dropout,
    scale: str = Plan.scale,
    fusion: str = Plan.fusion,
    backend: Backend = "auto",
) -> PFAFMNIST:
    """Spiking network with PFA for Fashion-MNIST: [N, 1, 28, 28] -> [N, 10].

    Args:
        attention: "PFA" or None.
        steps: T, how often the image is shown.
        rank: of the PFA, 1 to 64.
        num_classes, channels, hidden: the layer table itself: classes, channels of both convolutions, hidden
            units.
        width: multiplies channels and hidden, for small machines.
        dropout: before both linear layers, with a mask for each step.
        scale, fusion: of the PFA, as `attsnn.attention.PFA` documents them (the released code adds the sum).
        backend: "auto", "fused" or "reference".
    """
    plan = Plan(channels, hidden, num_classes, steps, rank, attention, scale, fusion, dropout)
    check_attention(attention, ("PFA",))
    return _build(plan, backend, width)


BASELINE = Plan(attention=None, dropout=0.0, neuron=neurons.integrate_and_fire)


@register
def fmnist_baseline(
    *,
    steps: int = BASELINE.steps,
    num_classes: int = BASELINE.classes,
    channels: int = BASELINE.channels,
    hidden: int = BASELINE.hidden,
    width: float = 1.0,
    backend: Backend = "auto",
) -> PFAFMNIST:
    """The published baseline of `pfa_fmnist`: IF neurons, no PFA, no dropout; [N, 1, 28, 28] -> [N, 10].

    The published network runs step by step. Here the static part is computed once, with the same result. In
    training, the norm of the second convolution takes its statistics once, over all steps; the published one
    takes those of each step by itself. Evaluation is the same.

    Args:
        steps, num_classes, channels, hidden, width, backend: as those of `pfa_fmnist`.
    """
    plan = replace(BASELINE, steps=steps, classes=num_classes, channels=channels, hidden=hidden)
    return _build(plan, backend, width)


def _build(plan: Plan, backend: Backend, width: float) -> PFAFMNIST:
    check_counts(**{name: getattr(plan, name) for name in ("steps", "rank", "classes", "channels", "hidden")})
    channels, hidden = scaled((plan.channels, plan.hidden), width, 1)
    return PFAFMNIST(replace(plan, channels=channels, hidden=hidden), backend)
