"""`lif`: the LIF family over all T steps as one differentiable op, on the kernels of csrc or the reference.

The dispatcher ops `attsnn::<neuron>_forward` and `_backward` are functional and are registered for every
neuron that the extension lists: shape rule (fake), gradient, and sentences for what they do not do. Python
decides before the call what autograd must keep (`pack`); the backward op recomputes the membrane from it.
"""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from attsnn import reference
from attsnn._extension import Backend, compiled, use_fused
from attsnn.reference import CONSTANTS, EMITS, SURROGATES, Surrogate, rectangular, state_dtype
from attsnn.reference.neuron import Constant

from .registration import (
    refuse_beyond,
    refuse_recorded,
    refuse_tracing,
    register_gradient,
    telling_of_memory,
)

STARTS = ("zero", "reset")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
CHECKPOINT_ABOVE, CHECKPOINT_EVERY = 64, 32  # steps; csrc/core/call.h has the same numbers, a test compares


@telling_of_memory
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
    steps: int | None = None,
    final_state: bool = True,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor | None]:
    """LIF neurons through all T steps: affine charge, fire, reset.

    h = (leak v + bias) + gain x;  s = fire(h - threshold);  v = (1 - s) h + s v_reset, or h - s threshold.

    Args:
        x: input current [T, N, C, H, W], [T, N, F] or [T, N], T >= 1, float64, float32, bfloat16 or float16,
            in any dense layout after T, which the result keeps; or [1, N, ...], with `steps`.
        v0: membrane [N, ...] after the reset of the step before; None: at rest.
        leak, gain, bias, threshold, v_reset: numbers, or tensors of one value or one value a channel
            (dimension 2), with gradients where they require them. v_reset None is the soft reset.
        surrogate: the slope in place of the spike's derivative, from `attsnn.reference` (rectangular, arctan,
            ...).
        strict: fire at h > threshold instead of h >= threshold.
        detach_reset: no gradient flows through the spike in the reset.
        emit: "spike"; "membrane", h; "relu_membrane", relu(h), the LIAF of MA-SNN; "relu_overshoot",
            relu(h - threshold).
        start: without v0, the first charge is gain x ("zero"), or as from v = v_reset ("reset").
        soft: the surrogate's primitive instead of the step, for gradient checks; the kernels do it in
            float64.
        steps: T, where x [1, N, ...] is the same at every step, as a static image's is: it is read once, and
            its gradient is the sum over the steps. None: as many as x has.
        final_state: whether the state is wanted.
        backend: "fused" (an error where there is no kernel), "reference", or "auto".

    Returns:
        (out, v): out [T, N, ...] of x's type and layout; v [N, ...], the state after the last step, in
        float32 (float64 for float64), or None.

    Raises:
        TypeError, ValueError: for input that does not fit; the sentence names the argument.
        RuntimeError: backend "fused" without kernels.

    The equation is that of attsnn/reference/neuron.py, to the bit for spikes.
    """
    refuse_tracing("lif")
    constants = dict(zip(CONSTANTS, (leak, gain, bias, threshold, v_reset), strict=True))
    check(x, v0)
    packed = pack(x, constants, surrogate, strict, detach_reset, emit, start, soft)
    if steps is not None and (steps < 1 or x.shape[0] not in (1, steps)):
        raise ValueError(
            f"steps must be T, for x [T, N, ...] or [1, N, ...]; got {steps} for {tuple(x.shape)}"
        )
    if not use_fused(backend, x.device.type):
        flags = {"strict": strict, "detach_reset": detach_reset, "emit": emit, "start": start, "soft": soft}
        if steps is not None:
            x = x.expand(steps, *x.shape[1:])
        return reference.lif(x, v0, **constants, surrogate=surrogate, **flags, final_state=final_state)
    learned = stack(x, constants, soft)
    refuse_beyond("lif", x, v0, learned)
    x = x if _dense(x) else x.contiguous()
    if v0 is not None:
        v0 = like(v0, x.stride()[1:])
    wanted = packed.learns or x.requires_grad or (v0 is not None and v0.requires_grad)
    wanted = wanted or torch.compiler.is_exporting()  # what is exported may be trained
    keep = packed.keep if torch.is_grad_enabled() and wanted else "nothing"
    op = torch.ops.attsnn.lif_forward
    how = packed.numbers, packed.rules, packed.learns, keep
    out, v, _ = op(x, v0, learned, *how, final_state, steps or 0)
    return out, v if final_state else None


