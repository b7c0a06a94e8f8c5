"""`seam`: what lies between two convolutions as one differentiable op, on the kernels or the reference.

Each direction takes two dispatcher ops. Between them, processes share the sums of a norm. One
`torch.autograd.Function` joins the ops. csrc/README.md derives what they compute and uses the same names.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate, chain, pairwise
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from attsnn import reference
from attsnn._extension import Backend, compiled
from attsnn.reference import Gates, Norm, Scores, SeamOutput, Surrogate, rectangular, state_dtype
from attsnn.reference.neuron import Constant
from attsnn.reference.seam import as_sequences

from . import tally
from .neuron import as_read, check, five, like, pack, runs_fused, stack, typed, zeros_for
from .registration import (
    TWICE,
    refuse_batched,
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
    v0: Tensor | None = None,
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
    backend: Backend = "auto",
) -> SeamOutput:
    """Runs a seam, all that lies between two convolutions, as one op: norm, pool, gates, shortcut, neuron.

    The neuron reads x = relu(gates(pool(norm(z)))) + shortcut. The ReLU is applied only if there is a gate.

    Args:
        z: what the convolution returns: maps [T, N, C, H, W]; a sequence [T, N, C, L], without pool and
            spatial gate; or features [T, N, F], without pool and with a temporal gate at most. The type is
            float64, float32, bfloat16 or float16. One step is contiguous or channels-last, which the results
            keep (any other layout is copied). Tokens [T, N, L, C] are a sequence in channels-last layout:
            pass z.transpose(2, 3).
        norm: batch norm over (T, N, H, W), with the batch's statistics or given ones; None: no norm.
        pool: side and stride of the average pool; 1: no pool.
        gates: the weights of temporal, channel and spatial attention, applied in this order; None: no gates.
        shortcut: is added to the gated map, and has its shape and type.
        membrane: also return x, which is then rounded to z's type before the neuron reads it.
        v0: the neuron's state [N, ...] after the step before, with the shape of one step of x, in float32
            (float64 for float64); None: at rest.
        leak, gain, bias, threshold, v_reset, subtract: as in `lif`.
        surrogate, strict, detach_reset, emit, start, levels, normalize, soft: as in `lif`.
        final_state: return the state after the last step.
        backend: "fused" (raises where there is no kernel), "reference", or "auto".

    Returns:
        A `SeamOutput` (out, membrane, batch_mean, batch_var, scores, v). Gradients flow from out, membrane
        and v. With given statistics and no gates, a sequence in chunks, each starting from the `v` of the
        one before as v0, has the bits of the whole.

    Raises:
        TypeError, ValueError: for input that does not fit; the message names the argument.
        RuntimeError: for backend "fused" without kernels.
        NotImplementedError: under `torch.jit.trace`. The kernels also raise it under `torch.func`,
            forward-mode AD and double backward.

    Sources: Attention SNN (TPAMI 2023), section 3, in the released code's order; MS-ResNet (Hu et al.,
    2021).
    """
    refuse_tracing("seam")
    constants = five(leak, gain, bias, threshold, v_reset, subtract)
    check(z, None, name="z")
    packed = pack(z, constants, surrogate, strict, detach_reset, emit, start, soft, levels, normalize)
    check_seam(z, norm, pool, gates, shortcut, v0)
    gates = gates if gates is not None and any(g is not None for g in gates) else None
    beside = () if surrogate.function is None else _small(norm, gates)
    if not runs_fused(backend, surrogate, z, shortcut, v0, *constants.values(), *beside):
        neuron: dict[str, Any] = {
            "surrogate": surrogate,
            "strict": strict,
            "detach_reset": detach_reset,
            "soft": soft,
        }
        neuron |= {"emit": emit, "start": start, "levels": levels, "normalize": normalize}
        found = reference.seam(
            z,
            norm=norm,
            pool=pool,
            gates=gates,
            shortcut=shortcut,
            membrane=membrane,
            v0=v0,
            final_state=final_state,
            **{"v_reset": None, **constants, **neuron},
        )
        if tally.asked():
            tally.take(tally.counts_of(found.out, levels, normalize), found.out)
        return _told(found)
    learned = stack(z, constants, soft)
    dims = z.dim()
    if dims != 5:
        z = _as_maps(z, dims)
        shortcut, v0 = (None if t is None else _as_maps(t, dims) for t in (shortcut, v0))
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
        final_state=final_state,
        alone=learned is None
        and emit == "membrane"
        and z.shape[0] == 1
        and bool(gain == 1)
        and not (membrane or final_state or v0 is not None),
        counted=tally.asked(),
        numbers=packed.numbers,
        rules=packed.rules,
        keep=packed.keep,
    )
    given = (z, shortcut, v0, learned, *norm_or_none[:4], *weights)
    refuse_beyond("seam", *given)
    if torch.compiler.is_exporting():
        results = iter(_recorded(plan, *given))
    elif torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given):
        results = iter(_Seam.apply(plan, *given))  # type: ignore[no-untyped-call]
    else:  # going through autograd takes as long as a small seam
        results = iter(_outputs(plan, _computed(plan, *given, wanted=False)[0]))
    out, x, v = next(results), next(results) if membrane else None, next(results) if final_state else None
    counts = next(results) if plan.counted else None
    mean, var = (next(results), next(results)) if plan.batch else (None, None)
    scores = Scores(*(next(results) if plan.gates & which else None for which in (TIME, CHANNEL, SPACE)))
    found = SeamOutput(out, x, mean, var, scores, v)
    if dims == 4:
        found = as_sequences(found)
    elif dims == 3:
        x, v = (None if t is None else t.flatten(-3) for t in (x, v))
        found = found._replace(out=out.flatten(-3), membrane=x, v=v)
    if counts is not None:
        tally.take(counts, found.out)
    return _told(found)


def _told(found: SeamOutput) -> SeamOutput:
    for kind, scores in zip(("TA", "CA", "SA"), found.scores, strict=True):
        if scores is not None:
            tally.scored(kind, scores)
    return found


def _as_maps(tensor: Tensor, dims: int) -> Tensor:
    """Views a tensor that belongs to a z of `dims` dimensions as maps.

    A sequence becomes maps of height 1; features become maps of one pixel.
    """
    return tensor.unsqueeze(-2) if dims == 4 else tensor[..., None, None]


def _small(norm: Norm | None, gates: Gates | None) -> list[object]:
    temporal, channel, spatial = gates or Gates()
    return [*(norm or ()), *(temporal or ()), *(channel or ()), spatial]


_Given = tuple[Any, ...]  # z, shortcut, v0, learned, weight, bias, mean, var, and the weights of the gates
_KeptNeuron = tuple[str, tuple[int, ...]]  # what is kept of the neuron, and its rules


class _Plan(NamedTuple):
    """The Python values of a call."""

    normed: bool
    batch: bool  # the norm takes the batch's own statistics
    eps: float
    group: "dist.ProcessGroup | None"
    repeats: int
    pool: int
    gates: int  # those in use: TIME + CHANNEL + SPACE
    membrane: bool
    final_state: bool
    alone: bool  # as in SeamRules
    counted: bool
    numbers: tuple[float, ...]
    rules: tuple[int, ...]
    keep: str


class _Kept(NamedTuple):
    """What a backward pass needs. z, p, the membrane and the bits are large, the others small."""

    planes: Sequence[Tensor]  # as `seam_statistics` returns them
    weights: Sequence[Tensor]  # of the gates in use
    small: Sequence[Tensor]  # as `lif_seam_forward` returns it
    z: Tensor
    p: Tensor | None  # z pooled, if there is a pool
    membrane: Tensor | None
    v0: Tensor | None
    learned: Tensor | None
    totals: Tensor | None  # if the statistics are the batch's


class _Seam(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        plan: _Plan,
        z: Tensor,
        shortcut: Tensor | None,
        v0: Tensor | None,
        learned: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        var: Tensor | None,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        given: _Given = (z, shortcut, v0, learned, weight, bias, mean, var, *weights)
        pieces, read, neuron = _computed(plan, *given, wanted=True)
        outputs = _outputs(plan, pieces)
        _keep_for_backward(ctx, plan, given, pieces, read, neuron)
        # torch.compile does not allow an output that is None.
        ctx.mark_non_differentiable(*outputs[_differentiable(plan) :])
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *_gradients(ctx, grads, ctx.needs_input_grad[1:])


def _differentiable(plan: _Plan) -> int:
    """The number of outputs with a gradient: out, membrane and state, which come first."""
    return 1 + plan.membrane + plan.final_state


def _keep_for_backward(
    ctx: Any,
    plan: _Plan,
    given: _Given,
    pieces: "_Pieces",
    read: Sequence[Tensor],
    neuron: _KeptNeuron,
) -> None:
    """Saves what the backward pass needs.

    `read` are the gates' weights as the ops took them. `neuron` is what is kept of the neuron, and its
    rules.
    """
    z, shortcut, v0, learned, *small = given
    weights = (*small[:2], *small[4:])
    keeps_membrane = _keeps_membrane(plan, neuron[0], shortcut)
    single = (
        *(z, *(pieces.pooled or (None,)), pieces.membranes[0] if keeps_membrane else None),
        *(_lying_like(v0, pieces.out), learned, pieces.statistics[0] if plan.batch else None),
    )
    ctx.plan, ctx.device_type, ctx.neuron = plan, z.device.type, neuron
    ctx.dtypes = [None if w is None else w.dtype for w in weights]
    ctx.save_for_backward(*single, *pieces.planes, *read, *pieces.small)
    ctx.ends = len(single) + len(pieces.planes), len(single) + len(pieces.planes) + len(read)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grads: Sequence[Tensor | None], wants: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """The gradients of the inputs of a seam, where they are wanted, from those of its outputs."""
    if torch.is_grad_enabled():
        raise NotImplementedError(TWICE.format("seam"))
    if not torch.compiler.is_compiling():
        refuse_batched("seam", *grads)
    left, plan = iter(grads), ctx.plan
    grad_out, grad_membrane = next(left), next(left) if plan.membrane else None
    grad_v = next(left) if plan.final_state else None
    if grad_out is None and grad_membrane is None and grad_v is None:
        return (None,) * len(wants)
    saved, (a, b), first = ctx.saved_tensors, ctx.ends, len(_Kept._fields) - 3
    kept = _Kept(saved[first:a], saved[a:b], saved[b:], *saved[:first])
    with _without_autocast(ctx.device_type):
        of_outputs = (grad_out, grad_membrane, grad_v)
        z, up, v0, learned, *small = _backward(kept, plan, ctx.neuron, of_outputs, *wants[:2])
    weight, bias, *weights = [_as_given(g, d) for g, d in zip(small, ctx.dtypes, strict=True)]
    found = (z, up, v0, learned, weight, bias, None, None, *weights)
    return tuple(grad if want else None for grad, want in zip(found, wants, strict=True))


def _without_autocast(device_type: str) -> AbstractContextManager[Any]:
    # A device without autocast, such as meta, must not be asked whether it is on.
    on = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if on else nullcontext()


def _as_given(grad: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
    """The gradient of a small tensor in that tensor's type; None if either is missing."""
    if grad is None or dtype is None:
        return None
    return typed(grad, dtype)


