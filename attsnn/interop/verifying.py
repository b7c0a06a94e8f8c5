"""Verifies that an exchanged network computes what it did, before anyone relies on it."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from .finding import Link, find


class _Bounds(NamedTuple):
    """Tolerances.

    near: the distance to the threshold within which rounding decides whether a neuron fires; close: the
    allowed difference of two tensors, relative to the largest value; rest: the same relative to the largest
    value of all, for values that cancel.
    """

    near: float
    close: float
    rest: float

    def __str__(self) -> str:
        return f"{self.close:g}".replace("e-0", "e-")


BOUNDS = {torch.float64: _Bounds(1e-9, 1e-9, 1e-12), torch.float32: _Bounds(1e-6, 1e-5, 1e-6)}
CALLS = 64  # the most calls of a neuron that are compared

Exchange = Callable[[nn.Module, list[str], dict[str, Link]], Any]
Modules = dict[str, nn.Module]


class MismatchError(RuntimeError):
    """An exchanged network does not compute what the original does."""


class _Call(NamedTuple):
    """What a neuron, or the norm before it, was called with, and the neuron's state at that time."""

    args: tuple[Any, ...]
    state: Any


def verify(
    network: nn.Module, names: list[str], links: dict[str, Link], example: Any, exchange: Exchange
) -> list[str]:
    """Verifies, and returns sentences that say how. The network is not touched. Raises MismatchError."""
    with _own_random_numbers(network):
        check = _Check(network, names, links, example, exchange)
        return [check.neurons(), check.whole(), check.as_it_is()]


def links_of(
    network: nn.Module,
    names: list[str],
    norms: list[str],
    neurons: list[str],
    example: Any,
    exchange: Exchange,
) -> dict[str, Link | str]:
    """For each of the neurons its link to one of the norms, or in words why it has none."""
    with _own_random_numbers(network):
        check = _Check(network, names, {}, example, exchange)
        own = check.exchanged(check.dtype)
        return find(own, norms, neurons, lambda: _call(own, example, check.dtype))


def _own_random_numbers(network: nn.Module) -> AbstractContextManager[None]:
    return torch.random.fork_rng(
        devices=[*{p.device for p in network.parameters() if p.device.type == "cuda"}]
    )