class Packed(NamedTuple):
    """A neuron as the dispatcher ops take it. `keep` is what a backward pass needs: the "input", or two
    "bits" per element and step.
    """

    numbers: tuple[float, ...]
    rules: tuple[int, ...]
    learns: int  # a bit for each constant that wants a gradient
    keep: str


def pack(x: Tensor, constants: dict[str, Constant | None], *how) -> Packed:
    """The neuron's arguments, checked for x. `how`: surrogate, strict, detach_reset, emit, start, soft.

    Looks at shapes, types and Python numbers, never at values of tensors. Numbers alone are checked and
    packed once: the layers of a network ask for the same.
    """
    plain = not any(isinstance(c, Tensor) for c in constants.values())
    if plain and not torch.compiler.is_compiling():
        try:
            return _pack_numbers(*constants.values(), *how)
        except TypeError:
            pass  # it is raised again below, where what cannot be hashed has its sentence, too
    return _pack(x, constants, *how)


@functools.lru_cache(maxsize=1024, typed=True)  # typed: True is no number, though it equals 1
def _pack_numbers(leak, gain, bias, threshold, v_reset, *how) -> Packed:
    return _pack(None, dict(zip(CONSTANTS, (leak, gain, bias, threshold, v_reset), strict=True)), *how)


def _pack(x: Tensor | None, constants, surrogate, strict, detach_reset, emit, start, soft) -> Packed:
    for constant, value in constants.items():
        _check_constant(constant, value, x)
    check_rules(surrogate, emit, start)
    hard, centred = constants["v_reset"] is not None, surrogate.centre is None
    rules = (hard, detach_reset, strict, soft, centred, start == "reset", EMITS.index(emit))
    rules = tuple(int(rule) for rule in (*rules, list(SURROGATES).index(surrogate.kind)))
    numbers = tuple(0.0 if c is None or isinstance(c, Tensor) else float(c) for c in constants.values())
    numbers += surrogate.scale, 0.0 if centred else surrogate.centre
    learns = sum(
        1 << i for i, c in enumerate(constants.values()) if isinstance(c, Tensor) and c.requires_grad
    )
    # The spike and the surrogate's window suffice for a rectangular surrogate where the reset needs no
    # membrane, and where neither leak nor gain is learned: their gradients sum v and x.
    exact = surrogate.kind == "rectangular" and not soft and emit == "spike" and (detach_reset or not hard)
    return Packed(numbers, rules, learns, "bits" if exact and not learns & 0b11 else "input")


def stack(x: Tensor, constants: dict[str, Constant | None], soft: bool) -> Tensor | None:
    """The constants, checked, as the kernels take them: one tensor [5, 1 or C] where any is a tensor."""
    if soft and x.dtype != torch.float64:
        raise TypeError(f"soft: the kernels compute soft spikes in float64 only, got x in {x.dtype}")
    sizes = [c.numel() for c in constants.values() if isinstance(c, Tensor)]
    if not sizes:
        return None
    dtype = state_dtype(x)

    def row(c: Constant | None) -> Tensor:
        if isinstance(c, Tensor):
            return c.to(dtype).reshape(-1).expand(max(sizes))
        return torch.full((max(sizes),), 0.0 if c is None else float(c), dtype=dtype, device=x.device)

    return torch.stack([row(c) for c in constants.values()])


