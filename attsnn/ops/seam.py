"""`seam`: what lies between two convolutions as one differentiable op, on the kernels of csrc or the reference.

Four kinds of passes over the maps, each a dispatcher op, joined by one `torch.autograd.Function` with a backward
in closed form; the gates' MLPs, SA's convolution and the reduction over processes run between them on small
tensors. csrc/README.md derives the formulas; the names here are its names.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from attsnn import reference
from attsnn._extension import Backend, compiled, use_fused
from attsnn.reference import CONSTANTS, Gates, Norm, Scores, SeamOutput, Surrogate, rectangular, state_dtype
from attsnn.reference.neuron import Constant

from .neuron import CHECKPOINT_ABOVE, CHECKPOINT_EVERY, check, like, pack, refuse


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
        z: [T, N, C, H, W], or [T, N, F] without a spatial gate and pool; float64, float32, bfloat16 or float16;
            one step contiguous or channels-last, which the results keep (another order is copied).
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
    _check_seam(z, norm, pool, gates, shortcut)
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
    z = z if _laid_out(z) else z.contiguous()
    norm_or_none, gates = norm or Norm(), gates or Gates()
    plan = _Plan(
        normed=norm is not None,
        eps=norm_or_none.eps,
        group=norm_or_none.group,
        pool=pool,
        relu=any(gate is not None for gate in gates),
        membrane=membrane,
        numbers=packed.numbers,
        rules=packed.rules,
        keep=packed.keep,
        grad=torch.is_grad_enabled(),
    )
    out, x, mean, var, *scores = _Seam.apply(
        *(z, shortcut, *norm_or_none[:4]),
        *(*(gates.temporal or (None, None)), *(gates.channel or (None, None)), gates.spatial),
        *(packed.learned, plan),
    )
    if not maps:
        out, x = out.flatten(2), None if x is None else x.flatten(2)
    return SeamOutput(out, x, mean, var, Scores(*scores))


def _check_seam(z, norm, pool, gates, shortcut) -> None:
    """Sentences for what does not fit, beside the neuron's."""
    if z.dim() not in (3, 5):
        raise ValueError(f"z must be [T, N, C, H, W] or [T, N, F], got shape {tuple(z.shape)}")
    steps, _, channels = z.shape[:3]
    sides = z.shape[3:]
    if isinstance(pool, bool) or not isinstance(pool, int) or pool < 1 or (pool > 1 and not sides):
        raise ValueError(f"pool must be a side >= 1, and 1 for z [T, N, F], got {pool!r}")
    if sides and pool > min(sides):
        raise ValueError(f"pool must fit the maps of z {tuple(z.shape)}, got {pool}")
    for name, value in (norm or Norm())._asdict().items():
        if isinstance(value, Tensor) and value.shape != (channels,):
            raise ValueError(f"norm.{name} must be [C] = [{channels}], got shape {tuple(value.shape)}")
    if norm is not None and (norm.mean is None) != (norm.var is None):
        raise ValueError("norm: give mean and var both, or neither for the batch's statistics")
    if norm is not None and norm.mean is None and norm.group is None and z.numel() // max(1, channels) < 2:
        raise ValueError(f"norm: batch statistics need more than one value a channel, got z {tuple(z.shape)}")
    if gates is not None:
        for name, size, of in (("temporal", steps, "T"), ("channel", channels, "C")):
            pair = getattr(gates, name)
            if pair is not None and (pair[0].shape[1:] != (size,) or pair[1].shape != pair[0].t().shape):
                got = ", ".join(str(tuple(w.shape)) for w in pair)
                raise ValueError(
                    f"gates.{name} must be [{of}/r, {of}] and [{of}, {of}/r], {of} = {size}, got {got}"
                )
        if not sides and (gates.channel is not None or gates.spatial is not None):
            raise ValueError("gates: z [T, N, F] has a temporal gate only")
    if shortcut is not None:
        want = (*z.shape[:3], *(side // pool for side in sides))
        if shortcut.shape != want or shortcut.dtype != z.dtype:
            raise ValueError(
                f"shortcut must be {z.dtype} {want}, got {shortcut.dtype} {tuple(shortcut.shape)}"
            )


class _Plan(NamedTuple):
    """A call's Python values."""

    normed: bool
    eps: float
    group: "dist.ProcessGroup | None"
    pool: int
    relu: bool
    membrane: bool
    numbers: list[float]
    rules: list[int]
    keep: str
    grad: bool


# ---- the pieces between the passes, forward and back --------------------------------------------------------


def _excite(mean: Tensor, peak: Tensor, reduce: Tensor, expand: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sigmoid(MLP(mean) + MLP(peak)) of descriptors [N, D], and the two hidden layers."""
    hidden_mean, hidden_peak = F.relu(mean @ reduce.t()), F.relu(peak @ reduce.t())
    return torch.sigmoid((hidden_mean + hidden_peak) @ expand.t()), hidden_mean, hidden_peak


def _excite_backward(grad, gate, mean, peak, reduce, expand, hidden_mean, hidden_peak):
    """From the gradient of the gate to those of mean, peak, reduce, expand."""
    grad = grad * gate * (1 - gate)
    hidden = grad @ expand
    by_mean, by_peak = hidden * (hidden_mean > 0), hidden * (hidden_peak > 0)
    grad_reduce = by_mean.t() @ mean + by_peak.t() @ peak
    return by_mean @ reduce, by_peak @ reduce, grad_reduce, grad.t() @ (hidden_mean + hidden_peak)


def _statistics(moments: Tensor, pixels: int, group) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance [C] and count, in float64, from the planes' means and centred moments, over all
    processes: counts, sums and second moments about the own mean travel (Chan's update).
    """
    mean, moment = moments[0], moments[1]
    planes = mean.shape[0] * mean.shape[1]
    own = mean.mean((0, 1))
    square = moment.sum((0, 1)) + pixels * (mean - own).square().sum((0, 1))
    count = torch.full((1,), float(planes * pixels), dtype=torch.float64, device=mean.device)
    if group is None:
        return own, square / count, count
    total = torch.cat([count, own * count])
    dist.all_reduce(total, group=group)
    everywhere = total[1:] / total[:1]
    square = square + count * (own - everywhere).square()
    dist.all_reduce(square, group=group)
    return everywhere, square / total[:1], total[:1]


def _space_backward(grad, gate, maps, kernel) -> tuple[Tensor, Tensor, Tensor]:
    """From the gradient of SA's gate [N, pixels] to those of its mean and maximum [N, pixels], and the kernel."""
    grad = (grad.view(gate.shape) * gate * (1 - gate))[:, None]
    half = kernel.shape[-1] // 2
    grad_maps, grad_kernel, _ = torch.ops.aten.convolution_backward(
        *(grad, maps, kernel, None, [1, 1], [half, half], [1, 1], False, [0, 0], 1, [True, True, False])
    )
    level, point = grad_maps.flatten(2).unbind(1)
    return level.contiguous(), point.contiguous(), grad_kernel


def _by_plane(point: Tensor, at: Tensor, p: Tensor, mean) -> tuple[Tensor, Tensor]:
    """Sums by plane [T, N, C] of what SA's maximum hands to single values: point [N, pixels] goes to step and
    channel `at`; against 1 and against (p - mean).
    """
    steps, samples, channels, _, width = p.shape
    at = at.long()
    t, c = at // channels, at % channels
    n = torch.arange(samples, device=p.device)[:, None].expand_as(at)
    pixel = torch.arange(at.shape[1], device=p.device).expand_as(at)
    centred = p[t, n, c, pixel // width, pixel % width].double() - (
        mean[c] if isinstance(mean, Tensor) else mean
    )
    none = point.new_zeros((steps, samples, channels))  # index_put sorts on CUDA: the same bits every time
    return tuple(none.index_put((t, n, c), v, accumulate=True) for v in (point, point * centred))


class _Seam(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, shortcut, weight, bias, mean, var, t0, t1, c0, c1, kernel, learned, plan):
        with torch.autocast(z.device.type, enabled=False):
            return _forward(ctx, z, shortcut, weight, bias, mean, var, t0, t1, c0, c1, kernel, learned, plan)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out, grad_membrane, *_):
        if grad_out is None and grad_membrane is None:
            return (None,) * 13
        with torch.autocast(ctx.device_type, enabled=False):
            return _backward(ctx, grad_out, grad_membrane)


def _forward(ctx, z, shortcut, weight, bias, mean, var, t0, t1, c0, c1, kernel, learned, plan):
    steps, samples, channels, height, width = z.shape
    state, pixels = state_dtype(z), height * width
    given = (weight, bias, t0, t1, c0, c1, kernel)
    ctx.dtypes = [None if w is None else w.dtype for w in given]
    weight, bias, t0, t1, c0, c1, kernel = (None if w is None else w.detach().to(state) for w in given)
    batch = plan.normed and mean is None
    p, moments, extremum, place = z, None, None, None
    if batch or plan.pool > 1 or t0 is not None or c0 is not None:
        p, moments, extremum, place = torch.ops.attsnn.seam_statistics(z, weight, plan.pool)
        p = p if plan.pool > 1 else z

    # y = a p + b, a = gamma / sigma
    count, unbiased, batch_mean = None, None, None
    if batch:
        mean, var, count = _statistics(moments, pixels, plan.group)
        batch_mean, unbiased = mean.to(state), (var * (count / (count - 1))).to(state)
    if plan.normed:
        inverse = (var.double() + plan.eps).rsqrt()
        scale = inverse if weight is None else weight * inverse
        offset = -scale * mean if bias is None else bias - scale * mean
        centre = mean.to(state)
    else:
        scale, offset = z.new_ones(channels, dtype=torch.float64), z.new_zeros(channels, dtype=torch.float64)
        inverse, centre = scale, None
    a, b = scale.to(state), offset.to(state)

    time, channel, space = None, None, None
    gate = torch.ones((), dtype=state, device=z.device)
    small = {}
    if t0 is not None or c0 is not None:
        y_mean, y_peak = a * moments[2].to(state) + b, a * extremum + b  # [T, N, C]
        small |= {"p_mean": moments[2], "p_peak": extremum}
    if t0 is not None:
        t_mean, (t_peak, at) = y_mean.mean(2), y_peak.max(2)
        time, *hidden = _excite(t_mean.t(), t_peak.t(), t0, t1)  # [N, T]
        small |= {"t_mean": t_mean.t(), "t_peak": t_peak.t(), "t_at": at}
        small |= {"t_hidden_mean": hidden[0], "t_hidden_peak": hidden[1]}
        gate = time.t()[:, :, None]
    if c0 is not None:
        c_mean, (c_peak, at) = (gate * y_mean).mean(0), (gate * y_peak).max(0)
        channel, *hidden = _excite(c_mean, c_peak, c0, c1)  # [N, C]
        small |= {"c_mean": c_mean, "c_peak": c_peak, "c_at": at}
        small |= {"c_hidden_mean": hidden[0], "c_hidden_peak": hidden[1]}
        gate = gate * channel
    affine = torch.stack([gate * a, gate * b])
    affine = affine.view(2, *[1] * (4 - affine.dim()), *affine.shape[1:])  # [2, T or 1, N or 1, C]
    if kernel is not None:
        maps, space_at = torch.ops.attsnn.seam_squeeze(p, affine)
        maps = maps.view(2, samples, *p.shape[3:]).transpose(0, 1)
        space = torch.sigmoid(F.conv2d(maps, kernel, padding=kernel.shape[-1] // 2))[:, 0].contiguous()
        small |= {"maps": maps, "space_at": space_at}

    rounded = shortcut is not None or plan.membrane
    if shortcut is not None:
        shortcut = like(shortcut, p.stride()[1:])
    wanted = plan.grad and any(ctx.needs_input_grad)
    keep, whole_bytes = plan.keep, samples <= 1 or p[0, 0].numel() % 4 == 0
    if not wanted:
        keep = "nothing"
    elif shortcut is None or not whole_bytes:  # without a shortcut x is computed again from p
        keep = "input"
    keeps_membrane = keep == "input" and shortcut is not None
    rules = [*plan.rules, int(plan.relu), int(rounded), int(plan.membrane or keeps_membrane)]
    out, x, kept = torch.ops.attsnn.lif_seam_forward(
        p, affine, space, shortcut, learned, plan.numbers, rules, keep
    )
    if wanted:
        tensors = {"z": z, "p": p if plan.pool > 1 else None, "kept": kept, "learned": learned}
        tensors |= {"x": x if keeps_membrane else None, "affine": affine, "space": space, "place": place}
        tensors |= {
            "weight": weight,
            "bias": bias,
            "inverse": inverse,
            "centre": centre,
            "a": a,
            "count": count,
        }
        tensors |= {
            "t0": t0,
            "t1": t1,
            "c0": c0,
            "c1": c1,
            "kernel": kernel,
            "time": time,
            "channel": channel,
        }
        tensors |= small
        ctx.names = tuple(tensors)
        ctx.save_for_backward(*tensors.values())
        ctx.plan, ctx.rules, ctx.keep, ctx.batch = plan, rules, keep, batch
        ctx.device_type = z.device.type
    ctx.set_materialize_grads(False)
    results = (batch_mean, unbiased, None if time is None else time.t(), channel, space)
    ctx.mark_non_differentiable(*(r for r in results if r is not None))
    return out, x if plan.membrane else None, *results


def _backward(ctx, grad_out, grad_membrane):
    s = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
    plan, z, place = ctx.plan, s["z"], s["place"]
    p = z if s["p"] is None else s["p"]
    steps, samples, channels, height, width = p.shape
    state, strides = state_dtype(z), p.stride()[1:]
    time, channel, space = s["time"], s["channel"], s["space"]
    if grad_out is None:
        grad_out = grad_membrane.new_zeros(()).expand(p.shape)
    grad_out = like(grad_out, strides)
    grad_membrane = None if grad_membrane is None else like(grad_membrane, strides)

    # pass A
    up, sums, grad_space, grad_learned = torch.ops.attsnn.lif_seam_backward(
        *(grad_out, grad_membrane, p, s["x"], s["affine"], space, s["centre"], s["kept"], s["learned"]),
        *(plan.numbers, ctx.rules, ctx.keep),
    )
    inverse, weight, bias = s["inverse"], s["weight"], s["bias"]
    gamma = torch.ones_like(inverse) if weight is None else weight.double()
    beta = torch.zeros_like(inverse) if bias is None else bias.double()
    mean = 0.0 if s["centre"] is None else s["centre"].double()
    b0, b1 = (
        sums[0],
        inverse * sums[1],
    )  # against 1 and against (p - mean) / sigma: the gradient of SA's input
    grads = dict.fromkeys(("t0", "t1", "c0", "c1", "kernel"))
    spatial = None
    if space is not None:
        level, point, grads["kernel"] = _space_backward(grad_space, space, s["maps"], s["kernel"])
        level = level / (steps * channels)
        spatial = torch.stack([space.flatten(1), level, point])
        of_level = level.double().sum(1)[None, :, None], torch.ops.attsnn.seam_project(p, level, s["centre"])
        of_point = _by_plane(point.double(), s["space_at"], p, mean)
        b0, b1 = b0 + of_level[0] + of_point[0], b1 + inverse * (of_level[1] + of_point[1])
    gate = torch.ones((), dtype=torch.float64, device=z.device)
    if time is not None:
        gate = time.double().t()[:, :, None]
    uniform = spike = None
    if time is not None or channel is not None:
        z_mean, z_peak = inverse * (s["p_mean"] - mean), inverse * (s["p_peak"] - mean)
        y_mean, y_peak = gamma * z_mean + beta, gamma * z_peak + beta
        by_y = gamma * b1 + beta * b0  # [T, N, C]: against y
        uniform, spike = torch.zeros_like(b0), torch.zeros_like(b0)
    if channel is not None:
        grad_mean, grad_peak, grads["c0"], grads["c1"] = _excite_backward(
            *((gate * by_y).sum(0).to(state), channel, s["c_mean"], s["c_peak"], s["c0"], s["c1"]),
            *(s["c_hidden_mean"], s["c_hidden_peak"]),
        )
        c_mean, at = grad_mean.double() / steps, s["c_at"][None]
        c_peak = torch.zeros_like(b0).scatter(0, at, grad_peak.double()[None])
        uniform, spike = uniform + gate * c_mean, spike + gate * c_peak
    if time is not None:
        grad_time = (by_y if channel is None else channel * by_y).sum(2)
        if channel is not None:
            grad_time = grad_time + (c_mean * y_mean + c_peak * y_peak).sum(2)
        grad_mean, grad_peak, grads["t0"], grads["t1"] = _excite_backward(
            *(grad_time.t().to(state), time, s["t_mean"], s["t_peak"], s["t0"], s["t1"]),
            *(s["t_hidden_mean"], s["t_hidden_peak"]),
        )
        uniform = uniform + (grad_mean.double().t() / channels)[:, :, None]
        t_peak = grad_peak.double().t()[:, :, None]
        spike = spike + torch.zeros_like(b0).scatter(2, s["t_at"][:, :, None], t_peak)
    gate = gate if channel is None else gate * channel

    scale = gamma * inverse
    # d(gamma), d(beta) and what of them the batch statistics hand back
    y0, y1 = gate * b0, gate * b1
    if uniform is not None:
        y0, y1 = y0 + uniform + spike, y1 + uniform * z_mean + spike * z_peak
    grad_bias, grad_weight = y0.sum((0, 1)), y1.sum((0, 1))
    of_batch = None
    if ctx.batch:
        both = torch.stack([grad_bias, grad_weight])
        if plan.group is not None:
            dist.all_reduce(both, group=plan.group)
        both = both / s["count"]
        of_batch = torch.stack([scale * both[0], scale * inverse * both[1], s["centre"].double()]).to(state)

    # pass C
    planes = None
    if uniform is not None:
        planes = torch.stack([scale * uniform / (height * width), scale * spike]).to(state)
    grad_z = None
    if ctx.needs_input_grad[0]:
        grad_z = torch.ops.attsnn.seam_gradient(
            *(up, z, s["p"], s["affine"], spatial, s.get("space_at"), planes),
            *(place if planes is not None else None, of_batch, plan.pool, plan.relu),
        )
    small = (grad_weight, grad_bias, grads["t0"], grads["t1"], grads["c0"], grads["c1"], grads["kernel"])
    small = [None if g is None or d is None else g.to(d) for g, d in zip(small, ctx.dtypes, strict=True)]
    wants = ctx.needs_input_grad
    return (
        grad_z,
        up if wants[1] else None,
        *(g if wants[i] else None for i, g in zip((2, 3), small[:2], strict=True)),
        *(None, None),
        *(g if wants[i] else None for i, g in zip(range(6, 11), small[2:], strict=True)),
        grad_learned if wants[11] else None,
        None,
    )


# ---- the dispatcher ops
# ------------------------------------------------------------------------------------------


def _maps_like(z: Tensor, *, pool: int = 1) -> Tensor:
    """An empty tensor as the kernels lay it out: dense, pixels or channels innermost, like z."""
    steps, samples, channels, height, width = z.shape
    height, width = height // pool, width // pool
    pixels = height * width
    c, w = (1, channels) if _channels_last(z) else (pixels, 1)
    strides = (samples * channels * pixels, channels * pixels, c, width * w, w)
    return z.new_empty_strided((steps, samples, channels, height, width), strides)


def _lies(z: Tensor, c: int, h: int, w: int) -> bool:
    strides = (z.shape[2] * z.shape[3] * z.shape[4], c, h, w)
    return all(n == 1 or a == b for n, a, b in zip(z.shape[1:], z.stride()[1:], strides, strict=True))


def _channels_last(z: Tensor) -> bool:
    height, width = z.shape[3:]
    return height * width == 1 or not _lies(z, height * width, width, 1)


def _laid_out(z: Tensor) -> bool:
    """Whether one step of [T, N, C, H, W] is contiguous or channels-last."""
    channels, height, width = z.shape[2:]
    return _lies(z, height * width, width, 1) or _lies(z, 1, width * channels, channels)


def _statistics_shapes(z, gamma, pool):
    pooled = _maps_like(z, pool=pool) if pool > 1 else z.new_empty(0)
    moments = z.new_empty((3, *z.shape[:3]), dtype=torch.float64)
    extremum = z.new_empty(z.shape[:3], dtype=state_dtype(z))
    return pooled, moments, extremum, z.new_empty(z.shape[:3], dtype=torch.int32)


def _squeeze_shapes(p, affine):
    samples, pixels = p.shape[1], p.shape[3] * p.shape[4]
    descriptors = p.new_empty((2, samples, pixels), dtype=state_dtype(p))
    return descriptors, p.new_empty((samples, pixels), dtype=torch.int32)


def _forward_shapes(p, affine, spatial, shortcut, learned, numbers, rules, keep):
    steps, neurons, state = p.shape[0], p.shape[1:].numel(), state_dtype(p)
    if keep == "bits":
        kept = p.new_empty((steps, (neurons + 3) // 4), dtype=torch.uint8)
    elif keep == "input" and steps > CHECKPOINT_ABOVE:
        kept = p.new_empty(((steps - 1) // CHECKPOINT_EVERY, neurons), dtype=state)
    else:
        kept = p.new_empty(0, dtype=state)
    return _maps_like(p), _maps_like(p) if rules[-1] else p.new_empty(0), kept


def _backward_shapes(grad_out, grad_membrane, p, membrane, affine, spatial, centre, kept, learned, *_):
    state = state_dtype(p)
    sums = p.new_empty((2, *p.shape[:3]), dtype=torch.float64)
    grad_spatial = p.new_empty(0 if spatial is None else p.shape[1] * p.shape[3] * p.shape[4], dtype=state)
    grad_learned = p.new_empty(0, dtype=state) if learned is None else learned.new_empty(learned.shape)
    return _maps_like(p), sums, grad_spatial, grad_learned


_SHAPES = {
    "seam_statistics": _statistics_shapes,
    "seam_squeeze": _squeeze_shapes,
    "seam_project": lambda p, weight, centre: p.new_empty(p.shape[:3], dtype=torch.float64),
    "seam_gradient": lambda up, z, *_: _maps_like(z),
}


def _register() -> None:
    shapes = dict(_SHAPES)
    for neuron in compiled().neurons:
        shapes |= {f"{neuron}_seam_forward": _forward_shapes, f"{neuron}_seam_backward": _backward_shapes}
    for name, shape in shapes.items():
        torch.library.register_fake(f"attsnn::{name}", shape)


if compiled() is not None:
    _register()
