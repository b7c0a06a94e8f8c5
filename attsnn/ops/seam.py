"""`seam`: what lies between two convolutions as one differentiable op, on the kernels or the reference.

Passes over the maps, and between them ops on the small tensors of norm and gates, each a dispatcher op, are
joined by one `torch.autograd.Function` whose backward is written out. Torch itself is left with the
reduction over processes.
csrc/README.md derives the formulas; the names here are its names.
"""

from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from attsnn import reference
from attsnn._extension import Backend, use_fused
from attsnn.reference import CONSTANTS, Gates, Norm, Scores, SeamOutput, Surrogate, rectangular, state_dtype
from attsnn.reference.neuron import Constant

from .neuron import TWICE, check, like, pack, stack
from .seam_shapes import check_seam, laid_out


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
    gates = gates if gates is not None and any(g is not None for g in gates) else None
    constants = dict(zip(CONSTANTS, (leak, gain, bias, threshold, v_reset), strict=True))
    check(z, None, name="z")
    packed = pack(z, constants, surrogate, strict, detach_reset, emit, start, soft)
    check_seam(z, norm, pool, gates, shortcut)
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
    norm_or_none, gates = norm or Norm(), gates or Gates()
    plan = _Plan(
        normed=norm is not None,
        batch=norm is not None and norm.mean is None,
        eps=norm_or_none.eps,
        group=norm_or_none.group,
        repeats=norm_or_none.repeats,
        pool=pool,
        relu=any(gate is not None for gate in gates),
        membrane=membrane,
        numbers=packed.numbers,
        rules=packed.rules,
        keep=packed.keep,
        grad=torch.is_grad_enabled(),
    )
    results = _Seam.apply(
        *(z, shortcut, *norm_or_none[:4]),
        *(*(gates.temporal or (None, None)), *(gates.channel or (None, None)), gates.spatial),
        *(learned, plan),
    )
    found = dict(zip(_outputs(plan, gates), results, strict=True))
    out, x = found["out"], found.get("membrane")
    if not maps:
        out, x = out.flatten(2), None if x is None else x.flatten(2)
    scores = Scores(*(found.get(name) for name in Scores._fields))
    return SeamOutput(out, x, found.get("mean"), found.get("var"), scores)


class _Plan(NamedTuple):
    """A call's Python values."""

    normed: bool
    batch: bool  # with the batch's own statistics
    eps: float
    group: "dist.ProcessGroup | None"
    repeats: int
    pool: int
    relu: bool
    membrane: bool
    numbers: tuple[float, ...]
    rules: tuple[int, ...]
    keep: str
    grad: bool


def _outputs(plan: _Plan, gates: Gates) -> list[str]:
    """The results that a call has: those with a gradient first."""
    there = {"out": True, "membrane": plan.membrane, "mean": plan.batch, "var": plan.batch}
    there |= {name: gate is not None for name, gate in gates._asdict().items()}
    return [name for name, found in there.items() if found]


class _Kept(NamedTuple):
    """What a backward pass needs: z, p and perhaps bits or the membrane are of size, the others small."""

    z: Tensor
    affine: Tensor
    norm: Tensor  # [4, C]: 1 / sigma, the mean, gamma, beta
    p: Tensor | None = None  # where z is pooled
    bits: Tensor | None = None  # of the neuron: two a value, or its checkpoints
    membrane: Tensor | None = None
    learned: Tensor | None = None
    centre: Tensor | None = None  # the mean
    totals: Tensor | None = None  # where it is the batch's
    moments: Tensor | None = None  # by plane
    peak: Tensor | None = None
    place: Tensor | None = None
    t0: Tensor | None = None  # the gates: their weights, and what `seam_gates` gives
    t1: Tensor | None = None
    time: Tensor | None = None
    t_inputs: Tensor | None = None
    t_place: Tensor | None = None
    t_hidden: Tensor | None = None
    c0: Tensor | None = None
    c1: Tensor | None = None
    channel: Tensor | None = None
    c_inputs: Tensor | None = None
    c_place: Tensor | None = None
    c_hidden: Tensor | None = None
    space: Tensor | None = None
    padded: Tensor | None = None
    space_at: Tensor | None = None
    kernel: Tensor | None = None

    def gate(self, names: tuple[str, ...]) -> list[Tensor]:
        """A gate as the dispatcher ops take it; nothing where there is none."""
        found = [getattr(self, name) for name in names]
        return [] if found[0] is None else found


_TEMPORAL = ("t0", "t1", "time", "t_inputs", "t_place", "t_hidden")
_CHANNEL = ("c0", "c1", "channel", "c_inputs", "c_place", "c_hidden")


