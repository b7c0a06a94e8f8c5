"""The columns of the benches: ours, PyTorch loops, and the peers, each by its fastest call.

A column of the neuron bench makes, for a neuron and an input, a function x -> spikes; one of the seam bench,
for a layer, a function (z, shortcut) -> (spikes, membrane). What computes another equation by design says so
in its note; all others are compared with float64 before anything is timed.
"""

import contextlib
import importlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from attsnn import neurons, reference
from attsnn.layers import SpikingLayer, over_time

Layer = Callable[[Tensor], Tensor]
Seam = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
Anything = TypeVar("Anything")
TAU = 2.0
READY_SECONDS = 20  # a column that needs longer for its first call is a gap
CHECKED = 2**23  # elements that are compared with float64 before a layer is timed

# The two neurons: SpikingJelly's LIF, which the peers have too, and the rectangular window that they lack.
NEURONS = {
    "leaky": lambda backend: neurons.leaky(TAU, detach_reset=True, backend=backend),
    "ms_resnet": lambda backend: neurons.ms_resnet(backend=backend),
}
PRESETS = {**NEURONS, "ma_snn": lambda backend: neurons.ma_snn(backend=backend)}  # those of seams too


class GapError(Exception):
    """Why a column has no figure."""


class _TooLongError(BaseException):
    """No Exception: a compiler would wrap it as a failure of its own."""