# ---- forward
# ------------------------------------------------------------------------------------------


class _Pieces(NamedTuple):
    """What the ops of a forward pass return."""

    out: Tensor
    membranes: Sequence[Tensor]
    states: Sequence[Tensor]
    pooled: Sequence[Tensor]
    planes: Sequence[Tensor]
    statistics: Sequence[Tensor]
    small: Sequence[Tensor]


def _computed(
    plan: _Plan,
    z: Tensor,
    shortcut: Tensor | None,
    v0: Tensor | None,
    learned: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    *weights: Tensor,
    wanted: bool,
) -> tuple[_Pieces, list[Tensor], _KeptNeuron]:
    """Runs the forward pass, outside of autocast.

    Returns the pieces, the gates' weights as the ops took them, and what is kept of the neuron, with its
    rules.
    """
    with _without_autocast(z.device.type):
        state = state_dtype(z)
        weight, bias = (None if w is None else as_read(w, state) for w in (weight, bias))
        read = [as_read(w, state) for w in weights]
        return _forward(plan, z, shortcut, v0, learned, weight, bias, mean, var, read, wanted)


def _outputs(plan: _Plan, pieces: _Pieces) -> list[Tensor]:
    """out, membrane, state; then those without a gradient: counts, mean and variance, the gates."""
    time, channel, space = gates_in(pieces.small, plan.gates)
    return [
        *(pieces.out, *(pieces.membranes if plan.membrane else ()), *pieces.states),
        *(pieces.small[CENTRE : CENTRE + 2] if plan.batch else ()),
        *(*(gate.t() for gate in time[:1]), *channel[:1], *space[:1]),
    ]