class _Seam(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, shortcut, weight, bias, mean, var, t0, t1, c0, c1, kernel, learned, plan):
        given = (weight, bias, t0, t1, c0, c1, kernel)
        wanted = plan.grad and any(ctx.needs_input_grad)
        with _without_autocast(z.device.type):
            small = (None if w is None else _as_read(w, state_dtype(z)) for w in given)
            outputs, kept, neuron = _forward(z, shortcut, mean, var, *small, learned, plan, wanted)
        ctx.plan, ctx.neuron, ctx.device_type = plan, neuron, z.device.type
        ctx.dtypes = [None if w is None else w.dtype for w in given]
        if wanted:
            ctx.save_for_backward(*kept)
        ctx.set_materialize_grads(False)
        # As `_outputs` names them; torch.compile takes no output that is None.
        outputs = tuple(o for o in outputs if o is not None)
        ctx.mark_non_differentiable(*outputs[2 if plan.membrane else 1 :])
        return outputs

    @staticmethod
    def backward(ctx, grad_out, *others):
        if torch.is_grad_enabled():
            raise NotImplementedError(TWICE.format("seam"))
        grad_membrane = others[0] if ctx.plan.membrane else None
        if grad_out is None and grad_membrane is None:
            return (None,) * 13
        kept, wants = _Kept(*ctx.saved_tensors), ctx.needs_input_grad
        with _without_autocast(ctx.device_type):
            grads = _backward(kept, ctx.plan, ctx.neuron, grad_out, grad_membrane, wants[0])
        z, shortcut, *small, learned = grads
        small = [_as_given(g, d) for g, d in zip(small, ctx.dtypes, strict=True)]
        grads = (z, shortcut, *small[:2], None, None, *small[2:], learned)
        return *(grad if want else None for grad, want in zip(grads, wants, strict=False)), None


# Between two convolutions, whose data leave no cache warm, a line of Python takes several microseconds: what
# would change nothing is not called.


def _without_autocast(device_type: str):
    on = torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if on else nullcontext()


