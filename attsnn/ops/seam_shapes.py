"""The seams' dispatcher ops: memory layout of their maps, shape rules, and errors for misuse.

The rules are those of csrc/tensor/seam_op.h.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from attsnn._extension import compiled
from attsnn.reference import Gates, Norm, state_dtype

from .neuron import CHECKPOINT_ABOVE, CHECKPOINT_EVERY, check_state
from .registration import register_shape

TIME, CHANNEL, SPACE = 1, 2, 4
BY_PLANE = TIME | CHANNEL  # the gates that look at planes
AFFINE, NORM, CENTRE = 0, 1, 2  # the first parts of `small`; after the centre, the unbiased variance


class SeamRules(NamedTuple):
    """The part of `rules` that follows the neuron's own."""

    gates: int  # those in use: TIME + CHANNEL + SPACE
    rounded: bool  # x is rounded to z's type before the neuron reads it
    membrane: bool  # x is a result
    normed: bool
    repeats: int  # of `Norm`
    alone: bool  # the neuron returns x of its one step unchanged, and so its gradient
    given: bool  # v0 is given
    final_state: bool  # v is a result
    counted: bool  # what is emitted is counted


def rules_of(rules: Sequence[int]) -> SeamRules:
    """The seam's rules, which stand at the end of `rules`."""
    return SeamRules._make(rules[-len(SeamRules._fields) :])


def gates_in(small: Sequence[Tensor], gates: int) -> tuple[Sequence[Tensor], ...]:
    """The parts of `small` that belong to TA, CA and SA.

    TA and CA have the gate [N, D], its descriptors, the places of their maxima, and the hidden values. SA
    has its map [N, H, W], its descriptors in a frame of zeros, and the places of their maxima.
    """
    channel = 8 if gates & TIME else 4
    space = channel + 4 if gates & CHANNEL else channel
    return small[4:channel], small[channel:space], small[space : space + 3] if gates & SPACE else small[:0]


