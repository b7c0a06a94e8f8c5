"""The seams' dispatcher ops: how their maps lie in memory, their shape rules, and sentences for misuse.

The rules are those of csrc/tensor/seam_op.h and gates_op.h.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from attsnn._extension import compiled
from attsnn.reference import Norm, state_dtype

from .neuron import CHECKPOINT_ABOVE, CHECKPOINT_EVERY, VMAPPED, refuse


def check_seam(z, norm, pool, gates, shortcut) -> None:
    """Sentences for what does not fit, beside the neuron's."""
    if z.dim() not in (3, 5):
        raise ValueError(f"z must be [T, N, C, H, W] or [T, N, F], got shape {tuple(z.shape)}")
    steps, _, channels = z.shape[:3]
    sides = z.shape[3:]
    if isinstance(pool, bool) or not isinstance(pool, int) or pool < 1 or (pool > 1 and not sides):
        raise ValueError(f"pool must be a side >= 1, and 1 for z [T, N, F], got {pool!r}")
    if sides and pool > min(sides):
        raise ValueError(f"pool must fit the maps of z {tuple(z.shape)}, got {pool}")
    if norm is not None:
        _check_norm(norm, z)
    if gates is not None:
        for name, size, of in (("temporal", steps, "T"), ("channel", channels, "C")):
            pair = getattr(gates, name)
            if pair is not None and (pair[0].shape[1:] != (size,) or pair[1].shape != pair[0].t().shape):
                got = ", ".join(str(tuple(w.shape)) for w in pair)
                raise ValueError(
                    f"gates.{name} must be [{of}/r, {of}] and [{of}, {of}/r], {of} = {size}, got {got}"
                )
        kernel = gates.spatial
        if kernel is not None and (kernel.shape != (1, 2, *kernel.shape[2:3] * 2) or not kernel.shape[2] % 2):
            raise ValueError(f"gates.spatial must be [1, 2, k, k] with an odd k, got {tuple(kernel.shape)}")
        if not sides and (gates.channel is not None or gates.spatial is not None):
            raise ValueError("gates: z [T, N, F] has a temporal gate only")
    if shortcut is not None:
        want = (*z.shape[:3], *(side // pool for side in sides))
        if shortcut.shape != want or shortcut.dtype != z.dtype:
            raise ValueError(
                f"shortcut must be {z.dtype} {want}, got {shortcut.dtype} {tuple(shortcut.shape)}"
            )


def _check_norm(norm: Norm, z: Tensor) -> None:
    channels = z.shape[2]
    for name, value in zip(Norm._fields, norm, strict=True):
        if isinstance(value, Tensor) and value.shape != (channels,):
            raise ValueError(f"norm.{name} must be [C] = [{channels}], got shape {tuple(value.shape)}")
    if (norm.mean is None) != (norm.var is None):
        raise ValueError("norm: give mean and var both, or neither for the batch's statistics")
    if not isinstance(norm.repeats, int) or norm.repeats < 1:
        raise ValueError(f"norm.repeats must be an integer >= 1, got {norm.repeats!r}")
    if norm.mean is None and norm.group is None and z.numel() // max(1, channels) < 2:
        raise ValueError(f"norm: batch statistics need more than one value a channel, got z {tuple(z.shape)}")


def maps_like(z: Tensor, sides: Iterable[int] | None = None, last: bool | None = None) -> Tensor:
    """An empty tensor as the kernels lay it out: dense, pixels or channels innermost, like z, whose sides and
    layout it has unless told otherwise.
    """
    steps, samples, channels, *own = z.shape
    height, width = own if sides is None else sides
    pixels = height * width
    c, w = (1, channels) if (channels_last(z) if last is None else last) else (pixels, 1)
    strides = (samples * channels * pixels, channels * pixels, c, width * w, w)
    return z.new_empty_strided((steps, samples, channels, height, width), strides)


def _lies(z: Tensor, c: int, h: int, w: int) -> bool:
    strides = (z.shape[2] * z.shape[3] * z.shape[4], c, h, w)
    return all(n == 1 or a == b for n, a, b in zip(z.shape[1:], z.stride()[1:], strides, strict=True))


def channels_last(z: Tensor) -> bool:
    """Whether one step of [T, N, C, H, W] lies channels-last, or has one pixel."""
    height, width = z.shape[3:]
    return height * width == 1 or not _lies(z, height * width, width, 1)


def laid_out(z: Tensor) -> bool:
    """Whether one step of [T, N, C, H, W] is contiguous or channels-last."""
    channels, height, width = z.shape[2:]
    return _lies(z, height * width, width, 1) or _lies(z, 1, width * channels, channels)


def _statistics_shapes(z, gamma, pool, extrema):
    pooled = maps_like(z, (side // pool for side in z.shape[3:])) if pool > 1 else z.new_empty(0)
    moments = z.new_empty((3, *z.shape[:3]), dtype=torch.float64)
    planes = z.shape[:3] if extrema else 0
    extremum = z.new_empty(planes, dtype=state_dtype(z))
    return pooled, moments, extremum, z.new_empty(planes, dtype=torch.int32)


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
    return maps_like(p), maps_like(p) if rules[-1] else p.new_empty(0), kept


def _backward_shapes(grad_out, grad_membrane, p, membrane, affine, spatial, centre, kept, learned, *_):
    state = state_dtype(p)
    sums = p.new_empty((2, *p.shape[:3]), dtype=torch.float64)
    grad_spatial = p.new_empty(0 if spatial is None else p.shape[1] * p.shape[3] * p.shape[4], dtype=state)
    grad_learned = p.new_empty(0, dtype=state) if learned is None else learned.new_empty(learned.shape)
    return maps_like(p), sums, grad_spatial, grad_learned


def _affine_shapes(z, totals, mean, var, weight, bias, eps, repeats):
    channels, state = z.shape[2], state_dtype(z)
    norm = z.new_empty((4, channels), dtype=torch.float64)
    centre, unbiased = (z.new_empty(channels, dtype=state) for _ in range(2))
    return z.new_empty((2, 1, 1, channels), dtype=state), norm, centre, unbiased


def _norm_sums_shapes(sums, norm, affine):
    channels = sums.shape[3]
    return sums.new_empty((2, channels)), affine.new_empty(channels), affine.new_empty(channels)


def _framed(kernel, height: int, width: int) -> int:
    more = kernel.shape[2] - 1
    return (height + more) * (width + more) + more


def _space_shapes(descriptors, kernel, height, width):
    samples = descriptors.shape[1]
    space = descriptors.new_empty((samples, height, width))
    return space, descriptors.new_empty((samples, 2, _framed(kernel, height, width)))


def _space_backward_shapes(grad, space, padded, kernel, averaged):
    samples, pixels = space.shape[0], space.shape[1] * space.shape[2]
    total, by_kernel = (
        space.new_empty(shape, dtype=torch.float64) for shape in ((samples,), (samples, *kernel.shape[1:]))
    )
    return space.new_empty((3, samples, pixels)), total, by_kernel


def _gates_shapes(moments, peak, affine, time, channel):
    steps, samples, channels = peak.shape
    results = [peak.new_empty((2, steps if time else 1, samples, channels))]
    for weights, size in ((time, steps), (channel, channels)):
        n, width = (samples, weights[0].shape[0]) if weights else (0, 0)
        place = peak.new_empty((n, size), dtype=torch.int32)
        gate, inputs, hidden = (peak.new_empty(shape) for shape in ((n, size), (2, n, size), (2, n, width)))
        results += [gate, inputs, place, hidden]
    return tuple(results)


def _gates_backward_shapes(sums, norm, moments, peak, time, channel, pixels):
    results = [peak.new_empty((2, *peak.shape)), sums.new_empty(sums.shape)]
    for kept, size in ((time, peak.shape[0]), (channel, peak.shape[2])):
        width = kept[0].shape[0] if kept else 0
        results += [peak.new_empty((width, size)), peak.new_empty((size, width))]
    return tuple(results)


_SHAPES = {
    "seam_statistics": _statistics_shapes,
    "seam_squeeze": _squeeze_shapes,
    "seam_project": lambda p, weight, centre: p.new_empty(p.shape[:3], dtype=torch.float64),
    "seam_gradient": lambda up, z, *_: maps_like(z),
    "seam_totals": lambda moments, pixels: moments.new_empty(1 + 2 * moments.shape[3]),
    "seam_affine": _affine_shapes,
    "seam_norm_sums": _norm_sums_shapes,
    "seam_batch_gradient": lambda sums, totals, norm, affine: affine.new_empty((3, sums.shape[1])),
    "seam_space": _space_shapes,
    "seam_space_backward": _space_backward_shapes,
    "seam_space_sums": lambda sums, *_: sums.new_empty(sums.shape),
    "seam_gates": _gates_shapes,
    "seam_gates_backward": _gates_backward_shapes,
}


def _register() -> None:
    shapes = dict(_SHAPES)
    for neuron in compiled().neurons:
        shapes |= {f"{neuron}_seam_forward": _forward_shapes, f"{neuron}_seam_backward": _backward_shapes}
    for name, shape in shapes.items():
        # No gradient: they are called inside of the autograd function, and one more layer of Python takes
        # longer than some of them do.
        torch.library.register_fake(f"attsnn::{name}", shape)
        torch.library.register_vmap(f"attsnn::{name}", refuse(VMAPPED.format("seam")))


if compiled() is not None:
    _register()