def _keeps_membrane(plan: _Plan, keep: str, shortcut: Tensor | None) -> bool:
    return keep == "input" and shortcut is not None and not plan.alone


def _lying_like(state: Tensor | None, p: Tensor) -> Tensor | None:
    """The state [N, C, H, W] in the layout of one step of p."""
    return None if state is None else like(state, p.stride()[1:])


def _rules(plan: _Plan, keep: str, shortcut: Tensor | None, v0: Tensor | None) -> tuple[int, ...]:
    """The neuron's rules, and after them the seam's."""
    rounded = shortcut is not None or plan.membrane
    membrane = plan.membrane or _keeps_membrane(plan, keep, shortcut)
    last = v0 is not None, plan.final_state, plan.counted
    own = SeamRules(plan.gates, rounded, membrane, plan.normed, plan.repeats, plan.alone, *last)
    return (*plan.rules, *map(int, own))


def _forward(
    plan: _Plan,
    z: Tensor,
    shortcut: Tensor | None,
    v0: Tensor | None,
    learned: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    weights: list[Tensor],
    wanted: bool,
) -> tuple[_Pieces, list[Tensor], _KeptNeuron]:
    """Runs the ops of the forward pass; returns the same as `_computed`."""
    ops, by_plane = torch.ops.attsnn, bool(plan.gates & BY_PLANE)
    pooled, planes, statistics = [], [], []
    if plan.batch or plan.pool > 1 or by_plane:
        pooled, planes, statistics = ops.seam_statistics(z, weight, plan.pool, by_plane, plan.batch)
    p = pooled[0] if pooled else z
    if plan.batch and plan.group is not None:
        statistics = [_everywhere(statistics[0], plan.group)]
    elif mean is not None and var is not None:
        statistics = [mean.double(), var.double()]

    keep = _keep(p, shortcut, plan, wanted)
    rules = _rules(plan, keep, shortcut, v0)
    shortcut = None if shortcut is None else like(shortcut, p.stride()[1:])
    out, membranes, states, small = ops.lif_seam_forward(
        *(p, shortcut, _lying_like(v0, p), planes, statistics, weight, bias, weights, learned),
        *((*plan.numbers, plan.eps), rules, keep),
    )
    return _Pieces(out, membranes, states, pooled, planes, statistics, small), weights, (keep, rules)


