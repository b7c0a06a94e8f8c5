"""`seam`: what lies between two convolutions as one differentiable op, on the kernels or the reference.

Two dispatcher ops each way, between which processes share the sums of a norm, are joined by one
`torch.autograd.Function`. csrc/README.md derives what they compute; the names here are its names.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from attsnn import reference
from attsnn._extension import Backend, compiled, use_fused
from attsnn.reference import CONSTANTS, Gates, Norm, Scores, SeamOutput, Surrogate, rectangular, state_dtype
from attsnn.reference.neuron import Constant

from .neuron import as_read, check, like, pack, stack, typed
from .registration import (
    TWICE,
    refuse_beyond,
    refuse_recorded,
    refuse_tracing,
    register_shape,
    telling_of_memory,
)
from .seam_shapes import (
    AFFINE,
    BY_PLANE,
    CENTRE,
    CHANNEL,
    NORM,
    SPACE,
    TIME,
    SeamRules,
    check_seam,
    gates_in,
    laid_out,
)


@telling_of_memory
def seam(
    z: Tensor,
    *,
    norm: Norm | None = None,
    pool: int = 1,
    gates: Gates | None = None,
    shortcut: Tensor | None = None,
    membrane: bool = False,
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
    backend: Backend = "auto",
) -> SeamOutput:
    """From what a convolution hands on to spikes: batch norm, average pool, gates and ReLU, shortcut, neuron.

    x = relu(gates(pool(norm(z)))) + shortcut, the neuron reads x. The ReLU stands where there is a gate.

    Args:
        z: [T, N, C, H, W], or [T, N, F] with a temporal gate at most; float64, float32, bfloat16 or
            float16; one step contiguous or channels-last, which the results keep (another order is copied).
        norm: batch norm over (T, N, H, W), with the batch's statistics or given ones; None: none.
        pool: side and stride of the average pool; 1: none.
        gates: the weights of temporal, channel and spatial attention, applied in this order; None: none.
        shortcut: added to the gated map, of its shape and type.
        membrane: whether x, rounded to z's type before the neuron reads it, is wanted too.
        leak ... soft: the neuron, as in `attsnn.ops.lif`.
        backend: "fused" (an error where there is no kernel), "reference", or "auto".

    Returns:
        SeamOutput(out, membrane, batch_mean, batch_var, scores); gradients flow from out and membrane.

    Raises:
        TypeError, ValueError: for input that does not fit; the sentence names the argument.
        RuntimeError: backend "fused" without kernels.

    Sources: Attention SNN (TPAMI 2023), section 3, in the released code's order; MS-ResNet (Hu et al., 2021).
    """
    refuse_tracing("seam")
    constants = dict(zip(CONSTANTS, (leak, gain, bias, threshold, v_reset), strict=True))
    check(z, None, name="z")
    packed = pack(z, constants, surrogate, strict, detach_reset, emit, start, soft)
    check_seam(z, norm, pool, gates, shortcut)
    gates = gates if gates is not None and any(g is not None for g in gates) else None
    if not use_fused(backend, z.device.type):
        neuron = {"surrogate": surrogate, "strict": strict, "detach_reset": detach_reset, "soft": soft}
        return reference.seam(
            z,
            norm=norm,
            pool=pool,
            gates=gates,
            shortcut=shortcut,
            membrane=membrane,
            **{**constants, **neuron, "emit": emit, "start": start},
        )
    learned = stack(z, constants, soft)
    maps = z.dim() == 5
    if not maps:
        z = z[..., None, None]
        shortcut = None if shortcut is None else shortcut[..., None, None]
    z = z if laid_out(z) else z.contiguous()
    norm_or_none, (temporal, channel, spatial) = norm or Norm(), gates or Gates()
    weights = (*(temporal or ()), *(channel or ()), *(() if spatial is None else (spatial,)))
    plan = _Plan(
        normed=norm is not None,
        batch=norm is not None and norm.mean is None,
        eps=norm_or_none.eps,
        group=norm_or_none.group,
        repeats=norm_or_none.repeats,
        pool=pool,
        gates=TIME * (temporal is not None) + CHANNEL * (channel is not None) + SPACE * (spatial is not None),
        membrane=membrane,
        alone=learned is None and emit == "membrane" and z.shape[0] == 1 and gain == 1 and not membrane,
        numbers=packed.numbers,
        rules=packed.rules,
        keep=packed.keep,
    )
    given = (z, shortcut, learned, *norm_or_none[:4], *weights)
    refuse_beyond("seam", *given)
    if torch.compiler.is_exporting():
        results = iter(_recorded(plan, *given))
    elif torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given):
        results = iter(_Seam.apply(plan, *given))
    else:  # autograd's own way there takes as long as a small seam
        results = iter(_outputs(plan, _computed(plan, *given, wanted=False)[0]))
    out, x = next(results), next(results) if membrane else None
    mean, var = (next(results), next(results)) if plan.batch else (None, None)
    scores = Scores(*(next(results) if plan.gates & which else None for which in (TIME, CHANNEL, SPACE)))
    if not maps:
        out, x = out.flatten(2), None if x is None else x.flatten(2)
    return SeamOutput(out, x, mean, var, scores)


class _Plan(NamedTuple):
    """A call's Python values."""

    normed: bool
    batch: bool  # with the batch's own statistics
    eps: float
    group: "dist.ProcessGroup | None"
    repeats: int
    pool: int
    gates: int  # which there are: TIME + CHANNEL + SPACE
    membrane: bool
    alone: bool  # as in SeamRules
    numbers: tuple[float, ...]
    rules: tuple[int, ...]
    keep: str


