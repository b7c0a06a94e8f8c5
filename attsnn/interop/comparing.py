"""Compares a neuron, with the norm that it is fused with, with the original's, on the same input."""

from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from attsnn._functions import tensors_of

from .finding import Link
from .running import held, set_state, state_of

Modules = dict[str, nn.Module]


class Bounds(NamedTuple):
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


BOUNDS = {torch.float64: Bounds(1e-9, 1e-9, 1e-12), torch.float32: Bounds(1e-6, 1e-5, 1e-6)}


class MismatchError(RuntimeError):
    """An exchanged network does not compute what the original does."""


class Call(NamedTuple):
    """What a neuron, or the norm before it, was called with, and the neuron's state at that time."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    state: Any

    @property
    def inputs(self) -> list[Tensor]:
        return tensors_of((self.args, self.kwargs))


class Unit(NamedTuple):
    """What is verified at once: a neuron, with the norm before it if they are fused."""

    name: str
    link: Link | None

    @property
    def entry(self) -> str:
        return self.link.norm if self.link else self.name

    def of(self, modules: Modules) -> list[nn.Module]:
        return [modules[name] for name in dict.fromkeys((self.entry, self.name))]

    def run(self, modules: Modules, call: Call) -> Any:
        out = modules[self.entry](*call.args, **call.kwargs)
        return out if self.link is None else modules[self.name](self.link.moved(out))

    def distances(self, theirs: Modules, ours: Modules, call: Call) -> Tensor:
        """The distances of the membrane to the threshold; no statistics are changed."""
        neuron: Any = ours[self.name]
        if self.link is None:
            return cast(Tensor, neuron.distances(*call.args, **call.kwargs))
        norm = theirs[self.link.norm]
        buffers = {name: buffer.clone() for name, buffer in norm.named_buffers()}
        normed = torch.func.functional_call(norm, buffers, call.args, call.kwargs)
        return cast(Tensor, neuron.distances(self.link.moved(normed)))


class _Ran(NamedTuple):
    spikes: Tensor
    differentiable: bool
    grads: list[Tensor | None]  # of its inputs
    weights: list[Tensor | None]  # of its parameters
    buffers: list[Tensor]
    state: Tensor


class Compared(NamedTuple):
    """Of a call: all values, those on the threshold, the neurons that have such values, and whether there
    are gradients that the original does not have.
    """

    values: int
    near: int
    lost: int
    more: bool


def compare(unit: Unit, theirs: Modules, ours: Modules, call: Call, bounds: Bounds) -> Compared:
    """Compares a call. Raises MismatchError if a value that is not on the threshold differs."""
    name = unit.name or "the network"
    set_state(ours[unit.name], call.state)
    with torch.no_grad():
        near = unit.distances(theirs, ours, call).abs() <= bounds.near
    a, b = _ran(unit, theirs, call), _ran(unit, ours, call)
    # After a spike on the threshold the sequences may part: that neuron is left out as a whole.
    lost = near.any(0) if near.dim() > a.state.dim() else near
    differ = (a.spikes != b.spikes) & ~lost
    if differ.any():
        raise MismatchError(f"{name}: {int(differ.sum()):,} spikes are not the original's.")
    close(f"{name}: the state", a.state, b.state, bounds, lost, scale=1.0)
    for before, after in zip(a.buffers, b.buffers, strict=True):
        close(f"{unit.entry}: a running statistic", before, after, bounds, scale=1.0)
    more = b.differentiable and not a.differentiable
    compared = Compared(near.numel(), int(near.sum()), int(lost.sum()), more)
    if not a.differentiable:
        return compared
    exact = not near.any()
    scale = max((float(x.abs().max()) for x in a.grads if x is not None and x.numel()), default=0.0)
    for x, y in zip(a.grads, b.grads, strict=True):
        if exact or unit.link is None:  # a norm spreads a difference over all values
            close(f"{name}: the gradient", x, y, bounds, lost if unit.link is None else None, scale=scale)
    for x, y in zip(a.weights, b.weights, strict=True):
        if exact:
            close(f"{name}: the gradient of its parameters", x, y, bounds, scale=scale)
    return compared


def _ran(unit: Unit, modules: Modules, call: Call) -> _Ran:
    """Runs a call, and takes the gradients of a random sum of what it returns."""
    neuron, parts = modules[unit.name], unit.of(modules)
    set_state(neuron, call.state)
    for part in parts:
        part.zero_grad(set_to_none=True)
    copy = Call(*tree_map(held, tuple(call)))
    inputs = [x.requires_grad_() for x in copy.inputs if x.is_floating_point()]
    with torch.enable_grad():
        outs = tensors_of(unit.run(modules, copy))
        total = random_sum(outs)
        assert isinstance(total, Tensor)  # a neuron returns something
        if total.requires_grad:
            torch.autograd.backward(total)
    own = [p.grad for part in parts for p in part.parameters(recurse=False)]
    buffers = [x for part in parts for x in part.buffers(recurse=False)]
    grads = [x.grad for x in inputs]
    return _Ran(outs[0].detach(), total.requires_grad, grads, own, buffers, state_of(neuron).detach())


def random_sum(outs: list[Tensor]) -> Tensor | Literal[0]:
    draw = torch.Generator().manual_seed(0)
    return sum((x * torch.randn(x.shape, generator=draw, dtype=x.dtype).to(x.device)).sum() for x in outs)


def close(
    what: str,
    a: Tensor | None,
    b: Tensor | None,
    bounds: Bounds,
    lost: Tensor | None = None,
    scale: float = 0.0,
) -> None:
    if (a is None) != (b is None):
        raise MismatchError(f"{what} is there in one of the two networks alone.")
    if a is None or b is None or not a.numel():
        return
    if not a.is_floating_point():
        a, b = (x.to(torch.complex128 if x.is_complex() else torch.float64) for x in (a, b))
    same = (a == b) | (a.isnan() & b.isnan())  # infinities, too
    error = (a - b).abs().masked_fill(same if lost is None else same | lost, 0.0)
    largest = float(a.abs().nan_to_num(0.0, 0.0, 0.0).max())
    if not bool((error <= bounds.close * largest + bounds.rest * scale).all()):
        raise MismatchError(
            f"{what} is not the original's: {float(error.max()):.3g} apart, of values up to {largest:.3g}."
        )
