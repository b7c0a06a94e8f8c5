"""`lif`: the LIF family over all T steps as one differentiable op, on the kernels of csrc or the reference.

The dispatcher ops `attsnn::<neuron>_forward` and `_backward` are functional. They are registered for every
neuron that the extension lists, with a shape rule (fake), a gradient, and error messages for what they do
not support. Before the call, Python decides what autograd must keep (`pack`); the backward op recomputes the
membrane from it.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attsnn import reference
from attsnn._extension import Backend, compiled, say_reference, use_fused
from attsnn.reference import EMITS, SURROGATES, Surrogate, rectangular, state_dtype
from attsnn.reference.neuron import Constant, check_reset, check_share

from . import tally
from .registration import (
    refuse_beyond,
    refuse_recorded,
    refuse_tracing,
    register_gradient,
    telling_of_memory,
)

MaybeConstant = (
    Constant | None
)  # an alias: torch.compile of torch 2.10 cannot make the union of one that it traces
STARTS = ("zero", "reset")
MOST_LEVELS = 256  # bfloat16 holds every integer up to it
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
CHECKPOINT_ABOVE, CHECKPOINT_EVERY = 64, 32  # steps; as in csrc/core/call.h, a test compares


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
    subtract: Constant | None = None,
    surrogate: Surrogate = rectangular(),  # noqa: B008  (a NamedTuple: immutable)
    strict: bool = False,
    detach_reset: bool = False,
    emit: str = "spike",
    start: str = "zero",
    levels: int | None = None,
    normalize: bool = False,
    soft: bool = False,
    steps: int | None = None,
    final_state: bool = True,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor | Any]:  # Any: None without final_state
    """Runs LIF neurons through all T steps: affine charge, fire, reset.

    A step continues from the membrane v of the step before::

        h = (leak v + bias) + gain x
        s = fire(h - threshold)
        v = (1 - s) h + s v_reset        hard reset
        v = h - s subtract               soft reset

    Args:
        x: input current [T, N, C, H, W], [T, N, F] or [T, N], T >= 1, or [1, N, ...] with `steps`. The type
            is float64, float32, bfloat16 or float16. A step may have any dense layout, which the result
            keeps.
        v0: the membrane [N, ...] that the step before left after its reset, in float32 (float64 for
            float64); None: at rest.
        leak: factor on v: a number, or a tensor of one value or one value per channel (dimension 2 of x). A
            tensor gets a gradient if it requires one.
        gain: factor on x, in the same forms as leak.
        bias: summand, in the same forms as leak.
        threshold: where the neuron fires, in the same forms as leak.
        v_reset: where the hard reset sets v, in the same forms as leak; None: the soft reset.
        subtract: what the soft reset takes off, in the same forms as leak; None: the threshold. snnTorch's
            default neuron, which subtracts before it decays, is subtract = threshold / leak.
        surrogate: the slope in place of the spike's derivative, from `attsnn.reference` (rectangular,
            arctan, ...). A `custom` slope has no kernel: if gradients are needed, the reference runs.
        strict: fire at h > threshold instead of h >= threshold.
        detach_reset: let no gradient flow through the spike in the reset.
        emit: what is returned for each step. "spike": s; "membrane": h; "relu_membrane": relu(h), the LIAF
            of MA-SNN; "relu_overshoot": relu(h - threshold).
        start: how the sequence begins without v0. "zero": h = gain x; "reset": from v = v_reset, which is 0
            for a soft reset.
        levels: D, from 1 to 256, for integer spikes (I-LIF; Luo et al., SpikeYOLO, 2024). The neuron fires
            s = round(clamp(h / threshold, 0, D)), half to even. The gradient passes to h alone, where
            0 <= h / threshold <= D. This needs a soft reset, emit "spike", `strict` off, the default
            surrogate, and a threshold above 0 that is not learned.
        normalize: emit s / levels.
        soft: fire the surrogate's primitive instead of the step, for gradient checks. The kernels do it in
            float64 only.
        steps: T, if x [1, N, ...] is the same at every step, as a static image is. It is read once, and its
            gradient is the sum over the steps. None: T is the length of x.
        final_state: return the state after the last step.
        backend: "fused" (raises where there is no kernel), "reference", or "auto".

    Returns:
        A pair (out, v). `out` [T, N, ...] has x's type and layout. `v` [N, ...] is the state after the last
        step in float32 (float64 for float64), or None without `final_state`.

    Raises:
        TypeError, ValueError: for input that does not fit; the message names the argument.
        RuntimeError: for backend "fused" without kernels.
        NotImplementedError: under `torch.jit.trace`. The kernels also raise it under `torch.func`,
            forward-mode AD and double backward.

    The equation is that of attsnn/reference/neuron.py; its spikes and those of the kernels are equal to the
    bit.
    """
    refuse_tracing("lif")
    constants = five(leak, gain, bias, threshold, v_reset, subtract)
    check(x, v0)
    packed = pack(x, constants, surrogate, strict, detach_reset, emit, start, soft, levels, normalize)
    if steps is not None and (steps < 1 or x.shape[0] not in (1, steps)):
        raise ValueError(
            f"steps must be T, for x [T, N, ...] or [1, N, ...]; got {steps} for {tuple(x.shape)}"
        )
    if not runs_fused(backend, surrogate, x, v0, *constants.values()):
        rules: dict[str, Any] = {
            "surrogate": surrogate,
            "strict": strict,
            "detach_reset": detach_reset,
            "emit": emit,
        }
        rules |= {"start": start, "levels": levels, "normalize": normalize, "soft": soft}
        if steps is not None:
            x = x.expand(steps, *x.shape[1:])
        out, v = reference.lif(x, v0, **{"v_reset": None, **constants, **rules}, final_state=final_state)
        if tally.asked():
            tally.take(tally.counts_of(out, levels, normalize), out)
        return out, v
    learned = stack(x, constants, soft)
    refuse_beyond("lif", x, v0, learned)
    x = x if _dense(x) else x.contiguous()
    if v0 is not None:
        v0 = like(v0, x.stride()[1:])
    wanted = packed.learns or x.requires_grad or (v0 is not None and v0.requires_grad)
    wanted = wanted or torch.compiler.is_exporting()  # an exported program may be trained
    keep = packed.keep if torch.is_grad_enabled() and wanted else "nothing"
    given = x, v0, learned, packed.numbers, packed.rules, packed.learns, keep, final_state, steps or 0
    if tally.asked():
        out, v, _, counts = torch.ops.attsnn.lif_counted(*given)
        tally.take(counts, out)
    else:
        out, v, _ = torch.ops.attsnn.lif_forward(*given)
    return out, v if final_state else None


class Packed(NamedTuple):
    """A neuron as the dispatcher ops take it.

    `keep` is what a backward pass needs: the "input", or two "bits" per element and step.
    """

    numbers: tuple[float, ...]
    rules: tuple[int, ...]
    learns: int  # a bit for each constant that wants a gradient
    keep: str


def five(
    leak: Constant,
    gain: Constant,
    bias: Constant,
    threshold: Constant,
    v_reset: Constant | None,
    subtract: Constant | None,
) -> dict[str, Constant | None]:
    """The five constants that the kernels take, by name. The fifth is v_reset or subtract."""
    check_reset(v_reset, subtract)
    fifth = {"v_reset": v_reset} if subtract is None else {"subtract": subtract}
    return {"leak": leak, "gain": gain, "bias": bias, "threshold": threshold, **fifth}


def runs_fused(backend: Backend, surrogate: Surrogate, *given: Any) -> bool:
    """Whether to run the fused kernel. A custom slope has none, so with gradients the reference runs."""
    fused = use_fused(backend, given[0].device.type)
    if not fused or surrogate.function is None or not torch.is_grad_enabled():
        return fused
    if not any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in given):
        return fused
    if backend == "fused":
        raise RuntimeError(
            "backend='fused': the kernels know no custom slope; with gradients take backend='auto', which "
            "runs the reference"
        )
    say_reference(
        "a custom slope has no kernel; where it has gradients a training step takes several times the time "
        "and the memory of the fused one"
    )
    return False


def pack(x: Tensor, constants: dict[str, Constant | None], *how: Any) -> Packed:
    """Checks a neuron's arguments for x and packs them for the dispatcher ops.

    `how` is surrogate, strict, detach_reset, emit, start, soft, levels, normalize. Only shapes, types and
    Python numbers are looked at, never the values of tensors. If all constants are numbers, the result is
    cached, because the layers of a network ask for the same one.
    """
    plain = not any(isinstance(c, Tensor) for c in constants.values())
    if plain and not torch.compiler.is_compiling():
        try:
            return _pack_numbers("subtract" in constants, *constants.values(), *how)
        except TypeError:
            pass  # raised again below, with a message also for what cannot be hashed
    return _pack(x, constants, *how)


@functools.lru_cache(maxsize=1024, typed=True)  # typed: True equals 1, but is no number
def _pack_numbers(
    own: bool, leak: float, gain: float, bias: float, threshold: float, fifth: Any, *how: Any
) -> Packed:
    fifth = (None, fifth) if own else (fifth, None)
    return _pack(None, five(leak, gain, bias, threshold, *fifth), *how)


def _pack(
    x: Tensor | None,
    constants: dict[str, Any],
    surrogate: Surrogate,
    strict: bool,
    detach_reset: bool,
    emit: str,
    start: str,
    soft: bool,
    levels: int | None = None,
    normalize: bool = False,
) -> Packed:
    for constant, value in constants.items():
        _check_constant(constant, value, x)
    check_rules(surrogate, emit, start)
    own, hard = "subtract" in constants, constants.get("v_reset") is not None
    check_levels(levels, normalize, constants["threshold"], hard, strict, emit, surrogate)
    if soft and surrogate.function:
        raise ValueError("soft: a custom slope has no primitive, and so no soft spike")
    # Integer spikes give the threshold no gradient, so their window is not centred on it.
    centred = surrogate.centre is None and levels is None
    kind = 0 if surrogate.function else list(SURROGATES).index(surrogate.kind)  # read if there are gradients
    rules: tuple[int, ...] = (
        hard,
        detach_reset,
        strict,
        soft,
        centred,
        start == "reset",
        EMITS.index(emit),
        kind,
    )
    rules = tuple(int(rule) for rule in (*rules, own, levels or 0, normalize))
    numbers = tuple(0.0 if c is None or isinstance(c, Tensor) else float(c) for c in constants.values())
    numbers += surrogate.scale, surrogate.centre or 0.0, surrogate.height
    learns = sum(
        1 << i for i, c in enumerate(constants.values()) if isinstance(c, Tensor) and c.requires_grad
    )
    # Two bits, the spike and the surrogate's window, suffice if the surrogate is rectangular, the reset needs
    # no membrane, and neither leak nor gain is learned: the gradients of those two sum v and x.
    exact = surrogate.kind == "rectangular" and levels is None and not soft and emit == "spike"
    exact = exact and (detach_reset or not hard) and not learns & 0b11
    return Packed(numbers, rules, learns, "bits" if exact else "input")


def stack(x: Tensor, constants: dict[str, Constant | None], soft: bool) -> Tensor | None:
    """The constants, already checked, as the kernels take them.

    They are one tensor [5, 1 or C], or None if all of them are numbers.
    """
    if soft and x.dtype != torch.float64:
        raise TypeError(f"soft: the kernels compute soft spikes in float64 only, got x in {x.dtype}")
    sizes = [c.numel() for c in constants.values() if isinstance(c, Tensor)]
    if not sizes:
        return None
    dtype = state_dtype(x)

    def row(c: MaybeConstant) -> Tensor:
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
    while left:  # not sorted: under torch.compile sizes may be symbolic; those compare, but do not sort
        place = next((i for i, (stride, _) in enumerate(left) if stride == expected), None)
        if place is None:
            return False
        expected *= left.pop(place)[1]
    return True


def like(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Returns the tensor with these strides in its last dimensions: itself if it has them, else a copy.

    Earlier dimensions may have any stride, and so may a dimension of size 1, whose stride means nothing.
    """
    inner = tensor.dim() - len(strides)
    if tensor.stride()[inner:] == strides or all(
        n == 1 or a == b
        for a, b, n in zip(tensor.stride()[inner:], strides, tensor.shape[inner:], strict=True)
    ):
        return tensor
    outer = (math.prod(tensor.shape[inner:]),) * inner  # at most one dimension, time, stands before
    return tensor.new_empty_strided(tensor.shape, (*outer, *strides)).copy_(tensor)


