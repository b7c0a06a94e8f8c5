"""`seam`: what lies between two convolutions as one differentiable op, on the kernels or the reference.

A few passes over the maps, each a dispatcher op, are joined by one `torch.autograd.Function` whose backward
is written out; between them the gates' MLPs, SA's convolution and the reduction over processes run on small
tensors.
csrc/README.md derives the formulas; the names here are its names.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from attsnn import reference
from attsnn._extension import Backend, use_fused
from attsnn.reference import CONSTANTS, Gates, Norm, Scores, SeamOutput, Surrogate, rectangular, state_dtype
from attsnn.reference.neuron import Constant

from .neuron import check, like, pack
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
    check(z, None, constants, surrogate, emit, start, name="z")
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
    packed = pack(z, constants, surrogate, strict, detach_reset, emit, start, soft)
    maps = z.dim() == 5
    if not maps:
        z = z[..., None, None]
        shortcut = None if shortcut is None else shortcut[..., None, None]
    z = z if laid_out(z) else z.contiguous()
    norm_or_none, gates = norm or Norm(), gates or Gates()
    plan = _Plan(
        normed=norm is not None,
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
    out, *others = _Seam.apply(
        *(z, shortcut, *norm_or_none[:4]),
        *(*(gates.temporal or (None, None)), *(gates.channel or (None, None)), gates.spatial),
        *(packed.learned, plan),
    )
    x, mean, var, *scores = (None if other.dim() == 1 and not len(other) else other for other in others)
    if not maps:
        out, x = out.flatten(2), None if x is None else x.flatten(2)
    return SeamOutput(out, x, mean, var, Scores(*scores))


class _Plan(NamedTuple):
    """A call's Python values."""

    normed: bool
    eps: float
    group: "dist.ProcessGroup | None"
    repeats: int
    pool: int
    relu: bool
    membrane: bool
    numbers: list[float]
    rules: list[int]
    keep: str
    grad: bool


class _Kept(NamedTuple):
    """What a backward pass needs: z, p and perhaps bits or the membrane are of size, the others small."""

    z: Tensor
    p: Tensor | None = None  # where z is pooled
    bits: Tensor | None = None  # of the neuron: two a value, or its checkpoints
    membrane: Tensor | None = None
    learned: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    inverse: Tensor | None = None  # 1 / sigma
    centre: Tensor | None = None  # the mean
    count: Tensor | None = None  # where these are the batch's
    affine: Tensor | None = None
    p_mean: Tensor | None = None  # by plane
    p_peak: Tensor | None = None
    place: Tensor | None = None
    time: Tensor | None = None  # the gates, their descriptors, where the maxima are, their weights
    t_mean: Tensor | None = None
    t_peak: Tensor | None = None
    t_at: Tensor | None = None
    t0: Tensor | None = None
    t1: Tensor | None = None
    channel: Tensor | None = None
    c_mean: Tensor | None = None
    c_peak: Tensor | None = None
    c_at: Tensor | None = None
    c0: Tensor | None = None
    c1: Tensor | None = None
    space: Tensor | None = None
    maps: Tensor | None = None
    space_at: Tensor | None = None
    kernel: Tensor | None = None


class _Seam(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, shortcut, weight, bias, mean, var, t0, t1, c0, c1, kernel, learned, plan):
        given = (weight, bias, t0, t1, c0, c1, kernel)
        wanted = plan.grad and any(ctx.needs_input_grad)
        with torch.autocast(z.device.type, enabled=False):
            small = (None if w is None else w.detach().to(state_dtype(z)) for w in given)
            outputs, kept, neuron = _forward(z, shortcut, mean, var, *small, learned, plan, wanted)
        ctx.plan, ctx.neuron, ctx.device_type = plan, neuron, z.device.type
        ctx.dtypes = [None if w is None else w.dtype for w in given]
        if wanted:
            ctx.save_for_backward(*kept)
        ctx.set_materialize_grads(False)
        # torch.compile wants tensors only: an empty one for what is not there
        outputs = tuple(z.new_empty(0) if o is None else o for o in outputs)
        ctx.mark_non_differentiable(*outputs[1 if not plan.membrane else 2 :])
        return outputs

    @staticmethod
    def backward(ctx, grad_out, grad_membrane, *_):
        grad_membrane = grad_membrane if ctx.plan.membrane else None
        if grad_out is None and grad_membrane is None:
            return (None,) * 13
        kept, wants = _Kept(*ctx.saved_tensors), ctx.needs_input_grad
        with torch.autocast(ctx.device_type, enabled=False):
            grads = _backward(kept, ctx.plan, ctx.neuron, grad_out, grad_membrane, wants[0])
        z, shortcut, *small, learned = grads
        small = [None if g is None or d is None else g.to(d) for g, d in zip(small, ctx.dtypes, strict=True)]
        grads = (z, shortcut, *small[:2], None, None, *small[2:], learned)
        return *(grad if want else None for grad, want in zip(grads, wants, strict=False)), None