def _keep(p: Tensor, shortcut: Tensor | None, plan: _Plan, wanted: bool) -> str:
    """What is kept of the neuron.

    Without a shortcut it is the input, which is recomputed from p. With a shortcut it is two bits a value if
    they suffice and a sample's neurons fill whole bytes, else the input too.
    """
    if not wanted:
        return "nothing"
    whole_bytes = p.shape[1] <= 1 or math.prod(p.shape[2:]) % 4 == 0
    return plan.keep if shortcut is not None and whole_bytes else "input"


def _everywhere(totals: Tensor, group: "dist.ProcessGroup") -> Tensor:
    """Merges count, means and centred second moments [1 + 2 C] over the processes of the group.

    The processes exchange counts, sums, and second moments about the common mean.
    """
    channels = totals.shape[0] // 2
    count, own, square = torch.split(totals, [1, channels, channels])
    total = torch.cat([count, own * count])
    dist.all_reduce(total, group=group)
    everywhere = total[1:] / total[:1]
    square = square + count * (own - everywhere).square()
    dist.all_reduce(square, group=group)
    return torch.cat([total[:1], everywhere, square])


# ---- backward
# ------------------------------------------------------------------------------------------


@telling_of_memory
def _backward(
    s: _Kept,
    plan: _Plan,
    neuron: _KeptNeuron,
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    wants_z: bool,
    wants_up: bool,
) -> tuple[Tensor | None, ...]:
    """The gradients of z, shortcut, v0, learned, weight, bias, and those of `weights`."""
    ops, p, (keep, rules) = torch.ops.attsnn, s.z if s.p is None else s.p, neuron
    grad_out, grad_membrane, grad_v = grads
    strides = p.stride()[1:]
    grad_out = zeros_for(p) if grad_out is None else like(grad_out, strides)
    grad_membrane = None if grad_membrane is None else like(grad_membrane, strides)
    states = [t for t in (s.v0, _lying_like(grad_v, p)) if t is not None]
    ups, by_norm, by_weights, by_planes, by_pixels, by_state, by_learned = ops.lif_seam_backward(
        *(grad_out, grad_membrane, p, s.membrane, s.planes, s.weights, s.small, states, s.learned),
        *(plan.numbers, rules, keep),
    )
    up, grad_z, batch = ups[0] if ups else grad_out, None, []
    if plan.batch:
        if plan.group is not None:
            dist.all_reduce(by_norm[0], group=plan.group)
        batch = [by_norm[0], s.totals, s.small[NORM]]
    if wants_z:
        planes = [*by_planes, *s.planes[2:]]  # and the places of the maxima
        pixels = [*by_pixels, *gates_in(s.small, plan.gates)[2][2:]]
        terms, relu = (s.small[AFFINE], planes, pixels, batch), plan.gates > 0
        if wants_up or not ups or s.p is not None:
            grad_z = ops.seam_gradient(up, s.z, s.p, *terms, plan.pool, relu)
        else:  # `up` has no other reader: it becomes the gradient of z
            ops.seam_gradient_(up, s.z, *terms, relu)
            grad_z = up
    grad_bias, grad_weight = by_norm[1:] or (None, None)
    grad_v0, grad_learned = (found[0] if found else None for found in (by_state, by_learned))
    return grad_z, up, grad_v0, grad_learned, grad_weight, grad_bias, *by_weights


