"""Whether an exchanged network computes what it did, before anybody relies on it."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from .exchange import Exchanged


class _Bounds(NamedTuple):
    """near: distance to the threshold within which rounding decides whether a neuron fires; close: what may
    be between two tensors, of the largest value; rest: of the largest of all, where values cancel.
    """

    near: float
    close: float
    rest: float

    def __str__(self) -> str:
        return f"{self.close:g}".replace("e-0", "e-")


BOUNDS = {torch.float64: _Bounds(1e-9, 1e-9, 1e-12), torch.float32: _Bounds(1e-6, 1e-5, 1e-6)}
CALLS = 64  # of a neuron that are looked at

Exchange = Callable[[nn.Module, list[str]], None]


class MismatchError(RuntimeError):
    """An exchanged network does not compute what the original does."""


class _Call(NamedTuple):
    """What a neuron was called with, and its state then."""

    args: tuple
    state: Any


def verify(network: nn.Module, names: list[str], example: Any, exchange: Exchange) -> list[str]:
    """Sentences that say how it was verified; the network is not touched. Raises MismatchError."""
    devices = {p.device for p in network.parameters() if p.device.type == "cuda"}
    modules = dict(network.named_modules())
    narrow = any(hasattr(modules[name], "spike_grad") for name in names)  # snnTorch's spikes are float32
    with torch.random.fork_rng(devices=[*devices]):
        check = _Check(network, names, example, exchange, torch.float32 if narrow else torch.float64)
        return [check.neurons(), check.whole(), check.as_it_is()]


class _Check:
    """The comparisons of a network with its exchanged self, on copies of that type."""

    def __init__(
        self, network: nn.Module, names: list[str], example: Any, exchange: Exchange, dtype: torch.dtype
    ):
        self.network, self.names, self.example = network, names, example
        self.exchange, self.dtype, self.bounds = exchange, dtype, BOUNDS[dtype]
        self.near = 0  # values on the threshold

    def exchanged(self, dtype: torch.dtype | None) -> nn.Module:
        found = _copy(self.network, dtype)
        self.exchange(found, self.names)
        return found

    def neurons(self) -> str:
        """Each neuron on what it is fed."""
        fed = _fed(_copy(self.network, self.dtype), self.names, self.example, self.dtype)
        theirs = dict(_copy(self.network, self.dtype).named_modules())
        ours, values = dict(self.exchanged(self.dtype).named_modules()), 0
        for name in self.names:
            for call in fed[name]:
                near, count = _compare(name, theirs[name], ours[name], call, self.bounds)
                self.near, values = self.near + near, values + count
        text = (
            f"Verified in {_words(self.dtype)} on the example: {len(fed)} neuron layers in "
            f"{sum(map(len, fed.values()))} calls, each on what it was fed: all of {values:,} spikes are "
            f"equal, states and gradients to {self.bounds}"
        )
        if self.near:
            text += f", but for {self.near:,} values on the threshold, where rounding decides"
        idle = [name for name, found in fed.items() if not found]
        return text + (f". Not run on the example: {', '.join(idle)}." if idle else ".")

    def whole(self) -> str:
        """Outputs and gradients of both networks."""
        results = []
        for net in (_copy(self.network, self.dtype), self.exchanged(self.dtype)):
            net.zero_grad(set_to_none=True)
            with torch.enable_grad():
                outs = _tensors(_call(net, self.example, self.dtype))
                total = _random_sum([x for x in outs if x.is_floating_point()])
                if isinstance(total, Tensor) and total.requires_grad:
                    total.backward()
            grads = {f"The gradient of {name}": p.grad for name, p in net.named_parameters()}
            results.append(({"The network's output": outs[0].detach()} if outs else {}) | grads)
        theirs, ours = results
        # Of the gradients, which are those of a sum with factors of about 1.
        sizes = [float(x.abs().max()) for x in list(theirs.values())[1:] if x is not None and x.numel()]
        largest = max(sizes, default=0.0)
        try:
            for what, a in theirs.items():
                _close(what, a, ours[what], self.bounds, scale=max(largest, 1e-3))
        except MismatchError as error:
            if not self.near:
                raise
            return f"The whole network differs, by those values on the threshold: {error}"
        return f"The whole network's outputs and gradients are equal to {self.bounds}."

    def as_it_is(self) -> str:
        """How many spikes differ in the network's own type."""
        spikes = []
        for net in (_copy(self.network), self.exchanged(None)):
            with torch.no_grad(), _outputs(net, self.names) as found:
                _call(net, self.example, None)
            spikes.append(found)
        pairs = list(zip(*spikes, strict=True))
        different = sum(int((a != b).sum()) for a, b in pairs)
        kind = next((_words(p.dtype) for p in self.network.parameters()), "its own type")
        return f"In {kind} {different:,} of {sum(a.numel() for a, _ in pairs):,} spikes differ."


