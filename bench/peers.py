"""The columns of the neuron bench: ours, PyTorch loops, and the peers, each by its fastest call.

A column makes, for a neuron and an input, a function x -> spikes. What computes another equation by design
says so in its note; `check` compares all others with float64 before anything is timed.
"""

import contextlib
import importlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from attsnn import neurons, reference

Layer = Callable[[Tensor], Tensor]
TAU = 2.0
READY_SECONDS = 20  # a column that needs longer for its first call is a gap
CHECKED = 2**23  # elements that are compared with float64 before a layer is timed

# The two neurons: SpikingJelly's LIF, which the peers have too, and the rectangular window that they lack.
NEURONS = {
    "leaky": lambda backend: neurons.leaky(TAU, detach_reset=True, backend=backend),
    "ms_resnet": lambda backend: neurons.ms_resnet(backend=backend),
}


class GapError(Exception):
    """Why a column has no figure."""


class _TooLongError(BaseException):
    """No Exception: a compiler would wrap it as a failure of its own."""


@dataclass(frozen=True)
class Column:
    """`make(neuron, x)` returns the layer. `package`: what must be importable; `serves`: which neurons."""

    name: str
    make: Callable[[str, Tensor], Layer]
    package: str | None = None
    serves: tuple[str, ...] = tuple(NEURONS)
    note: str = ""
    same_gradient: bool = True

    def layer(self, neuron: str, x: Tensor) -> Layer:
        """The layer, ready: imported, compiled, called once. Raises GapError."""
        if neuron not in self.serves:
            raise GapError(f"has no {neuron} neuron")
        if self.package and importlib.util.find_spec(self.package) is None:
            raise GapError(f"{self.package} is not installed (make bench-peers)")
        try:
            with _at_most(READY_SECONDS):
                layer = self.make(neuron, x)
                layer(x.detach().requires_grad_()).sum().backward()
        except torch.OutOfMemoryError:
            raise GapError("out of memory") from None
        except _TooLongError:
            raise GapError(f"not ready within {READY_SECONDS} s") from None
        return layer


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    def ring(*_):
        raise _TooLongError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---- PyTorch loops


def _equation(neuron: str):
    """(leak, gain, threshold, surrogate, strict) of the neuron; both reset to 0, detached."""
    module = NEURONS[neuron]("reference")
    c = module.constants()
    return c["leak"], c["gain"], c["threshold"], module.surrogate, module.strict


def _published(neuron: str, x: Tensor) -> Layer:
    """As the published networks write it: `x[t]`, and results stored into a tensor of zeros."""
    leak, gain, threshold, surrogate, strict = _equation(neuron)

    def layer(x: Tensor) -> Tensor:
        v, out = torch.zeros_like(x[0]), torch.zeros_like(x)
        for t in range(x.shape[0]):
            h = leak * v + gain * x[t]
            s = reference.neuron._fire(h, threshold, surrogate, strict, False)
            v = h * (1 - s.detach())
            out[t] = s
        return out

    return layer


def _cleaned(neuron: str, x: Tensor) -> Layer:
    """The same with `unbind` and `stack`, which cost no O(T^2) backward."""
    leak, gain, threshold, surrogate, strict = _equation(neuron)

    def layer(x: Tensor) -> Tensor:
        v, out = torch.zeros_like(x[0]), []
        for current in x.unbind(0):
            h = leak * v + gain * current
            s = reference.neuron._fire(h, threshold, surrogate, strict, False)
            v = h * (1 - s.detach())
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
        Column("torch.compile", _compiled),
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