class _Kept(NamedTuple):
    """What a backward pass needs: z, p and perhaps bits or the membrane are of size, the others small."""

    z: Tensor
    p: Tensor | None  # where z is pooled
    membrane: Tensor | None
    learned: Tensor | None
    totals: Tensor | None  # where the statistics are the batch's
    planes: Sequence[Tensor]  # as `seam_statistics` returns them
    weights: Sequence[Tensor]  # of the gates that there are
    small: Sequence[Tensor]  # as `lif_seam_forward` returns it


class _Seam(torch.autograd.Function):
    @staticmethod
    def forward(ctx, plan, z, shortcut, learned, weight, bias, mean, var, *weights):
        given = (z, shortcut, learned, weight, bias, mean, var, *weights)
        pieces, read, neuron = _computed(plan, *given, wanted=True)
        outputs = _outputs(plan, pieces)
        _keep_for_backward(ctx, plan, given, pieces, read, neuron)
        # out, membrane; then what has no gradient: mean and variance, the gates. torch.compile takes no
        # output that is None.
        ctx.mark_non_differentiable(*outputs[2 if plan.membrane else 1 :])
        return tuple(outputs)

    @staticmethod
    def backward(ctx, grad_out, *others):
        grad_membrane = others[0] if ctx.plan.membrane else None
        return None, *_gradients(ctx, grad_out, grad_membrane, ctx.needs_input_grad[1:])


def _keep_for_backward(ctx, plan, given, pieces, read, neuron) -> None:
    """`read`: the gates' weights as the ops took them; `neuron`: what of it is kept, with its rules."""
    z, learned, weights = given[0], given[2], (*given[3:5], *given[7:])
    keeps_membrane = _keeps_membrane(plan, neuron[0], given[1])
    single = (
        *(z, *(pieces.pooled or (None,)), pieces.membranes[0] if keeps_membrane else None, learned),
        pieces.statistics[0] if plan.batch else None,
    )
    ctx.plan, ctx.device_type, ctx.neuron = plan, z.device.type, neuron
    ctx.dtypes = [None if w is None else w.dtype for w in weights]
    ctx.save_for_backward(*single, *pieces.planes, *read, *pieces.small)
    ctx.ends = len(single) + len(pieces.planes), len(single) + len(pieces.planes) + len(read)
    ctx.set_materialize_grads(False)