def _words(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---- copies, runs
# ------------------------------------------------------------------------------------------


def _copy(network: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A copy, its states without their graph and itself without hooks, but for PyTorch's, in that type."""
    memo = {}
    for module in network.modules():
        kept = (module.__dict__, module.__dict__.get("_memories", {}), module._buffers)
        for value in (value for part in kept for value in part.values()):
            if isinstance(value, Tensor):
                memo[id(value)] = value.detach().clone()
    found = copy.deepcopy(network, memo)
    for module in found.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks):
            for key in [k for k, hook in hooks.items() if not _of_torch(hook)]:
                del hooks[key]
    if dtype is None:
        return found
    for module in found.to(dtype).modules():
        memories = module.__dict__.get("_memories", {})
        memories.update({name: _wide(value, dtype) for name, value in memories.items()})
    return found


def _of_torch(hook: Any) -> bool:
    """Whether it is one of PyTorch's own, by which pruning and old weight_norm compute weights."""
    return getattr(hook, "__module__", type(hook).__module__).startswith("torch.")


def _tensors(values: Any) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


def _wide(value: Any, dtype: torch.dtype | None) -> Any:
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if floating and dtype is not None else value


def _call(network: nn.Module, example: Any, dtype: torch.dtype | None) -> Any:
    """The network's output for the example, with the same draws at each call."""
    torch.manual_seed(0)
    given = tree_map(lambda x: _wide(x.detach(), dtype) if isinstance(x, Tensor) else x, example)
    if isinstance(given, dict):
        return network(**given)
    return network(*given) if isinstance(given, tuple | list) else network(given)


def _fed(network: nn.Module, names: list[str], example: Any, dtype: torch.dtype) -> dict[str, list[_Call]]:
    """What each of the neurons is called with, the first times."""
    fed: dict[str, list[_Call]] = {name: [] for name in names}
    modules = dict(network.named_modules())

    def remember(calls: list[_Call]):
        def hook(module: nn.Module, args: tuple) -> None:
            if len(calls) < CALLS:
                kept = tuple(x.detach().clone() if isinstance(x, Tensor) else x for x in args)
                calls.append(_Call(kept, _held(_state(module))))

        return hook

    for name, calls in fed.items():
        modules[name].register_forward_pre_hook(remember(calls))
    with torch.no_grad():
        _call(network, example, dtype)
    return fed


def _state(module: nn.Module) -> Any:
    return module.v if hasattr(module, "v") else module.mem


def _set_state(module: nn.Module, value: Any) -> None:
    setattr(module, "v" if hasattr(module, "v") else "mem", _held(value))


def _held(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


# ---- a neuron on what it was fed
# ------------------------------------------------------------------------------------------


class _Ran(NamedTuple):
    spikes: Tensor
    grads: list[Tensor | None]  # of its inputs
    weights: list[Tensor | None]  # of its parameters
    state: Tensor


def _compare(name: str, theirs: nn.Module, ours: Exchanged, call: _Call, bounds: _Bounds) -> tuple[int, int]:
    """(values on the threshold, all values) of a call; MismatchError where another one differs."""
    _set_state(ours, call.state)
    with torch.no_grad():
        near = ours.distances(*call.args).abs() <= bounds.near
    a, b = _ran(theirs, call), _ran(ours, call)
    # What follows a spike on the threshold is another sequence: that neuron is left out as a whole.
    lost = near.any(0) if near.dim() > a.state.dim() else near
    differ = (a.spikes != b.spikes) & ~lost
    if differ.any():
        raise MismatchError(f"{name}: {int(differ.sum()):,} spikes are not the original's.")
    scale = max((float(x.abs().max()) for x in a.grads if x is not None and x.numel()), default=0.0)
    for x, y in zip(a.grads, b.grads, strict=True):
        _close(f"{name}: the gradient", x, y, bounds, lost)
    _close(f"{name}: the state", a.state, b.state, bounds, lost, scale=1.0)
    if not near.any():
        for x, y in zip(a.weights, b.weights, strict=True):
            _close(f"{name}: the gradient of its parameters", x, y, bounds, scale=scale)
    return int(near.sum()), near.numel()


def _ran(module: nn.Module, call: _Call) -> _Ran:
    """A call, and the gradients of a random sum of what it returns."""
    _set_state(module, call.state)
    module.zero_grad(set_to_none=True)
    args = [x.clone().requires_grad_() if isinstance(x, Tensor) else x for x in call.args]
    with torch.enable_grad():
        outs = _tensors(module(*args))
        _random_sum(outs).backward()
    own = [p.grad for p in module.parameters(recurse=False)]
    grads = [x.grad for x in args if isinstance(x, Tensor)]
    return _Ran(outs[0].detach(), grads, own, _state(module).detach())


def _random_sum(outs: list[Tensor]) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return sum((x * torch.randn(x.shape, generator=draw, dtype=x.dtype).to(x.device)).sum() for x in outs)


def _close(
    what: str,
    a: Tensor | None,
    b: Tensor | None,
    bounds: _Bounds,
    lost: Tensor | None = None,
    scale: float = 0.0,
) -> None:
    if (a is None) != (b is None):
        raise MismatchError(f"{what} is there in one of the two networks alone.")
    if a is None or not a.numel():
        return
    error = (a - b).abs() if lost is None else torch.where(lost, 0.0, (a - b).abs())
    largest = float(a.abs().max())
    if not bool((error <= bounds.close * largest + bounds.rest * scale).all()):
        raise MismatchError(
            f"{what} is not the original's: {float(error.max()):.3g} apart, of values up to {largest:.3g}."
        )


@contextmanager
def _outputs(network: nn.Module, names: list[str]) -> Iterator[list[Tensor]]:
    """What those neurons emit, call by call."""
    found: list[Tensor] = []
    modules = dict(network.named_modules())
    for name in names:
        modules[name].register_forward_hook(lambda module, args, out: found.append(tree_leaves(out)[0]))
    yield found