def zeros_for(x: Tensor) -> Tensor:
    """Zeros of x's shape and layout. One step in memory stands for all: the stride of T is 0."""
    return _zeros(x, x.shape, x.stride()[1:], x.dtype)


def _zeros(on: Tensor, shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return on.new_zeros(math.prod(shape[1:]), dtype=dtype).as_strided(shape, (0, *strides))


# Convolutions leave no cache warm, so a line of Python between two of them takes several microseconds. The
# helpers below skip calls that would change nothing.


def typed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in that type. Even a `.to` that changes nothing is a dispatched operator."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def as_read(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A small tensor as the ops take it: contiguous and in that type."""
    weight = typed(weight, dtype)
    return weight if weight.is_contiguous() else weight.contiguous()


def check(x: Tensor, v0: Tensor | None, name: str = "x") -> None:
    """Raises for an input or a state that does not fit."""
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
        check_state(v0, x)


def check_rules(surrogate: Surrogate, emit: str, start: str) -> None:
    """Raises for a surrogate, emit or start that does not exist."""
    known = isinstance(surrogate, Surrogate) and (
        callable(surrogate.function) if surrogate.kind == "custom" else surrogate.kind in SURROGATES
    )
    if not known:
        raise TypeError(
            f"surrogate must be one of attsnn.reference's ({', '.join(SURROGATES)}, custom), made by a call "
            f"such as reference.arctan(), got {surrogate!r}"
        )
    for name in ("scale", "height"):
        if not 0 < getattr(surrogate, name) < math.inf:
            raise ValueError(
                f"surrogate: its {name} must be positive and finite, got {getattr(surrogate, name)}"
            )
    if surrogate.centre is not None and not -math.inf < surrogate.centre < math.inf:
        raise ValueError(f"surrogate: its centre must be finite or None, got {surrogate.centre}")
    if emit not in EMITS:
        raise ValueError(f"emit must be one of {', '.join(EMITS)}, got {emit!r}")
    if start not in STARTS:
        raise ValueError(f"start must be one of {', '.join(STARTS)}, got {start!r}")


def check_levels(
    levels: int | None,
    normalize: bool,
    threshold: Constant,
    hard: bool,
    strict: bool,
    emit: str,
    surrogate: Surrogate,
) -> None:
    """Raises for arguments that integer spikes cannot be combined with."""
    check_share(levels, normalize)
    if levels is None:
        return
    if isinstance(levels, bool) or not isinstance(levels, int) or not 1 <= levels <= MOST_LEVELS:
        raise ValueError(f"levels must be None or an integer from 1 to {MOST_LEVELS}, got {levels!r}")
    for wrong, what in (
        (hard, "want the soft reset: give v_reset=None"),
        (strict, "are rounded, not compared: leave strict out"),
        (emit != "spike", "are what is emitted, or with normalize their share: leave emit out"),
        (
            isinstance(threshold, Tensor) and threshold.requires_grad,
            "give a threshold no gradient: it cannot be learned",
        ),
        (surrogate != rectangular(), "have a slope of their own: leave surrogate out"),
        (not isinstance(threshold, Tensor) and threshold <= 0, "want a threshold above 0"),
    ):
        if wrong:
            raise ValueError("levels: integer spikes " + what)


def check_state(v0: Tensor, x: Tensor, shape: tuple[int, ...] | None = None) -> None:
    """Raises for a state that does not fit x, or that does not have `shape`."""
    shape = tuple(x.shape[1:] if shape is None else shape)
    want = f"a {state_dtype(x)} tensor {shape} on {x.device}"
    if not isinstance(v0, Tensor):
        raise TypeError(f"v0 must be {want}, got {type(v0).__name__}")
    if tuple(v0.shape) != shape or v0.device != x.device:
        raise ValueError(f"v0 must be {want}, got shape {tuple(v0.shape)} on {v0.device}")
    if v0.dtype != state_dtype(x):
        raise TypeError(f"v0 must be {want}, for x in {x.dtype}; got {v0.dtype}")


def _check_constant(name: str, value: Constant | None, x: Tensor | None) -> None:
    if value is None and name == "v_reset":  # and no amount of its own either
        return
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not -math.inf < value < math.inf:  # not isfinite: under torch.compile it may be symbolic
            raise ValueError(f"{name} must be finite, got {value}")
        return
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else repr(value)
        raise TypeError(f"{name} must be a number or a floating-point tensor, got {got}")
    assert x is not None  # x is left out only if all constants are numbers
    channels = x.shape[2] if x.dim() > 2 else None
    if value.dim() > 1 or (value.numel() != 1 and value.numel() != channels):
        want = (
            f"one value or [C] = [{channels}], the size of dimension 2"
            if channels is not None
            else "one value, for x [T, N] has no channels"
        )
        raise ValueError(f"{name} must be {want}, got shape {tuple(value.shape)} for x {tuple(x.shape)}")
    if value.device != x.device:
        raise ValueError(f"{name} must be on x's device {x.device}, got {value.device}")


# ---- the dispatcher ops
# ------------------------------------------------------------------------------------------


def _forward_shapes(
    x: Tensor,
    v0: Tensor | None,
    learned: Tensor | None,
    numbers: Sequence[float],
    rules: Sequence[int],
    learns: int,
    keep: str,
    final_state: bool,
    steps: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
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


def _counted_shapes(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out, v, kept = _forward_shapes(x, *rest)
    channels = x.shape[2] if x.dim() > 2 else 1
    return out, v, kept, x.new_empty(out.shape[0] + channels, dtype=torch.int64)


def _backward_shapes(
    grad_out: Tensor,
    grad_v: Tensor | None,
    x: Tensor | None,
    v0: Tensor | None,
    learned: Tensor | None,
    kept: Tensor,
    numbers: Sequence[float],
    rules: Sequence[int],
    learns: int,
    keep: str,
    wants_v0: bool,
    shared: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    shape, inner = grad_out.shape, grad_out.stride()[1:]
    grad_x = grad_out.new_empty_strided(
        (1 if shared else shape[0], *shape[1:]), (math.prod(shape[1:]), *inner)
    )
    state = state_dtype(grad_out)
    none = grad_out.new_empty(0, dtype=state)
    grad_v0 = grad_out.new_empty_strided(shape[1:], inner, dtype=state) if wants_v0 else none
    if learned is None or not learns:
        return grad_x, grad_v0, torch.empty_like(none)
    return grad_x, grad_v0, learned.new_empty(learned.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Sequence[Tensor]) -> None:
    x, v0, learned, ctx.numbers, ctx.rules, ctx.learns, ctx.keep, final_state, steps = inputs
    out, v, *rest = output  # kept, and counts if they were asked for
    kept = rest[0]
    ctx.shape, ctx.strides, ctx.dtype = out.shape, x.stride()[1:], x.dtype
    ctx.shared = steps > 1 and x.shape[0] == 1
    ctx.save_for_backward(x if ctx.keep == "input" else None, v0, learned, kept)
    ctx.mark_non_differentiable(*(rest if final_state else (v, *rest)))
    ctx.set_materialize_grads(False)


def _make_backward(op: Callable[..., Any]) -> Callable[..., tuple[Tensor | None, ...]]:
    def backward(
        ctx: Any, grad_out: Tensor | None, grad_v: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        given = grad_v if grad_out is None else grad_out
        if given is None:
            return (None,) * 9
        refuse_recorded("lif", ctx.keep)
        x, v0, learned, kept = ctx.saved_tensors
        if grad_out is None:  # only the final state was used
            grad_out = _zeros(given, ctx.shape, ctx.strides, ctx.dtype)
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
            more={f"{_name}_counted": _counted_shapes},
            setup_context=_setup_context,
            gradient=_make_backward(getattr(torch.ops.attsnn, f"{_name}_backward")),
            name=_name,
        )