def _gradients(ctx, grad_out, grad_membrane, wants) -> tuple[Tensor | None, ...]:
    """Of what a seam was `given`, where it is wanted."""
    if torch.is_grad_enabled():
        raise NotImplementedError(TWICE.format("seam"))
    if grad_out is None and grad_membrane is None:
        return (None,) * len(wants)
    saved, (a, b), first = ctx.saved_tensors, ctx.ends, len(_Kept._fields) - 3
    kept = _Kept(*saved[:first], saved[first:a], saved[a:b], saved[b:])
    with _without_autocast(ctx.device_type):
        z, up, learned, *small = _backward(kept, ctx.plan, ctx.neuron, grad_out, grad_membrane, *wants[:2])
    weight, bias, *weights = [_as_given(g, d) for g, d in zip(small, ctx.dtypes, strict=True)]
    grads = (z, up, learned, weight, bias, None, None, *weights)
    return tuple(grad if want else None for grad, want in zip(grads, wants, strict=True))


def _without_autocast(device_type: str):
    # A device without autocast, meta say, must not be asked whether it is on.
    on = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if on else nullcontext()


def _as_given(grad: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
    """The gradient of a small tensor in its type; None where that is not there."""
    if grad is None or dtype is None:
        return None
    return typed(grad, dtype)


# ---- forward
# ------------------------------------------------------------------------------------------


class _Pieces(NamedTuple):
    """What the ops of a forward pass return."""

    out: Tensor
    membranes: Sequence[Tensor]
    pooled: Sequence[Tensor]
    planes: Sequence[Tensor]
    statistics: Sequence[Tensor]
    small: Sequence[Tensor]


def _computed(plan, z, shortcut, learned, weight, bias, mean, var, *weights, wanted: bool):
    """The pieces, the gates' weights as the ops took them, and what of the neuron is kept, with its rules.
    Outside of autocast.
    """
    with _without_autocast(z.device.type):
        state = state_dtype(z)
        weight, bias, *read = [None if w is None else as_read(w, state) for w in (weight, bias, *weights)]
        return _forward(plan, z, shortcut, learned, weight, bias, mean, var, read, wanted)


def _outputs(plan: _Plan, pieces: _Pieces) -> list[Tensor]:
    """out, membrane; then what has no gradient: mean and variance, the gates."""
    time, channel, space = gates_in(pieces.small, plan.gates)
    return [
        *(pieces.out, *(pieces.membranes if plan.membrane else ())),
        *(pieces.small[CENTRE : CENTRE + 2] if plan.batch else ()),
        *(*(gate.t() for gate in time[:1]), *channel[:1], *space[:1]),
    ]


def _keeps_membrane(plan: _Plan, keep: str, shortcut: Tensor | None) -> bool:
    return keep == "input" and shortcut is not None and not plan.alone


def _rules(plan: _Plan, keep: str, shortcut: Tensor | None) -> tuple[int, ...]:
    """The neuron's, and the seam's behind them."""
    rounded = shortcut is not None or plan.membrane
    membrane = plan.membrane or _keeps_membrane(plan, keep, shortcut)
    own = SeamRules(plan.gates, rounded, membrane, plan.normed, plan.repeats, plan.alone)
    return (*plan.rules, *map(int, own))


def _forward(plan, z, shortcut, learned, weight, bias, mean, var, weights, wanted):
    """As `_computed`."""
    ops, by_plane = torch.ops.attsnn, bool(plan.gates & BY_PLANE)
    pooled, planes, statistics = [], [], []
    if plan.batch or plan.pool > 1 or by_plane:
        pooled, planes, statistics = ops.seam_statistics(z, weight, plan.pool, by_plane, plan.batch)
    p = pooled[0] if pooled else z
    if plan.batch and plan.group is not None:
        statistics = [_everywhere(statistics[0], plan.group)]
    elif plan.normed and not plan.batch:
        statistics = [mean.double(), var.double()]

    keep = _keep(p, shortcut, plan, wanted)
    rules = _rules(plan, keep, shortcut)
    shortcut = None if shortcut is None else like(shortcut, p.stride()[1:])
    out, membranes, small = ops.lif_seam_forward(
        *(p, shortcut, planes, statistics, weight, bias, weights, learned),
        *(plan.eps, plan.numbers, rules, keep),
    )
    return _Pieces(out, membranes, pooled, planes, statistics, small), weights, (keep, rules)


def _keep(p: Tensor, shortcut: Tensor | None, plan: _Plan, wanted: bool) -> str:
    """What of the neuron is kept. Without a shortcut nothing but its input, which is computed again from p;
    with one two bits where they suffice, if a sample's neurons fill whole bytes.
    """
    if not wanted:
        return "nothing"
    whole_bytes = p.shape[1] <= 1 or math.prod(p.shape[2:]) % 4 == 0
    return plan.keep if shortcut is not None and whole_bytes else "input"


def _everywhere(totals: Tensor, group) -> Tensor:
    """Count, means and centred second moments [1 + 2 C] of all processes of the group from those of each:
    counts, sums and second moments about the common mean travel.
    """
    channels = totals.shape[0] // 2
    count, own, square = totals.split([1, channels, channels])
    total = torch.cat([count, own * count])
    dist.all_reduce(total, group=group)
    everywhere = total[1:] / total[:1]
    square = square + count * (own - everywhere).square()
    dist.all_reduce(square, group=group)
    return torch.cat([total[:1], everywhere, square])


# ---- backward
# ------------------------------------------------------------------------------------------


@telling_of_memory
def _backward(s, plan, neuron, grad_out, grad_membrane, wants_z, wants_up):
    """The gradients of z, shortcut, learned, weight, bias, and those of `weights`."""
    ops, p, (keep, rules) = torch.ops.attsnn, s.z if s.p is None else s.p, neuron
    strides = p.stride()[1:]
    if grad_out is None:
        grad_out = grad_membrane.new_zeros(()).expand(p.shape)
    grad_membrane = None if grad_membrane is None else like(grad_membrane, strides)
    grad_out = like(grad_out, strides)
    ups, by_norm, by_weights, by_planes, by_pixels, by_learned = ops.lif_seam_backward(
        *(grad_out, grad_membrane, p, s.membrane, s.planes, s.weights, s.small, s.learned),
        *(plan.numbers, rules, keep),
    )
    up, grad_z, batch = ups[0] if ups else grad_out, None, []
    if plan.batch:
        if plan.group is not None:
            dist.all_reduce(by_norm[0], group=plan.group)
        batch = [by_norm[0], s.totals, s.small[NORM]]
    if wants_z:
        planes = [*by_planes, *s.planes[2:]]  # with the places of the maxima
        pixels = [*by_pixels, *gates_in(s.small, plan.gates)[2][2:]]
        terms, relu = (s.small[AFFINE], planes, pixels, batch), plan.gates > 0
        if wants_up or not ups or s.p is not None:
            grad_z = ops.seam_gradient(up, s.z, s.p, *terms, plan.pool, relu)
        else:  # nobody else reads `up`
            ops.seam_gradient_(up, s.z, *terms, relu)
            grad_z = up
    grad_bias, grad_weight = by_norm[1:] or (None, None)
    return grad_z, up, by_learned[0] if by_learned else None, grad_weight, grad_bias, *by_weights


# ---- recorded by torch.export, with its gradient
# ------------------------------------------------------------------------------------------


def _recorded(plan: _Plan, z, shortcut, learned, weight, bias, mean, var, *weights) -> list[Tensor]:
    """The outputs, through one op that a graph can hold: export records the ops inside a
    `torch.autograd.Function` without their gradient. No list that it is given is empty, which AOTInductor
    hands on as None.
    """
    if plan.group is not None:
        raise NotImplementedError("seam: a norm over processes cannot be exported for training; call eval()")
    if not torch.is_grad_enabled():
        plan = plan._replace(keep="nothing")
    numbers = (plan.eps, *plan.numbers)
    flags = (plan.normed, plan.batch, plan.repeats, plan.pool, plan.gates, plan.membrane, plan.alone)
    flat = torch.ops.attsnn.seam_recorded(
        *(z, shortcut, learned, weight, bias, mean, var, weights or None),
        *(numbers, [*map(int, flags), *plan.rules], plan.keep),
    )
    return _outputs(plan, _unflattened(plan, shortcut, flat))


def _plan_of(numbers: Sequence[float], flags: Sequence[int], keep: str) -> _Plan:
    eps, *of_neuron = numbers
    normed, batch, repeats, pool, gates, membrane, alone, *rules = flags
    return _Plan(
        *(bool(normed), bool(batch), eps, None, repeats, pool, gates, bool(membrane), bool(alone)),
        *(tuple(of_neuron), tuple(rules), keep),
    )


def _recorded_keep(plan: _Plan, p: Tensor, shortcut: Tensor | None) -> str:
    return _keep(p, shortcut, plan, plan.keep != "nothing")


def _unflattened(plan: _Plan, shortcut: Tensor | None, flat: Sequence[Tensor]) -> _Pieces:
    out, *rest = flat
    membranes = plan.membrane or _keeps_membrane(plan, _recorded_keep(plan, out, shortcut), shortcut)
    counts = int(membranes), int(plan.pool > 1), 3 if plan.gates & BY_PLANE else 0, int(plan.batch)
    ends = [0, *accumulate(counts)]
    return _Pieces(out, *(rest[a:b] for a, b in pairwise(ends)), rest[ends[-1] :])


def _recorded_forward(z, shortcut, learned, weight, bias, mean, var, weights, numbers, flags, keep):
    plan = _plan_of(numbers, flags, keep)
    given = (z, shortcut, learned, weight, bias, mean, var, *(weights or ()))
    pieces = _computed(plan, *given, wanted=keep != "nothing")[0]
    lists = (*pieces[1:4], pieces.statistics if plan.batch else (), pieces.small)
    return [pieces.out, *chain.from_iterable(lists)]


def _recorded_context(ctx, inputs, output) -> None:
    *given, weights, numbers, flags, keep = inputs
    plan = _plan_of(numbers, flags, keep)
    shortcut, pieces = given[1], _unflattened(plan, given[1], output)
    kept = _recorded_keep(plan, pieces.out, shortcut)
    read = [as_read(w, state_dtype(given[0])) for w in weights or ()]
    neuron = kept, _rules(plan, kept, shortcut)
    _keep_for_backward(ctx, plan, (*given, *(weights or ())), pieces, read, neuron)
    ctx.gates = None if weights is None else len(weights)
    ctx.mark_non_differentiable(*output[2 if plan.membrane else 1 :])


def _recorded_backward(ctx, grads):
    refuse_recorded("seam", ctx.plan.keep)
    # The weights are one input, a list, whose gradients are wanted together.
    wants = (*ctx.needs_input_grad[:7], *[True] * (ctx.gates or 0))
    given = _gradients(ctx, grads[0], grads[1] if ctx.plan.membrane else None, wants)
    return *given[:7], None if ctx.gates is None else [*given[7:]], None, None, None


def _register() -> None:
    name, given = "attsnn::seam_recorded", "Tensor? shortcut, Tensor? learned, Tensor? weight, Tensor? bias"
    more = "Tensor? mean, Tensor? var, Tensor[]? weights, float[] numbers, int[] flags, str keep"
    torch.library.define(name, f"(Tensor z, {given}, {more}) -> Tensor[]")
    torch.library.impl(name, ("cpu", "cuda"))(_recorded_forward)
    register_shape("seam_recorded", _recorded_forward, "seam")
    torch.library.register_autograd(name, _recorded_backward, setup_context=_recorded_context)


if compiled() is not None:
    _register()