def check_seam(
    z: Tensor,
    norm: Norm | None,
    pool: int,
    gates: Gates | None,
    shortcut: Tensor | None,
    v0: Tensor | None,
) -> None:
    """Raises for arguments that do not fit; the neuron's are checked elsewhere."""
    if z.dim() not in (3, 4, 5):
        raise ValueError(f"z must be [T, N, C, H, W], [T, N, C, L] or [T, N, F], got shape {tuple(z.shape)}")
    steps, _, channels = z.shape[:3]
    sides = z.shape[3:]
    if isinstance(pool, bool) or not isinstance(pool, int) or pool < 1 or (pool > 1 and len(sides) < 2):
        raise ValueError(f"pool must be a side >= 1, and 1 for z [T, N, C, L] and [T, N, F], got {pool!r}")
    if sides and pool > min(sides):
        raise ValueError(f"pool must fit the maps of z {tuple(z.shape)}, got {pool}")
    for name, value, kind in (("norm", norm, Norm), ("gates", gates, Gates), ("shortcut", shortcut, Tensor)):
        if not isinstance(value, kind | None):
            raise TypeError(f"{name} must be {kind.__name__} or None, got {type(value).__name__}")
    if norm is not None:
        _check_norm(norm, z)
    if gates is not None:
        for name, size, of in (("temporal", steps, "T"), ("channel", channels, "C")):
            pair = getattr(gates, name)
            if pair is not None and (pair[0].shape[1:] != (size,) or pair[1].shape != pair[0].shape[::-1]):
                got = ", ".join(str(tuple(w.shape)) for w in pair)
                raise ValueError(
                    f"gates.{name} must be [{of}/r, {of}] and [{of}, {of}/r], {of} = {size}, got {got}"
                )
            for weight in pair or ():
                _check_device(f"gates.{name}", weight, z)
        kernel = gates.spatial
        if kernel is not None:
            _check_device("gates.spatial", kernel, z)
        if kernel is not None and (kernel.shape != (1, 2, *kernel.shape[2:3] * 2) or not kernel.shape[2] % 2):
            raise ValueError(f"gates.spatial must be [1, 2, k, k] with an odd k, got {tuple(kernel.shape)}")
        if not sides and (gates.channel is not None or gates.spatial is not None):
            raise ValueError("gates: z [T, N, F] has a temporal gate only")
        if len(sides) == 1 and kernel is not None:
            raise ValueError("gates: z [T, N, C, L] has no spatial gate, which weighs the pixels of maps")
    want = z.shape if pool == 1 else (*z.shape[:3], *(side // pool for side in sides))
    if v0 is not None:
        check_state(v0, z, want[1:])
    if shortcut is not None:
        if shortcut.shape != want or shortcut.dtype != z.dtype:
            raise ValueError(
                f"shortcut must be {z.dtype} {tuple(want)}, got {shortcut.dtype} {tuple(shortcut.shape)}"
            )
        _check_device("shortcut", shortcut, z)


def _check_device(name: str, tensor: Tensor, z: Tensor) -> None:
    if tensor.device != z.device:
        raise ValueError(f"{name} must be on z's device {z.device}, got {tensor.device}")


def _check_norm(norm: Norm, z: Tensor) -> None:
    channels = z.shape[2]
    for name, value in zip(Norm._fields, norm, strict=True):
        if not isinstance(value, Tensor):
            continue
        if value.shape != (channels,):
            raise ValueError(f"norm.{name} must be [C] = [{channels}], got shape {tuple(value.shape)}")
        _check_device(f"norm.{name}", value, z)
    if (norm.mean is None) != (norm.var is None):
        raise ValueError("norm: give mean and var both, or neither for the batch's statistics")
    if not isinstance(norm.repeats, int) or norm.repeats < 1:
        raise ValueError(f"norm.repeats must be an integer >= 1, got {norm.repeats!r}")
    if norm.mean is None and norm.group is None and z.numel() // max(1, channels) < 2:
        raise ValueError(f"norm: batch statistics need more than one value a channel, got z {tuple(z.shape)}")


def maps_like(z: Tensor, sides: Iterable[int] | None = None, last: bool | None = None) -> Tensor:
    """An empty tensor in the layout that the kernels use: dense, with pixels or channels innermost.

    Sides and layout are those of z unless they are given. Maps of one pixel have channels innermost.
    """
    steps, samples, channels, *own = z.shape
    height, width = own if sides is None else sides
    pixels = height * width
    last = pixels == 1 or (channels_last(z) if last is None else last)
    c, w = (1, channels) if last else (pixels, 1)
    strides = (samples * channels * pixels, channels * pixels, c, width * w, w)
    return z.new_empty_strided((steps, samples, channels, height, width), strides)


def _lies(z: Tensor, c: int, h: int, w: int) -> bool:
    strides = (z.shape[2] * z.shape[3] * z.shape[4], c, h, w)
    return all(n == 1 or a == b for n, a, b in zip(z.shape[1:], z.stride()[1:], strides, strict=True))


def channels_last(z: Tensor) -> bool:
    """Whether one step of [T, N, C, H, W] is channels-last, or has one pixel."""
    height, width = z.shape[3:]
    return height * width == 1 or not _lies(z, height * width, width, 1)


def laid_out(z: Tensor) -> bool:
    """Whether one step of [T, N, C, H, W] is contiguous or channels-last."""
    channels, height, width = z.shape[2:]
    # The first check is cheap and covers the usual case, and empty tensors with any strides.
    planes = z.is_contiguous() or _lies(z, height * width, width, 1)
    return planes or _lies(z, 1, width * channels, channels)


def _statistics_shapes(
    z: Tensor, gamma: Tensor | None, pool: int, extrema: bool, totals: bool
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    pooled = [maps_like(z, (side // pool for side in z.shape[3:]))] if pool > 1 else []
    planes: list[Tensor] = []
    if extrema:
        planes = [
            z.new_empty((3, *z.shape[:3]), dtype=torch.float64),
            z.new_empty(z.shape[:3], dtype=state_dtype(z)),
            z.new_empty(z.shape[:3], dtype=torch.int32),
        ]
    return pooled, planes, [z.new_empty(1 + 2 * z.shape[2], dtype=torch.float64)] if totals else []


def _state_like(p: Tensor) -> Tensor:
    """An empty state [N, C, H, W] in the layout of one step of the maps."""
    maps = maps_like(p)
    return p.new_empty_strided(maps.shape[1:], maps.stride()[1:], dtype=state_dtype(p))


def _forward_shapes(
    p: Tensor,
    shortcut: Tensor | None,
    v0: Tensor | None,
    planes: Sequence[Tensor],
    statistics: Sequence[Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    weights: Sequence[Tensor],
    learned: Tensor | None,
    numbers: Sequence[float],
    rules: Sequence[int],
    keep: str,
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    (steps, samples, channels, height, width), state = p.shape, state_dtype(p)
    gates, _, membrane, *_, final_state, counted = rules_of(rules)
    by_sample = samples if gates & BY_PLANE else 1

    def real(*shape: int, dtype: torch.dtype = state) -> Tensor:
        return p.new_empty(shape, dtype=dtype)

    small = [real(2, steps if gates & TIME else 1, by_sample, channels)]
    small += [real(4, channels, dtype=torch.float64), real(channels), real(channels)]
    reduce = iter(weights[::2])
    for which, size in ((TIME, steps), (CHANNEL, channels)):
        if gates & which:
            places = real(samples, size, dtype=torch.int32)
            hidden = real(2, samples, next(reduce).shape[0])
            small += [real(samples, size), real(2, samples, size), places, hidden]
    if gates & SPACE:
        more = weights[-1].shape[2] - 1
        framed = (height + more) * (width + more) + more
        places = real(samples, height * width, dtype=torch.int32)
        small += [real(samples, height, width), real(samples, 2, framed), places]
    neurons = math.prod(p.shape[1:])  # `Size.numel()` would turn a dynamic size into a constant
    if keep == "bits":
        small.append(real(steps, (neurons + 3) // 4, dtype=torch.uint8))
    elif keep == "input" and steps > CHECKPOINT_ABOVE:
        small.append(real((steps - 1) // CHECKPOINT_EVERY, neurons))
    states = [_state_like(p)] if final_state else []
    states += [real(steps + channels, dtype=torch.int64)] if counted else []
    return maps_like(p), [maps_like(p)] if membrane else [], states, small


def _backward_shapes(
    grad_out: Tensor,
    grad_membrane: Tensor | None,
    p: Tensor,
    membrane: Tensor | None,
    planes: Sequence[Tensor],
    weights: Sequence[Tensor],
    small: Sequence[Tensor],
    states: Sequence[Tensor],
    learned: Tensor | None,
    numbers: Sequence[float],
    rules: Sequence[int],
    keep: str,
) -> tuple[list[Tensor], ...]:
    gates, _, _, normed, _, alone, given, *_ = rules_of(rules)
    state, channels = state_dtype(p), p.shape[2]
    of_norm = []
    if normed:
        of_norm = [p.new_empty((2, channels), dtype=torch.float64)]
        of_norm += [p.new_empty(channels, dtype=state) for _ in range(2)]
    of_planes = [p.new_empty((2, *p.shape[:3]), dtype=state)] if gates & BY_PLANE else []
    of_pixels = [p.new_empty((3, p.shape[1], p.shape[3] * p.shape[4]), dtype=state)] if gates & SPACE else []
    of_weights = [w.new_empty(w.shape) for w in weights]
    of_learned = [] if learned is None else [learned.new_empty(learned.shape)]
    of_state = [_state_like(p)] if given else []
    up = [] if alone else [maps_like(p)]
    return up, of_norm, of_weights, of_planes, of_pixels, of_state, of_learned


def _register() -> None:
    shapes: dict[str, Callable[..., object]] = {
        "seam_statistics": _statistics_shapes,
        "seam_gradient": lambda up, z, *_: maps_like(z),
    }
    shapes["seam_gradient_"] = lambda *_: None
    for neuron in compiled().neurons:
        shapes |= {f"{neuron}_seam_forward": _forward_shapes, f"{neuron}_seam_backward": _backward_shapes}
    for name, shape in shapes.items():
        # No gradient is registered: these ops are called inside the autograd function, and one more layer of
        # Python takes longer than some of them do.
        register_shape(name, shape, "seam")


if compiled() is not None:
    _register()