def _dense(x: Tensor) -> bool:
    """Whether one step x[t] fills its memory without gaps or overlaps, in any order of its dimensions."""
    if math.prod(x.shape) == 0:
        return True
    left = [(x.stride(d), x.size(d)) for d in range(1, x.dim()) if x.size(d) != 1]
    expected = 1
    while left:  # not sorted: under torch.compile sizes may be symbolic, which can be compared only
        place = next((i for i, (stride, _) in enumerate(left) if stride == expected), None)
        if place is None:
            return False
        expected *= left.pop(place)[1]
    return True


def like(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    """The tensor with these strides of its last dimensions, itself if it has them; dimensions before are
    free.

    Where a size is 1, a stride means nothing.
    """
    inner = tensor.dim() - len(strides)
    if tensor.stride()[inner:] == strides or all(
        n == 1 or a == b
        for a, b, n in zip(tensor.stride()[inner:], strides, tensor.shape[inner:], strict=True)
    ):
        return tensor
    outer = (math.prod(tensor.shape[inner:]),) * inner  # at most one dimension, time, stands before
    return tensor.new_empty_strided(tensor.shape, (*outer, *strides)).copy_(tensor)


# Between two convolutions, whose data leave no cache warm, a line of Python takes several microseconds: what
# would change nothing is not called.


def typed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in that type, itself if it has it: `.to` is an operator of its own where nothing changes."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def as_read(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A small tensor as the ops take it."""
    weight = typed(weight, dtype)
    return weight if weight.is_contiguous() else weight.contiguous()


def check(x: Tensor, v0: Tensor | None, name: str = "x") -> None:
    """Sentences for an input and a state that do not fit."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor [T, N, ...], got {type(x).__name__}")
    if x.dtype not in DTYPES:
        raise TypeError(
            f"{name} must be float64, float32, bfloat16 or float16, got {x.dtype}: convert it first"
        )
    if x.dim() < 2:
        raise ValueError(f"{name} must be [T, N, ...] with time first, got shape {tuple(x.shape)}")
    if x.shape[0] == 0:
        raise ValueError(f"{name} must have at least one time step, got T = 0 in shape {tuple(x.shape)}")
    if v0 is not None:
        _check_state(v0, x)


def check_rules(surrogate: Surrogate, emit: str, start: str) -> None:
    """Sentences for what a neuron cannot do."""
    if not isinstance(surrogate, Surrogate) or surrogate.kind not in SURROGATES:
        raise TypeError(
            f"surrogate must be one of attsnn.reference's ({', '.join(SURROGATES)}), got {surrogate!r}"
        )
    if not 0 < surrogate.scale < math.inf:
        raise ValueError(f"surrogate: its scale must be positive and finite, got {surrogate.scale}")
    if surrogate.centre is not None and not -math.inf < surrogate.centre < math.inf:
        raise ValueError(f"surrogate: its centre must be finite or None, got {surrogate.centre}")
    if emit not in EMITS:
        raise ValueError(f"emit must be one of {', '.join(EMITS)}, got {emit!r}")
    if start not in STARTS:
        raise ValueError(f"start must be one of {', '.join(STARTS)}, got {start!r}")


def _check_state(v0, x: Tensor) -> None:
    want = f"a {state_dtype(x)} tensor {tuple(x.shape[1:])} on {x.device}"
    if not isinstance(v0, Tensor):
        raise TypeError(f"v0 must be {want}, got {type(v0).__name__}")
    if v0.shape != x.shape[1:] or v0.device != x.device:
        raise ValueError(f"v0 must be {want}, got shape {tuple(v0.shape)} on {v0.device}")
    if v0.dtype != state_dtype(x):
        raise TypeError(f"v0 must be {want}, for x in {x.dtype}; got {v0.dtype}")


def _check_constant(name: str, value, x: Tensor | None) -> None:
    if value is None and name == "v_reset":
        return
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not -math.inf < value < math.inf:  # of a number that may be symbolic, under torch.compile
            raise ValueError(f"{name} must be finite, got {value}")
        return
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else repr(value)
        raise TypeError(f"{name} must be a number or a floating-point tensor, got {got}")
    channels = x.shape[2] if x.dim() > 2 else None
    if value.dim() > 1 or (value.numel() != 1 and value.numel() != channels):
        want = (
            f"one value or [C] = [{channels}]"
            if channels is not None
            else "one value, for x [T, N] has no channels"
        )
        raise ValueError(f"{name} must be {want}, got shape {tuple(value.shape)} for x {tuple(x.shape)}")
    if value.device != x.device:
        raise ValueError(f"{name} must be on x's device {x.device}, got {value.device}")


# ---- the dispatcher ops
# ------------------------------------------------------------------------------------------


def _forward_shapes(x, v0, learned, numbers, rules, learns, keep, final_state, steps=0):
    steps, step = steps or x.shape[0], x.shape[1:]
    n = math.prod(step)
    out = x.new_empty_strided((steps, *step), (n, *x.stride()[1:]))
    state = state_dtype(x)
    v = x.new_empty_strided(step, x.stride()[1:], dtype=state) if final_state else x.new_empty(0, dtype=state)
    if keep == "bits":
        kept = x.new_empty((steps, (n + 3) // 4), dtype=torch.uint8)
    elif keep == "input" and steps > CHECKPOINT_ABOVE:
        kept = x.new_empty(((steps - 1) // CHECKPOINT_EVERY, n), dtype=state)
    else:
        kept = x.new_empty(0, dtype=state)
    return out, v, kept


def _backward_shapes(
    grad_out, grad_v, x, v0, learned, kept, numbers, rules, learns, keep, wants_v0, shared=False
):
    shape, inner = grad_out.shape, grad_out.stride()[1:]
    grad_x = grad_out.new_empty_strided(
        (1 if shared else shape[0], *shape[1:]), (math.prod(shape[1:]), *inner)
    )
    state = state_dtype(grad_out)
    none = grad_out.new_empty(0, dtype=state)
    grad_v0 = grad_out.new_empty_strided(shape[1:], inner, dtype=state) if wants_v0 else none
    return grad_x, grad_v0, learned.new_empty(learned.shape) if learns else torch.empty_like(none)


def _setup_context(ctx, inputs, output) -> None:
    x, v0, learned, ctx.numbers, ctx.rules, ctx.learns, ctx.keep, final_state, steps = inputs
    out, v, kept = output
    ctx.shape, ctx.strides, ctx.dtype = out.shape, x.stride()[1:], x.dtype
    ctx.shared = steps > 1 and x.shape[0] == 1
    ctx.save_for_backward(x if ctx.keep == "input" else None, v0, learned, kept)
    ctx.mark_non_differentiable(*((kept,) if final_state else (v, kept)))
    ctx.set_materialize_grads(False)


def _make_backward(op):
    def backward(ctx, grad_out, grad_v, _):
        if grad_out is None and grad_v is None:
            return (None,) * 9
        refuse_recorded("lif", ctx.keep)
        x, v0, learned, kept = ctx.saved_tensors
        if grad_out is None:  # only the final state was used: one step of zeros stands for all
            zeros = torch.zeros_like(grad_v, dtype=ctx.dtype)
            grad_out = zeros.new_zeros(math.prod(ctx.shape[1:])).as_strided(ctx.shape, (0, *ctx.strides))
        else:
            grad_out = like(grad_out, ctx.strides)
        if grad_v is not None:
            grad_v = like(grad_v, ctx.strides)
        grad_x, grad_v0, grad_learned = op(
            *(grad_out, grad_v, x, v0, learned, kept),
            *(ctx.numbers, ctx.rules, ctx.learns, ctx.keep, ctx.needs_input_grad[1], ctx.shared),
        )
        wants_v0 = ctx.needs_input_grad[1]
        return grad_x, grad_v0 if wants_v0 else None, grad_learned if ctx.learns else None, *[None] * 6

    return backward


if compiled() is not None:
    for _name in compiled().neurons:
        register_gradient(
            f"{_name}_forward",
            f"{_name}_backward",
            shapes=(_forward_shapes, _backward_shapes),
            setup_context=_setup_context,
            gradient=_make_backward(getattr(torch.ops.attsnn, f"{_name}_backward")),
            name=_name,
        )