def _as_read(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A small tensor as the ops take it."""
    return weight if weight.dtype == dtype and weight.is_contiguous() else weight.to(dtype).contiguous()


def _as_given(grad: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
    """The gradient of a small tensor in its type; None where that is not there."""
    if grad is None or dtype is None:
        return None
    return grad if grad.dtype == dtype else grad.to(dtype)


# ---- forward
# ------------------------------------------------------------------------------------------


def _forward(z, shortcut, mean, var, weight, bias, t0, t1, c0, c1, kernel, learned, plan, wanted):
    """The outputs, what a backward pass needs, and what of the neuron is kept, with its rules."""
    ops, gated = torch.ops.attsnn, t0 is not None or c0 is not None
    p, small = z, {"learned": learned}
    if plan.batch or plan.pool > 1 or gated:
        p, moments, peak, place = ops.seam_statistics(z, weight, plan.pool, gated)
        p = p if plan.pool > 1 else z
        if gated:
            small |= {"moments": moments, "peak": peak, "place": place}
    if plan.batch:
        small["totals"] = _totals(moments, z.shape[3] * z.shape[4], plan.group)
    given = (None if statistic is None else statistic.double() for statistic in (mean, var))
    no_values = z.new_empty((0, 0, z.shape[2]))  # type and channels are all that is wanted of z
    affine, norm, centre, unbiased = ops.seam_affine(
        no_values, small.get("totals"), *given, weight, bias, plan.eps, plan.repeats
    )
    if plan.normed:
        small["centre"] = centre
    if gated:
        weights = [[] if w[0] is None else w for w in ([t0, t1], [c0, c1])]
        affine, *found = ops.seam_gates(moments, peak, affine, *weights)
        for names, own, results in zip((_TEMPORAL, _CHANNEL), weights, (found[:4], found[4:]), strict=True):
            if own:
                small |= dict(zip(names, (*own, *results), strict=True))
    space = None
    if kernel is not None:
        descriptors, space_at = ops.seam_squeeze(p, affine)
        space, padded = ops.seam_space(descriptors, kernel, *p.shape[3:])
        small |= {"space": space, "padded": padded, "space_at": space_at, "kernel": kernel}

    keep = _keep(p, shortcut, plan, wanted)
    keeps_membrane = keep == "input" and shortcut is not None
    rounded = shortcut is not None or plan.membrane
    rules = [*plan.rules, int(plan.relu), int(rounded), int(plan.membrane or keeps_membrane)]
    shortcut = None if shortcut is None else like(shortcut, p.stride()[1:])
    out, membrane, bits = ops.lif_seam_forward(p, affine, space, shortcut, learned, plan.numbers, rules, keep)
    small["membrane"] = membrane if keeps_membrane else None
    kept = _Kept(z, affine, norm, p=p if plan.pool > 1 else None, bits=bits, **small)
    statistics = (centre, unbiased) if plan.batch else (None, None)
    outputs = (out, membrane if plan.membrane else None, *statistics)
    scores = (None if kept.time is None else kept.time.t(), kept.channel, kept.space)
    return (*outputs, *scores), kept, (keep, rules)


def _keep(p: Tensor, shortcut: Tensor | None, plan: _Plan, wanted: bool) -> str:
    """What of the neuron is kept. Without a shortcut nothing but its input, which is computed again from p;
    with one two bits where they suffice, if a sample's neurons fill whole bytes.
    """
    if not wanted:
        return "nothing"
    whole_bytes = p.shape[1] <= 1 or p.shape[2:].numel() % 4 == 0
    return plan.keep if shortcut is not None and whole_bytes else "input"


def _totals(moments: Tensor, pixels: int, group) -> Tensor:
    """Count, means and centred second moments [1 + 2 C], in float64, from those of the planes; over all
    processes of the group, where counts, sums and second moments about the common mean travel.
    """
    totals = torch.ops.attsnn.seam_totals(moments, pixels)
    if group is None:
        return totals
    count, own, square = totals.split([1, *[moments.shape[3]] * 2])
    total = torch.cat([count, own * count])
    dist.all_reduce(total, group=group)
    everywhere = total[1:] / total[:1]
    square = square + count * (own - everywhere).square()
    dist.all_reduce(square, group=group)
    return torch.cat([total[:1], everywhere, square])


# ---- backward
# ------------------------------------------------------------------------------------------


def _backward(s, plan, neuron, grad_out, grad_membrane, wants_z):
    """The gradients of z, shortcut, weight, bias, t0, t1, c0, c1, kernel, learned."""
    ops, z, p, (keep, rules) = torch.ops.attsnn, s.z, s.z if s.p is None else s.p, neuron
    strides = p.stride()[1:]
    if grad_out is None:
        grad_out = grad_membrane.new_zeros(()).expand(p.shape)
    grad_membrane = None if grad_membrane is None else like(grad_membrane, strides)
    up, sums, grad_space, grad_learned = ops.lif_seam_backward(
        *(
            like(grad_out, strides),
            grad_membrane,
            p,
            s.membrane,
            s.affine,
            s.space,
            s.centre,
            s.bits,
            s.learned,
        ),
        *(plan.numbers, rules, keep),
    )
    # From here in float64, [T, N, C] by plane: the gradient of what SA reads, summed against 1 and against
    # p - mean; not against y, which is no help where gamma is 0.
    spatial, grad_kernel = None, None
    if s.space is not None:
        averaged = p.shape[0] * p.shape[2]
        spatial, total, by_kernel = ops.seam_space_backward(grad_space, s.space, s.padded, s.kernel, averaged)
        grad_kernel = by_kernel.sum(0, keepdim=True)
        by_level = ops.seam_project(p, spatial[1], s.centre)
        sums = ops.seam_space_sums(sums, by_level, spatial, total, s.space_at, p, s.norm)
    planes, grad_gates = None, [None] * 4
    if s.place is not None:
        gates = s.gate(_TEMPORAL), s.gate(_CHANNEL)
        planes, sums, *grad_gates = ops.seam_gates_backward(
            sums, s.norm, s.moments, s.peak, *gates, p.shape[3] * p.shape[4]
        )
    grad_bias = grad_weight = of_batch = None
    if plan.normed:
        both, grad_bias, grad_weight = ops.seam_norm_sums(sums, s.norm, s.affine)
        if plan.batch:  # what its statistics hand back
            if plan.group is not None:
                both = both.clone()
                dist.all_reduce(both, group=plan.group)
            of_batch = ops.seam_batch_gradient(both, s.totals, s.norm, s.affine)
    grad_z = None
    if wants_z:
        place = None if planes is None else s.place
        space_at = None if spatial is None else s.space_at
        grad_z = ops.seam_gradient(
            *(up, z, s.p, s.affine, spatial, space_at, planes, place, of_batch, plan.pool, plan.relu)
        )
    return grad_z, up, grad_weight, grad_bias, *grad_gates, grad_kernel, grad_learned
