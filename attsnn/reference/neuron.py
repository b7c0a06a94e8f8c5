"""The LIF family: affine charge, fire, reset; one equation of one time step, walked through time in Python.

    h = (leak * v + bias) + gain * x            charge, rounded in this order
    s = fire(h - threshold)                     fire, >= or >
    v = (1 - s) * h + s * v_reset               hard reset;  soft: v = h - s * threshold

Every published neuron is a row of constants (`attsnn.neurons` names them). The state is float32 whatever the
type of the input, float64 for float64. Products and sums are separate operations here, as in the kernels: a
contracted multiply-add would round once where these round twice, and a spike could flip.
"""

import torch
from torch import Tensor

from .surrogate import SURROGATES, Surrogate, rectangular

neurons = ("lif",)  # a test compares it with the kernels' own list
CONSTANTS = ("leak", "gain", "bias", "threshold", "v_reset")
EMITS = ("spike", "membrane", "relu_membrane", "relu_overshoot")

Constant = float | Tensor


class _Fire(torch.autograd.Function):
    """The step forward, the surrogate's slope backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(distance: Tensor, z: Tensor, surrogate: Surrogate, strict: bool) -> Tensor:
        return (distance > 0 if strict else distance >= 0).to(z.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _, z, ctx.surrogate, _ = inputs
        ctx.save_for_backward(z)
        ctx.save_for_forward(z)

    @staticmethod
    def jvp(ctx, _, tangent: Tensor, *rest):
        (z,) = ctx.saved_tensors
        return tangent * SURROGATES[ctx.surrogate.kind].slope(z, ctx.surrogate.scale)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (z,) = ctx.saved_tensors
        return None, grad * SURROGATES[ctx.surrogate.kind].slope(z, ctx.surrogate.scale), None, None


def _fire(h: Tensor, threshold: Constant, surrogate: Surrogate, strict: bool, soft: bool) -> Tensor:
    distance = h - threshold
    z = distance if surrogate.centre is None else h - surrogate.centre
    if soft:
        return SURROGATES[surrogate.kind].primitive(z, surrogate.scale)
    if torch.compiler.is_exporting():  # which records what stands inside of a Function, without its gradient
        primitive = SURROGATES[surrogate.kind].primitive(z, surrogate.scale)
        fired = (distance > 0 if strict else distance >= 0).to(z.dtype)
        return fired + (primitive - primitive.detach())
    return _Fire.apply(distance.detach(), z, surrogate, strict)


def _emit(emit: str, h: Tensor, s: Tensor, threshold: Constant) -> Tensor:
    if emit == "spike":
        return s
    if emit == "membrane":
        return h
    return torch.relu(h if emit == "relu_membrane" else h - threshold)


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
    surrogate: Surrogate = rectangular(),  # noqa: B008  (a NamedTuple: immutable)
    strict: bool = False,
    detach_reset: bool = False,
    emit: str = "spike",
    start: str = "zero",
    soft: bool = False,
    final_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """All T steps of the LIF family; `attsnn.ops.lif` has the same arguments and documents them."""
    dtype = state_dtype(x)

    def as_constant(value: Constant | None) -> Constant | None:
        if not isinstance(value, Tensor):
            return value
        value = value.to(dtype)
        return value.view(-1, *[1] * (x.dim() - 3)) if value.numel() > 1 else value.reshape(())

    leak, gain, bias, threshold, v_reset = map(as_constant, (leak, gain, bias, threshold, v_reset))
    v, carry = v0, None
    if v0 is None and start == "reset":
        v = torch.zeros_like(x[0], dtype=dtype) + (0.0 if v_reset is None else v_reset)
    if v is None:
        carry = torch.zeros((), dtype=dtype, device=x.device)
    out = []
    for current in x.to(dtype).unbind(0):
        h = (leak * v + bias if carry is None else carry) + gain * current
        carry = None
        s = _fire(h, threshold, surrogate, strict, soft)
        r = s.detach() if detach_reset else s
        v = h - r * threshold if v_reset is None else (1 - r) * h + r * v_reset
        out.append(_emit(emit, h, s, threshold))
    return torch.stack(out).to(x.dtype), v if final_state else None