# ---- recorded by torch.export, with its gradient
# ------------------------------------------------------------------------------------------


def _recorded(
    plan: _Plan,
    z: Tensor,
    shortcut: Tensor | None,
    v0: Tensor | None,
    learned: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    *weights: Tensor,
) -> list[Tensor]:
    """The outputs, through one op that an exported graph can hold.

    Export records the ops inside a `torch.autograd.Function` without their gradient. No list passed to the
    op is empty, because AOTInductor turns an empty list into None.
    """
    if plan.group is not None:
        raise NotImplementedError("seam: a norm over processes cannot be exported for training; call eval()")
    if not torch.is_grad_enabled():
        plan = plan._replace(keep="nothing")
    numbers = (plan.eps, *plan.numbers)
    flags: tuple[int, ...] = (plan.normed, plan.batch, plan.repeats, plan.pool, plan.gates)
    flags += plan.membrane, plan.final_state, plan.alone
    flat = torch.ops.attsnn.seam_recorded(
        *(z, shortcut, v0, learned, weight, bias, mean, var, weights or None),
        *(numbers, [*map(int, flags), *plan.rules], plan.keep),
    )
    return _outputs(plan, _unflattened(plan, shortcut, flat))


def _plan_of(numbers: Sequence[float], flags: Sequence[int], keep: str) -> _Plan:
    eps, *of_neuron = numbers
    normed, batch, repeats, pool, gates, membrane, final_state, alone, *rules = flags
    return _Plan(
        *(bool(normed), bool(batch), eps, None, repeats, pool, gates),
        *(bool(membrane), bool(final_state), bool(alone), False, tuple(of_neuron), tuple(rules), keep),
    )