# ---- forward
# ------------------------------------------------------------------------------------------


def _forward(z, shortcut, mean, var, weight, bias, t0, t1, c0, c1, kernel, learned, plan, wanted):
    """The outputs, what a backward pass needs, and what of the neuron is kept, with its rules."""
    batch, state = plan.normed and mean is None, state_dtype(z)
    p, moments, peak, place = z, None, None, None
    if batch or plan.pool > 1 or t0 is not None or c0 is not None:
        p, moments, peak, place = torch.ops.attsnn.seam_statistics(z, weight, plan.pool)
        p = p if plan.pool > 1 else z
    count, unbiased = None, None
    if batch:
        mean, var, count = _statistics(moments, z.shape[3] * z.shape[4], plan.group)
        shown = count * plan.repeats
        unbiased = (var * (shown / (shown - 1))).to(state)
    inverse = centre = None  # y = gamma (p - centre) inverse + beta = a p + b
    a, b = z.new_ones(z.shape[2], dtype=state), z.new_zeros(z.shape[2], dtype=state)
    if plan.normed:
        inverse, centre = (var.double() + plan.eps).rsqrt(), mean.to(state)
        scale = inverse if weight is None else weight * inverse
        a, b = scale.to(state), (-scale * mean if bias is None else bias - scale * mean).to(state)

    time, channel, gate, of_gates = _gates(moments, peak, a, b, t0, t1, c0, c1)
    affine = torch.stack([a, b] if gate is None else [gate * a, gate * b])
    affine = affine.view(2, *[1] * (4 - affine.dim()), *affine.shape[1:])  # [2, T or 1, N or 1, C]
    space, maps, space_at = None, None, None
    if kernel is not None:
        maps, space_at = torch.ops.attsnn.seam_squeeze(p, affine)
        maps = maps.view(2, -1, *p.shape[3:]).transpose(0, 1)
        space = torch.sigmoid(F.conv2d(maps, kernel, padding=kernel.shape[-1] // 2))[:, 0].contiguous()

    keep = _keep(p, shortcut, plan, wanted)
    keeps_membrane = keep == "input" and shortcut is not None
    rounded = shortcut is not None or plan.membrane
    rules = [*plan.rules, int(plan.relu), int(rounded), int(plan.membrane or keeps_membrane)]
    shortcut = None if shortcut is None else like(shortcut, p.stride()[1:])
    out, membrane, bits = torch.ops.attsnn.lif_seam_forward(
        p, affine, space, shortcut, learned, plan.numbers, rules, keep
    )
    kept = _Kept(
        z,
        p=p if plan.pool > 1 else None,
        bits=bits,
        membrane=membrane if keeps_membrane else None,
        learned=learned,
        weight=weight,
        bias=bias,
        inverse=inverse,
        centre=centre,
        count=count,
        affine=affine,
        place=place,
        time=time,
        t0=t0,
        t1=t1,
        channel=channel,
        c0=c0,
        c1=c1,
        space=space,
        maps=maps,
        space_at=space_at,
        kernel=kernel,
        **of_gates,
    )
    outputs = (out, membrane if plan.membrane else None, centre if batch else None, unbiased)
    time = None if time is None else time.t()
    return (*outputs, time, channel, space), kept, (keep, rules)


def _keep(p: Tensor, shortcut: Tensor | None, plan: _Plan, wanted: bool) -> str:
    """What of the neuron is kept. Without a shortcut nothing but its input, which is computed again from p;
    with one two bits where they suffice, if a sample's neurons fill whole bytes.
    """
    if not wanted:
        return "nothing"
    whole_bytes = p.shape[1] <= 1 or p.shape[2:].numel() % 4 == 0
    return plan.keep if shortcut is not None and whole_bytes else "input"


def _statistics(moments: Tensor, pixels: int, group) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance [C] and count, in float64, from the planes' means and centred moments; over all
    processes of the group, where counts, sums and second moments about the common mean travel.
    """
    mean, moment = moments[0], moments[1]
    own = mean.mean((0, 1))
    square = moment.sum((0, 1)) + pixels * (mean - own).square().sum((0, 1))
    count = torch.full((1,), mean.shape[0] * mean.shape[1] * pixels, dtype=torch.float64, device=mean.device)
    if group is None:
        return own, square / count, count
    total = torch.cat([count, own * count])
    dist.all_reduce(total, group=group)
    everywhere = total[1:] / total[:1]
    square = square + count * (own - everywhere).square()
    dist.all_reduce(square, group=group)
    return everywhere, square / total[:1], total[:1]


def _gates(moments, peak, a, b, t0, t1, c0, c1):
    """TA's weights [N, T] and CA's [N, C], their product [T, N, 1 or C], and what the backward pass needs."""
    if t0 is None and c0 is None:
        return None, None, None, {}
    y_mean, y_peak = torch.addcmul(b, a, moments[2].to(a.dtype)), torch.addcmul(b, a, peak)  # [T, N, C]
    kept, time, channel, gate = {"p_mean": moments[2], "p_peak": peak}, None, None, None
    if t0 is not None:
        t_mean, (t_peak, t_at) = y_mean.mean(2).t(), y_peak.max(2)
        time = _excite(t_mean, t_peak.t(), t0, t1)
        gate = time.t()[:, :, None]
        kept |= {"t_mean": t_mean, "t_peak": t_peak.t(), "t_at": t_at}
    if c0 is not None:
        if gate is not None:
            y_mean, y_peak = gate * y_mean, gate * y_peak
        c_mean, (c_peak, c_at) = y_mean.mean(0), y_peak.max(0)
        channel = _excite(c_mean, c_peak, c0, c1)
        gate = channel[None] if gate is None else gate * channel
        kept |= {"c_mean": c_mean, "c_peak": c_peak, "c_at": c_at}
    return time, channel, gate, kept


def _hidden(descriptor: Tensor, reduce: Tensor) -> Tensor:
    return F.relu(descriptor @ reduce.t())


def _excite(mean: Tensor, peak: Tensor, reduce: Tensor, expand: Tensor) -> Tensor:
    """sigmoid(MLP(mean) + MLP(peak)) of descriptors [N, D]."""
    return torch.sigmoid((_hidden(mean, reduce) + _hidden(peak, reduce)) @ expand.t())


# ---- backward
# ------------------------------------------------------------------------------------------


def _backward(s, plan, neuron, grad_out, grad_membrane, wants_z):
    """The gradients of z, shortcut, weight, bias, t0, t1, c0, c1, kernel, learned."""
    z, p, (keep, rules) = s.z, s.z if s.p is None else s.p, neuron
    strides, state = p.stride()[1:], state_dtype(z)
    if grad_out is None:
        grad_out = grad_membrane.new_zeros(()).expand(p.shape)
    grad_membrane = None if grad_membrane is None else like(grad_membrane, strides)
    up, sums, grad_space, grad_learned = torch.ops.attsnn.lif_seam_backward(
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
    # From here in float64, [T, N, C] by plane: b0 and b1 are the gradient of what SA reads, summed against 1
    # and against (p - mean) / sigma; not against y, which is no help where gamma is 0.
    one, none = (torch.full_like(sums[0, 0, 0], value) for value in (1.0, 0.0))
    inverse, mean = (one, none) if s.centre is None else (s.inverse, s.centre.double())
    gamma = one if s.weight is None else s.weight.double()
    beta = none if s.bias is None else s.bias.double()
    b0, b1 = sums[0], sums[1]
    spatial, grad_kernel = None, None
    if s.space is not None:
        spatial, grad_kernel = _space_backward(grad_space, p, mean, s, b0, b1)
    b1 = inverse * b1
    planes, grad_gates = None, (None,) * 4
    y0, y1 = b0, b1  # the same of the normed map
    if s.time is not None or s.channel is not None:
        normed = inverse * (s.p_mean - mean), inverse * (s.p_peak - mean)
        gate, uniform, spike, *grad_gates = _gates_backward(b0, b1, *normed, gamma, beta, s, state)
        y0 = torch.addcmul(uniform + spike, gate, b0)
        y1 = (gate * b1).addcmul_(uniform, normed[0]).addcmul_(spike, normed[1])
        scale = gamma * inverse
        planes = b0.new_empty((2, *b0.shape), dtype=state)
        planes[0], planes[1] = (scale / (p.shape[3] * p.shape[4])) * uniform, scale * spike
    grad_bias, grad_weight = y0.sum((0, 1)), y1.sum((0, 1))
    of_batch = None
    if s.count is not None:  # what the batch's statistics hand back
        both = torch.stack([grad_bias, grad_weight])
        if plan.group is not None:
            dist.all_reduce(both, group=plan.group)
        both = gamma * inverse * both / s.count
        of_batch = torch.stack([both[0], inverse * both[1], mean]).to(state)
    grad_z = None
    if wants_z:
        place = None if planes is None else s.place
        space_at = None if spatial is None else s.space_at
        grad_z = torch.ops.attsnn.seam_gradient(
            *(up, z, s.p, s.affine, spatial, space_at, planes, place, of_batch, plan.pool, plan.relu)
        )
    return grad_z, up, grad_weight, grad_bias, *grad_gates, grad_kernel, grad_learned


def _space_backward(grad, p, mean, s, b0, b1):
    """SA: its part of the last pass [3, N, pixels], and its kernel's gradient; what it hands to the planes is
    added to b0 and to b1, which is still against (p - mean).
    """
    steps, samples, channels = p.shape[:3]
    grad = (grad.view(s.space.shape) * s.space * (1 - s.space))[:, None]
    size = s.kernel.shape[-1]
    grad_maps = F.conv_transpose2d(grad, s.kernel, padding=size // 2)
    # A library's weight gradient depends on the number of threads: 2 k k sums instead, in float64.
    padded, sides = F.pad(s.maps.double(), [size // 2] * 4), grad.shape[2:]
    windows = padded.unfold(2, sides[0], 1).unfold(3, sides[1], 1)  # [N, 2, k, k, H, W]
    grad_kernel = (windows * grad[:, :, None, None]).sum((4, 5)).sum(0)[None].to(grad.dtype)
    level, point = grad_maps.flatten(2).unbind(1)
    level = level / (steps * channels)
    spatial = torch.stack([s.space.flatten(1), level, point])
    by_level = torch.ops.attsnn.seam_project(p, level.contiguous(), s.centre)
    # the maximum's gradient goes to one value of each pixel
    at = s.space_at.long()
    t, c, pixel = at // channels, at % channels, torch.arange(at.shape[1], device=p.device).expand_as(at)
    n = torch.arange(samples, device=p.device)[:, None].expand_as(at)
    centred = p[t, n, c, pixel // p.shape[4], pixel % p.shape[4]].double() - mean[c]
    point = point.double()
    b0.add_(level.double().sum(1)[:, None]).index_put_((t, n, c), point, accumulate=True)
    b1.add_(by_level).index_put_((t, n, c), point * centred, accumulate=True)
    return spatial, grad_kernel


def _gates_backward(b0, b1, normed_mean, normed_peak, gamma, beta, s, state):
    """TA and CA: their product [T, N, C], the gradients by plane of the normed map's mean and maximum, and
    those of t0, t1, c0, c1.
    """
    steps, _, channels = b0.shape
    by_y = gamma * b1 + beta * b0
    grads_t, grads_c = (None, None), (None, None)
    time = 1.0 if s.time is None else s.time.double().t()[:, :, None]
    gate, by_time, uniform, spike = time, by_y, 0.0, 0.0
    if s.channel is not None:
        grad = (time * by_y).sum(0) if s.time is not None else by_y.sum(0)
        mean, peak, *grads_c = _excite_backward(grad.to(state), s.channel, s.c_mean, s.c_peak, s.c0, s.c1)
        mean, peak = mean / steps, torch.zeros_like(b0).scatter_(0, s.c_at[None], peak[None])
        gate, uniform, spike = time * s.channel.double(), time * mean, peak
        if s.time is not None:
            y_mean, y_peak = gamma * normed_mean + beta, gamma * normed_peak + beta
            by_time = s.channel * by_y + mean * y_mean + peak * y_peak
            spike = time * peak
    if s.time is not None:
        grad = by_time.sum(2).t().to(state)
        mean, peak, *grads_t = _excite_backward(grad, s.time, s.t_mean, s.t_peak, s.t0, s.t1)
        uniform = uniform + (mean.t() / channels)[:, :, None]
        spike = spike + torch.zeros_like(b0).scatter_(2, s.t_at[:, :, None], peak.t()[:, :, None])
    return gate, uniform, spike, *grads_t, *grads_c


def _excite_backward(grad, gate, mean, peak, reduce, expand):
    """From the gradient of a gate [N, D] to those of mean and peak, in float64, and of reduce and expand."""
    grad = grad * gate * (1 - gate)
    of_mean, of_peak, hidden = _hidden(mean, reduce), _hidden(peak, reduce), grad @ expand
    by_mean, by_peak = hidden * (of_mean > 0), hidden * (of_peak > 0)
    grad_reduce, grad_expand = by_mean.t() @ mean + by_peak.t() @ peak, grad.t() @ (of_mean + of_peak)
    return (by_mean @ reduce).double(), (by_peak @ reduce).double(), grad_reduce, grad_expand