class _Unit(NamedTuple):
    """What is verified at once: a neuron, with the norm before it if they are fused."""

    name: str
    link: Link | None

    @property
    def entry(self) -> str:
        return self.link.norm if self.link else self.name

    def of(self, modules: Modules) -> list[nn.Module]:
        return [modules[name] for name in dict.fromkeys((self.entry, self.name))]

    def run(self, modules: Modules, args: tuple[Any, ...]) -> Any:
        if self.link is None:
            return modules[self.name](*args)
        return modules[self.name](self.link.moved(modules[self.link.norm](*args)))

    def read(self, modules: Modules, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """What the neuron reads; no statistics are changed."""
        if self.link is None:
            return args
        norm = modules[self.link.norm]
        buffers = {name: buffer.clone() for name, buffer in norm.named_buffers()}
        return (self.link.moved(torch.func.functional_call(norm, buffers, args)),)


class _Check:
    """Compares a network with its exchanged self, on copies in a type that tells
    rounding from real differences.
    """

    def __init__(
        self,
        network: nn.Module,
        names: list[str],
        links: dict[str, Link],
        example: Any,
        exchange: Exchange,
    ):
        modules = dict(network.named_modules())
        narrow = any(hasattr(modules[name], "spike_grad") for name in names)  # snnTorch's spikes are float32
        self.dtype = torch.float32 if narrow else torch.float64
        self.network, self.names, self.links, self.example = network, names, links, example
        self.exchange, self.bounds = exchange, BOUNDS[self.dtype]
        self.near = 0  # values on the threshold

    def exchanged(self, dtype: torch.dtype | None) -> nn.Module:
        found = _copy(self.network, dtype)
        self.exchange(found, self.names, self.links)
        return found

    def neurons(self) -> str:
        """Compares each neuron, with its norm, on the input that it is fed."""
        units = [_Unit(name, self.links.get(name)) for name in self.names]
        fed = _fed(_copy(self.network, self.dtype), units, self.example, self.dtype)
        theirs = dict(_copy(self.network, self.dtype).named_modules())
        ours, values = dict(self.exchanged(self.dtype).named_modules()), 0
        for unit in units:
            for call in fed[unit.name]:
                near, count = _compare(unit, theirs, ours, call, self.bounds)
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
        """Compares outputs and gradients of both networks."""
        results = []
        for net in (_copy(self.network, self.dtype), self.exchanged(self.dtype)):
            net.zero_grad(set_to_none=True)
            with torch.enable_grad():
                outs = _tensors(_call(net, self.example, self.dtype))
                total = _random_sum([x for x in outs if x.is_floating_point()])
                differentiable = isinstance(total, Tensor) and total.requires_grad
                if isinstance(total, Tensor) and differentiable:
                    torch.autograd.backward(total)
            found: dict[str, Tensor | None] = {}
            if outs:
                found["The network's output"] = outs[0].detach()
            if differentiable:
                found |= {f"The gradient of {name}": p.grad for name, p in net.named_parameters()}
            results.append(found)
        theirs, ours = results
        # The sizes of the gradients, which are those of a sum with factors of about 1.
        sizes = [float(x.abs().max()) for x in list(theirs.values())[1:] if x is not None and x.numel()]
        largest = max(sizes, default=0.0)
        try:
            for what, a in theirs.items():
                _close(what, a, ours[what], self.bounds, scale=max(largest, 1e-3))
        except MismatchError as error:
            if not self.near:
                raise
            return f"The whole network differs, by those values on the threshold: {error}"
        if len(theirs) < 2:
            return (
                f"The whole network's outputs are equal to {self.bounds}; it has no gradients in this mode."
            )
        return f"The whole network's outputs and gradients are equal to {self.bounds}."

    def as_it_is(self) -> str:
        """Says how many spikes differ in the network's own type."""
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
    """A copy of the network in that type. Its states have no graph, and it has no hooks but PyTorch's own."""
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
    """Whether a hook is one of PyTorch's own, by which pruning and the old weight_norm compute weights."""
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


def _fed(network: nn.Module, units: list[_Unit], example: Any, dtype: torch.dtype) -> dict[str, list[_Call]]:
    """What each of the units is called with, the first times."""
    fed: dict[str, list[_Call]] = {unit.name: [] for unit in units}
    modules = dict(network.named_modules())

    def remember(calls: list[_Call], neuron: nn.Module) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if len(calls) < CALLS:
                kept = tuple(x.detach().clone() if isinstance(x, Tensor) else x for x in args)
                calls.append(_Call(kept, _held(_state(neuron))))

        return hook

    for unit in units:
        modules[unit.entry].register_forward_pre_hook(remember(fed[unit.name], modules[unit.name]))
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
    differentiable: bool
    grads: list[Tensor | None]  # of its inputs
    weights: list[Tensor | None]  # of its parameters
    buffers: list[Tensor]
    state: Tensor


def _compare(unit: _Unit, theirs: Modules, ours: Modules, call: _Call, bounds: _Bounds) -> tuple[int, int]:
    """(Values on the threshold, all values) of a call. Raises MismatchError if any other value differs."""
    name = unit.name
    neuron: Any = ours[name]
    _set_state(neuron, call.state)
    with torch.no_grad():
        near = neuron.distances(*unit.read(theirs, call.args)).abs() <= bounds.near
    a, b = _ran(unit, theirs, call), _ran(unit, ours, call)
    # After a spike on the threshold the sequences may part: that neuron is left out as a whole.
    lost = near.any(0) if near.dim() > a.state.dim() else near
    differ = (a.spikes != b.spikes) & ~lost
    if differ.any():
        raise MismatchError(f"{name}: {int(differ.sum()):,} spikes are not the original's.")
    _close(f"{name}: the state", a.state, b.state, bounds, lost, scale=1.0)
    for before, after in zip(a.buffers, b.buffers, strict=True):
        _close(f"{unit.entry}: a running statistic", before, after, bounds, scale=1.0)
    if not a.differentiable:
        return int(near.sum()), near.numel()
    exact = not near.any()
    scale = max((float(x.abs().max()) for x in a.grads if x is not None and x.numel()), default=0.0)
    for x, y in zip(a.grads, b.grads, strict=True):
        if exact or unit.link is None:  # a norm spreads a difference over all values
            _close(f"{name}: the gradient", x, y, bounds, lost if unit.link is None else None, scale=scale)
    for x, y in zip(a.weights, b.weights, strict=True):
        if exact:
            _close(f"{name}: the gradient of its parameters", x, y, bounds, scale=scale)
    return int(near.sum()), near.numel()


def _ran(unit: _Unit, modules: Modules, call: _Call) -> _Ran:
    """Runs a call, and takes the gradients of a random sum of what it returns."""
    neuron, parts = modules[unit.name], unit.of(modules)
    _set_state(neuron, call.state)
    for part in parts:
        part.zero_grad(set_to_none=True)
    args = tuple(x.clone().requires_grad_() if isinstance(x, Tensor) else x for x in call.args)
    with torch.enable_grad():
        outs = _tensors(unit.run(modules, args))
        total = _random_sum(outs)
        assert isinstance(total, Tensor)  # a neuron returns something
        if total.requires_grad:
            torch.autograd.backward(total)
    own = [p.grad for part in parts for p in part.parameters(recurse=False)]
    buffers = [x for part in parts for x in part.buffers(recurse=False)]
    grads = [x.grad for x in args if isinstance(x, Tensor)]
    return _Ran(outs[0].detach(), total.requires_grad, grads, own, buffers, _state(neuron).detach())


def _random_sum(outs: list[Tensor]) -> Tensor | Literal[0]:
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
    if a is None or b is None or not a.numel():
        return
    error = (a - b).abs() if lost is None else torch.where(lost, 0.0, (a - b).abs())
    largest = float(a.abs().max())
    if not bool((error <= bounds.close * largest + bounds.rest * scale).all()):
        raise MismatchError(
            f"{what} is not the original's: {float(error.max()):.3g} apart, of values up to {largest:.3g}."
        )


@contextmanager
def _outputs(network: nn.Module, names: list[str]) -> Iterator[list[Tensor]]:
    """What these neurons emit, call by call. The hook is one of all modules: a hook on a neuron itself
    would separate it from its norm.
    """
    found: list[Tensor] = []
    modules = dict(network.named_modules())
    neurons = {id(modules[name]) for name in names}

    def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        if id(module) in neurons:
            found.append(tree_leaves(out)[0])

    handle = nn.modules.module.register_module_forward_hook(hook)
    try:
        yield found
    finally:
        handle.remove()