def _recorded_keep(plan: _Plan, p: Tensor, shortcut: Tensor | None) -> str:
    return _keep(p, shortcut, plan, plan.keep != "nothing")


def _unflattened(plan: _Plan, shortcut: Tensor | None, flat: Sequence[Tensor]) -> _Pieces:
    out, *rest = flat
    membrane = plan.membrane or _keeps_membrane(plan, _recorded_keep(plan, out, shortcut), shortcut)
    counts = [membrane, plan.final_state, plan.pool > 1, 3 * bool(plan.gates & BY_PLANE), plan.batch]
    ends = [0, *accumulate(counts)]
    membranes, states, pooled, planes, statistics = (rest[a:b] for a, b in pairwise(ends))
    return _Pieces(out, membranes, states, pooled, planes, statistics, rest[ends[-1] :])


def _recorded_forward(
    z: Tensor,
    shortcut: Tensor | None,
    v0: Tensor | None,
    learned: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    weights: Sequence[Tensor] | None,
    numbers: Sequence[float],
    flags: Sequence[int],
    keep: str,
) -> list[Tensor]:
    plan = _plan_of(numbers, flags, keep)
    given: _Given = (z, shortcut, v0, learned, weight, bias, mean, var, *(weights or ()))
    pieces = _computed(plan, *given, wanted=keep != "nothing")[0]
    lists = (*pieces[1:5], pieces.statistics if plan.batch else (), pieces.small)
    return [pieces.out, *chain.from_iterable(lists)]


def _recorded_context(ctx: Any, inputs: tuple[Any, ...], output: Sequence[Tensor]) -> None:
    *given, weights, numbers, flags, keep = inputs
    plan = _plan_of(numbers, flags, keep)
    shortcut, pieces = given[1], _unflattened(plan, given[1], output)
    kept = _recorded_keep(plan, pieces.out, shortcut)
    read = [as_read(w, state_dtype(given[0])) for w in weights or ()]
    neuron = kept, _rules(plan, kept, shortcut, given[2])
    _keep_for_backward(ctx, plan, (*given, *(weights or ())), pieces, read, neuron)
    ctx.gates = None if weights is None else len(weights)
    ctx.mark_non_differentiable(*output[_differentiable(plan) :])


def _recorded_backward(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    refuse_recorded("seam", ctx.plan.keep)
    # The weights are one input, a list: either all of their gradients are wanted or none.
    wants = (*ctx.needs_input_grad[:8], *[True] * (ctx.gates or 0))
    given = _gradients(ctx, grads, wants)
    return *given[:8], None if ctx.gates is None else [*given[8:]], None, None, None


def _register() -> None:
    name = "attsnn::seam_recorded"
    given = "Tensor? shortcut, Tensor? v0, Tensor? learned, Tensor? weight, Tensor? bias"
    more = "Tensor? mean, Tensor? var, Tensor[]? weights, float[] numbers, int[] flags, str keep"
    torch.library.define(name, f"(Tensor z, {given}, {more}) -> Tensor[]")
    torch.library.impl(name, ("cpu", "cuda"))(_recorded_forward)
    register_shape("seam_recorded", _recorded_forward, "seam")
    torch.library.register_autograd(name, _recorded_backward, setup_context=_recorded_context)


if compiled() is not None:
    _register()
