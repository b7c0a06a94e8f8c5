"""The LIF family: affine charge, fire, reset; the equation of one time step, walked through time in Python.

    h = (leak * v + bias) + gain * x            charge, rounded in this order
    s = fire(h - threshold)                     fire, >= or >
    v = (1 - s) * h + s * v_reset               hard reset;  soft: v = h - s * subtract

A soft reset subtracts the threshold unless `subtract` is given. With `levels` a neuron fires integer spikes
(I-LIF), s = round(clamp(h / threshold, 0, levels)).

Every published neuron is a row of constants (`attsnn.neurons` names them). The state is float32 for every
input type, except float64 for float64. Products and sums are separate operations here, as in the kernels: a
contracted multiply-add rounds once instead of twice, and a spike could flip.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .surrogate import Surrogate, rectangular

neurons = ("lif",)  # a test compares it with the kernels' own list
CONSTANTS = ("leak", "gain", "bias", "threshold", "v_reset")
EMITS = ("spike", "membrane", "relu_membrane", "relu_overshoot")

Constant = float | Tensor


class Levels(NamedTuple):
    """Integer spikes in place of a surrogate. z is h itself; the threshold is a tensor without gradient."""

    levels: int

    def fire(self, h: Tensor, threshold: Tensor) -> Tensor:
        return self.primitive(h, threshold).round()  # half to even

    def slope(self, h: Tensor, threshold: Tensor) -> Tensor:
        u = h / threshold
        return ((u >= 0) & (u <= self.levels)).to(h.dtype) / threshold

    def primitive(self, h: Tensor, threshold: Tensor) -> Tensor:
        u = h / threshold
        return torch.where(u > 0, u.clamp(max=self.levels), 0.0)  # NaN does not fire


class _Fire(torch.autograd.Function):
    """The spike in the forward pass, the slope in the backward pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        distance: Tensor, z: Tensor, threshold: Tensor | None, how: Surrogate | Levels, strict: bool
    ) -> Tensor:
        return _fired(distance, threshold, how, strict)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, z, threshold, ctx.how, _ = inputs
        ctx.save_for_backward(z, threshold)
        ctx.save_for_forward(z, threshold)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None, None, None]:
        z, threshold = ctx.saved_tensors
        return None, grad * _slope(z, threshold, ctx.how), None, None, None


class _FireWithTangent(_Fire):
    """The same with forward-mode AD. torch.compile takes no function that has a jvp, so it is separate."""

    @staticmethod
    def jvp(ctx: Any, _: None, tangent: Tensor, *rest: None) -> Tensor:
        z, threshold = ctx.saved_tensors
        return tangent * _slope(z, threshold, ctx.how)


def _fired(distance: Tensor, threshold: Tensor | None, how: Surrogate | Levels, strict: bool) -> Tensor:
    if isinstance(how, Levels):
        assert threshold is not None  # integer spikes are divided by it
        return how.fire(distance, threshold)
    return (distance > 0 if strict else distance >= 0).to(distance.dtype)


def _slope(z: Tensor, threshold: Tensor | None, how: Surrogate | Levels) -> Tensor:
    if isinstance(how, Levels):
        assert threshold is not None
        return how.slope(z, threshold)
    return how.slope(z)


def _fire(h: Tensor, threshold: Constant, how: Surrogate | Levels, strict: bool, soft: bool) -> Tensor:
    step: Tensor | None = None  # the threshold, for integer spikes
    if isinstance(how, Levels):
        # A tensor, because CUDA divides by a number as a product with its inverse.
        step = torch.as_tensor(threshold, dtype=h.dtype, device=h.device).detach()
        distance = z = h
        if soft:
            return how.primitive(h, step)
    else:
        distance = h - threshold
        z = distance if how.centre is None else h - how.centre
        if soft:
            return how.primitive(z)
    if torch.compiler.is_exporting():  # export records the inside of a Function, not its gradient
        straight = _slope(z, step, how).detach() * (z - z.detach())
        return _fired(distance, step, how, strict) + torch.nan_to_num(straight)
    function = _Fire if forward_ad._current_level < 0 else _FireWithTangent
    fire: Callable[..., Tensor] = function.apply
    return fire(distance.detach(), z, step, how, strict)


def _emit(emit: str, h: Tensor, s: Tensor, threshold: Constant) -> Tensor:
    if emit == "spike":
        return s
    if emit == "membrane":
        return h
    return torch.relu(h if emit == "relu_membrane" else h - threshold)


def check_reset(v_reset: Constant | str | None, subtract: Constant | None) -> None:
    """Raises if `subtract` is given with a hard reset."""
    if subtract is not None and v_reset is not None:
        raise ValueError(
            f"subtract is what a soft reset takes off; this one is hard, to {v_reset!r}: give v_reset=None "
            "with it"
        )


def check_share(levels: int | None, normalize: bool) -> None:
    """Raises if `normalize` is given without `levels`."""
    if normalize and levels is None:
        raise ValueError("normalize divides integer spikes by their levels: give levels with it")


def state_dtype(x: Tensor) -> torch.dtype:
    """The type of the membrane state for input x: float32, or float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def lif(
    x: Tensor,
    v0: Tensor | None = None,
    *,
    leak: Constant = 1.0,
    gain: Constant = 1.0,
    bias: Constant = 0.0,
    threshold: Constant = 1.0,
    v_reset: Constant | None = 0.0,
    subtract: Constant | None = None,
    surrogate: Surrogate = rectangular(),  # noqa: B008  (a NamedTuple: immutable)
    strict: bool = False,
    detach_reset: bool = False,
    emit: str = "spike",
    start: str = "zero",
    levels: int | None = None,
    normalize: bool = False,
    soft: bool = False,
    final_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Runs the LIF family through all T steps in plain PyTorch.

    Arguments and results are those of `attsnn.ops.lif`, which documents them, without `steps` and `backend`.
    """
    check_reset(v_reset, subtract)
    dtype, how = state_dtype(x), surrogate if levels is None else Levels(levels)

    def as_constant(value: Constant) -> Constant:
        if not isinstance(value, Tensor):
            return value
        value = value.to(dtype)
        return value.view(-1, *[1] * (x.dim() - 3)) if value.numel() > 1 else value.reshape(())

    leak, gain, bias, threshold = map(as_constant, (leak, gain, bias, threshold))
    v_reset = None if v_reset is None else as_constant(v_reset)
    amount = threshold if subtract is None else as_constant(subtract)
    check_share(levels, normalize)
    portion = torch.full((), levels or 0, dtype=dtype, device=x.device) if normalize else None
    v = v0
    if v0 is None and start == "reset":
        v = torch.zeros_like(x[0], dtype=dtype) + (0.0 if v_reset is None else v_reset)
    out = []
    for current in x.to(dtype).unbind(0):
        carry = torch.zeros((), dtype=dtype, device=x.device) if v is None else leak * v + bias
        h = carry + gain * current
        s = _fire(h, threshold, how, strict, soft)
        r = s.detach() if detach_reset else s
        v = h - r * amount if v_reset is None else (1 - r) * h + r * v_reset
        out.append(_emit(emit, h, s if portion is None else s / portion, threshold))
    return torch.stack(out).to(x.dtype), v if final_state else None