@dataclass(frozen=True)
class Column:
    """`make(neuron, x)` returns the layer. `package`: what must be importable; `serves`: which neurons, or
    groups of seams; `neuron`: that of a seam, where it can have no other.
    """

    name: str
    make: Callable
    package: str | None = None
    serves: tuple[str, ...] = tuple(NEURONS)
    note: str = ""
    same_gradient: bool = True
    counts: bool = True  # its operators pass the dispatcher
    neuron: str | None = None

    def layer(self, neuron: str, x: Tensor) -> Layer:
        """The layer, ready: imported, compiled, called once. Raises GapError."""

        def prepare() -> Layer:
            layer = self.make(neuron, x)
            layer(x.detach().requires_grad_()).sum().backward()
            return layer

        if neuron not in self.serves:
            raise GapError(f"has no {neuron} neuron")
        return self.ready(prepare)

    def ready(self, prepare: Callable[[], Anything], seconds: float | None = None) -> Anything:
        """prepare(), in time. Raises GapError."""
        seconds = READY_SECONDS if seconds is None else seconds
        if self.package and importlib.util.find_spec(self.package) is None:
            raise GapError(f"{self.package} is not installed (make bench-peers)")
        try:
            with _at_most(seconds):
                return prepare()
        except torch.OutOfMemoryError:
            raise GapError("out of memory") from None
        except _TooLongError:
            raise GapError(f"not ready within {seconds:g} s") from None


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raises _TooLongError in the block when its time is over, at any place: also within torch.no_grad(),
    before it can put back what it changed, so that is done here.
    """
    over, records = False, torch.is_grad_enabled()

    def ring(*_):
        if not over:
            raise _TooLongError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        torch.set_grad_enabled(records)


# ---- PyTorch loops


def _steps(neuron: str) -> tuple[Callable, Callable, Callable]:
    """charge(v, x) -> h, fire(h) -> s, reset(h, s) -> v of the neuron."""
    module = PRESETS[neuron]("reference")
    c = module.constants()
    leak, gain, threshold = c["leak"], c["gain"], c["threshold"]

    def charge(v: Tensor, x: Tensor) -> Tensor:
        return leak * v + (x if gain == 1 else gain * x)

    def fire(h: Tensor) -> Tensor:
        return reference.neuron._fire(h, threshold, module.surrogate, module.strict, False)

    def reset(h: Tensor, s: Tensor) -> Tensor:
        if module.detach_reset:  # to 0
            return h * (1 - s.detach())
        return h * (1 - s) + threshold * s

    return charge, fire, reset


def _published(neuron: str, x: Tensor) -> Layer:
    """As the published networks write it: `x[t]`, and results stored into a tensor of zeros."""
    charge, fire, reset = _steps(neuron)

    def layer(x: Tensor) -> Tensor:
        v, out = torch.zeros_like(x[0]), torch.zeros_like(x)
        for t in range(x.shape[0]):
            h = charge(v, x[t])
            s = fire(h)
            v = reset(h, s)
            out[t] = s
        return out

    return layer


def _cleaned(neuron: str, x: Tensor) -> Layer:
    """The same with `unbind` and `stack`, which cost no O(T^2) backward."""
    charge, fire, reset = _steps(neuron)

    def layer(x: Tensor) -> Tensor:
        v, out = torch.zeros_like(x[0]), []
        for current in x.unbind(0):
            h = charge(v, current)
            s = fire(h)
            v = reset(h, s)
            out.append(s)
        return torch.stack(out)

    return layer


def _compiled(neuron: str, x: Tensor) -> Layer:
    torch._dynamo.reset()
    return torch.compile(_cleaned(neuron, x), dynamic=False)


def _attsnn(neuron: str, x: Tensor) -> Layer:
    return NEURONS[neuron]("fused")


# ---- the peers


def _spikingjelly(neuron: str, x: Tensor, kernels: str = "triton") -> Layer:
    """`kernels`, on CUDA: "triton", or "cuda", what SpikingJelly itself would take where it was built."""
    from spikingjelly._ops import lif
    from spikingjelly.activation_based import functional, surrogate
    from spikingjelly.activation_based.neuron import LIFNode

    if not x.is_cuda and kernels == "cuda":
        raise GapError("for CUDA only")
    node = LIFNode(
        tau=TAU,
        decay_input=True,
        v_threshold=1.0,
        v_reset=0.0,
        surrogate_function=surrogate.ATan(alpha=2.0),
        detach_reset=True,
        step_mode="m",
    ).to(x.device)
    picked = {}
    if x.is_cuda:
        # SJ_LIF_CUDA_IMPLEMENTATION is read once a process; both columns are timed in one.
        lif._selection._requested = kernels
        try:
            picked = {x.device.index: lif._selection._select(x.device.index)}
        except RuntimeError as error:
            raise GapError(f"not built: {error}") from None

    def layer(x: Tensor) -> Tensor:
        lif._selection._selections.update(picked)
        functional.reset_net(node)
        return node(x)

    return layer


def _snntorch(neuron: str, x: Tensor) -> Layer:
    import snntorch

    node = snntorch.Leaky(
        beta=1 - 1 / TAU,
        reset_mechanism="zero",
        reset_delay=False,
        spike_grad=snntorch.surrogate.atan(alpha=2.0),
    ).to(x.device)

    def layer(x: Tensor) -> Tensor:
        v, out = torch.zeros_like(x[0]), []
        for current in x.unbind(0):
            s, v = node(current / TAU, v)
            out.append(s)
        return torch.stack(out)

    return layer


def _norse(neuron: str, x: Tensor) -> Layer:
    from norse.torch.functional.lif_box import (
        LIFBoxFeedForwardState,
        LIFBoxParameters,
        lif_box_feed_forward_step,
    )

    parameters = LIFBoxParameters(tau_mem_inv=torch.tensor(1e3 / TAU, device=x.device))  # dt = 1 ms

    def layer(x: Tensor) -> Tensor:
        state, out = LIFBoxFeedForwardState(torch.zeros_like(x[0])), []
        for current in x.unbind(0):
            s, state = lif_box_feed_forward_step(current, state, parameters)
            out.append(s)
        return torch.stack(out)

    return layer


OURS = "attsnn"
COLUMNS = {
    column.name: column
    for column in (
        Column(OURS, _attsnn),
        Column("eager, published", _published),
        Column("eager", _cleaned),
        Column("torch.compile", _compiled, counts=False),
        Column("SpikingJelly", _spikingjelly, "spikingjelly", ("leaky",), "Triton on a GPU"),
        Column(
            "SpikingJelly native",
            partial(_spikingjelly, kernels="cuda"),
            "spikingjelly",
            ("leaky",),
            "its own CUDA kernels, where SJ_BUILD_NATIVE_CUDA=1 has built them",
        ),
        Column(
            "snnTorch",
            _snntorch,
            "snntorch",
            ("leaky",),
            "fires at > and not >=; the reset stays in the graph",
            False,
        ),
        Column(
            "Norse",
            _norse,
            "norse",
            ("leaky",),
            "fires at >, SuperSpike surrogate, the reset stays in the graph",
            False,
        ),
    )
}


# ---- seams: what lies between two convolutions


def neuron_of(layer: SpikingLayer) -> str:
    """The preset's name of a layer's neuron."""
    constants = layer.neuron.constants()
    return next(n for n, make in PRESETS.items() if make("reference").constants() == constants)


def _composed_seam(
    layer: SpikingLayer, z: Tensor, walk: Callable[[str, Tensor], Layer] | None = None
) -> Seam:
    """Batch norm of the folded maps, average pool, gates, ReLU in place, shortcut, a loop over `unbind`.
    `walk(neuron, z)` makes another neuron.
    """
    walked = (walk or _cleaned)(neuron_of(layer), z)
    gate_of = (reference.temporal_gate, reference.channel_gate, reference.spatial_gate)

    def seam(z: Tensor, shortcut: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z = z if layer.current is None else over_time(layer.current, z)
        x = z.flatten(0, 1) if layer.norm is None else layer.norm(z.flatten(0, 1))
        x = (F.avg_pool2d(x, layer.pool) if layer.pool > 1 else x).unflatten(0, z.shape[:2])
        if layer.attention is not None:
            temporal, channel, spatial = layer.attention.gates(x)
            of_gates = (temporal, channel, None if spatial is None else (spatial,))
            for gate, weights in zip(gate_of, of_gates, strict=True):
                if weights is not None:
                    x = gate(x, *(w.to(x.dtype) for w in weights)) * x
            x = x.relu_()
        x = x if shortcut is None else x + shortcut
        return walked(x), x

    return seam


def _published_gates(layer: SpikingLayer, x: Tensor) -> Tensor:
    """x [N, T, C, H, W] gated as published: pools and 1 x 1 x 1 convolutions over volumes, axes swapped for
    the channels, time and channels merged for the space.
    """

    def excite(x: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
        reduce, expand = (w.to(x.dtype)[..., None, None, None] for w in weights)
        mean, peak = F.adaptive_avg_pool3d(x, 1), F.adaptive_max_pool3d(x, 1)
        mean, peak = (F.conv3d(F.relu(F.conv3d(d, reduce)), expand) for d in (mean, peak))
        return torch.sigmoid(mean + peak)

    gates = layer.attention.gates(x.transpose(0, 1))
    if gates.temporal is not None:
        x = excite(x, gates.temporal) * x
    if gates.channel is not None:
        x = excite(x.transpose(1, 2), gates.channel).transpose(1, 2) * x
    if gates.spatial is not None:
        merged = x.flatten(1, 2)
        maps = torch.cat([merged.mean(1, keepdim=True), merged.max(1, keepdim=True).values], 1)
        x = torch.sigmoid(F.conv2d(maps, gates.spatial.to(x.dtype), padding=1))[:, None] * x
    return x.relu_()


def _published_seam(layer: SpikingLayer, z: Tensor) -> Seam:
    """As the released code: MA-SNN folds, norms and pools, MS-ResNet norms volumes [N, C, T, H, W]; gates
    with the batch in front; `x[t]` in the loop.
    """
    neuron = neuron_of(layer)
    walked = _published(neuron, z)
    norm = layer.norm

    def seam(z: Tensor, shortcut: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if neuron == "ma_snn":
            x = norm(z.flatten(0, 1))
            x = (F.avg_pool2d(x, layer.pool) if layer.pool > 1 else x).unflatten(0, z.shape[:2])
        else:
            given = (norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training)
            x = F.batch_norm(z.permute(1, 2, 0, 3, 4), *given, norm.momentum, norm.eps).permute(2, 0, 1, 3, 4)
        if layer.attention is not None:
            x = _published_gates(layer, x.transpose(0, 1).contiguous()).transpose(0, 1)
        x = x if shortcut is None else x + shortcut
        return walked(x), x

    return seam


def _compiled_seam(layer: SpikingLayer, z: Tensor) -> Seam:
    torch._dynamo.reset()
    return torch.compile(_composed_seam(layer, z), dynamic=False)


def _fused_seam(layer: SpikingLayer, z: Tensor) -> Seam:
    def seam(z: Tensor, shortcut: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        found = SpikingLayer.forward(layer, z, shortcut)  # also where a column stands in its place
        return found if layer.membrane else (found, None)

    return seam


def _reference_seam(layer: SpikingLayer, z: Tensor) -> Seam:
    layer.neuron.backend = "reference"
    return _fused_seam(layer, z)


_SEAMS = ("B1", "G1", "G2")
SEAM_COLUMNS = {
    column.name: column
    for column in (
        Column(OURS, _fused_seam, serves=(*_SEAMS, "M1")),
        Column("composed, published", _published_seam, serves=_SEAMS),
        Column("composed", _composed_seam, serves=(*_SEAMS, "M1")),
        Column("torch.compile", _compiled_seam, serves=_SEAMS, counts=False),
        Column(
            "SpikingJelly",
            partial(_composed_seam, walk=_spikingjelly),
            "spikingjelly",
            _SEAMS,
            "its LIFNode behind PyTorch's batch norm and gates",
            neuron="leaky",
        ),
        Column("backend=reference", _reference_seam, serves=("M1",)),
    )
}


# ---- before anything is timed


@dataclass(frozen=True)
class Exact:
    """What float64 makes of a case: spikes and gradients of its first samples, CHECKED elements or so."""

    x: Tensor
    grad: Tensor
    spikes: Tensor
    grad_x: Tensor

    @classmethod
    def of(cls, neuron: str, x: Tensor, grad: Tensor) -> "Exact":
        samples = max(1, x.shape[1] * CHECKED // max(x.numel(), 1))
        x, grad = x[:, :samples].detach(), grad[:, :samples]
        leaf = x.double().requires_grad_()
        spikes = NEURONS[neuron]("reference")(leaf)
        spikes.backward(grad.double())
        return cls(x, grad, spikes.detach(), leaf.grad)


def check(layer: Layer, exact: Exact, *, same_gradient: bool = True) -> int:
    """Spikes that differ from those of float64. Raises GapError for too many, or for another gradient.

    An element may sit within rounding of its threshold: up to one spike in a thousand (in 16 bit, where the
    input itself is rounded alike, one in twenty for a state in 16 bit) may differ. The gradients are compared
    for neurons whose spikes are all equal.
    """
    half = exact.x.element_size() == 2
    leaf = exact.x.detach().requires_grad_()
    ours = layer(leaf)
    wrong = ours.detach().double() != exact.spikes
    mismatches = int(wrong.sum())
    if mismatches > wrong.numel() * (0.05 if half else 0.001):
        raise GapError(f"refused: {mismatches} of {wrong.numel()} spikes are not those of float64")
    if same_gradient:
        ours.backward(exact.grad)
        equal = ~wrong.any(0)
        error = ((leaf.grad.double() - exact.grad_x) * equal).abs().max()
        scale = exact.grad_x.abs().max()
        if error > scale * (0.05 if half else 1e-4):
            raise GapError(f"refused: the gradient is {error / scale:.1%} off that of float64")
    return mismatches
