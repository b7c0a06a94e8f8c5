"""`pfa`: projected full attention as one differentiable op, on the kernels of csrc or the reference.

The two functional dispatcher ops, `attsnn::pfa_forward` and `attsnn::pfa_backward`, run several kernels
each. csrc/README.md derives what they compute.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attsnn import reference
from attsnn._extension import Backend, compiled, use_fused
from attsnn.reference import FUSIONS, SCALES, PFAOutput, PFAScores, state_dtype

from . import tally
from .neuron import as_read, check, like
from .registration import (
    refuse_batched,
    refuse_beyond,
    refuse_recorded,
    refuse_tracing,
    register_gradient,
    telling_of_memory,
)
from .seam_shapes import maps_like

RANKS = range(1, 65)
Affine = tuple[Tensor, Tensor]  # weight and bias


@telling_of_memory
def pfa(
    x: Tensor,
    spatial: Affine,
    temporal: Affine,
    channel: Affine,
    *,
    scale: str = "mean",
    fusion: str = "multiply",
    backend: Backend = "auto",
) -> PFAOutput:
    """Weighs every value of x with an attention map of rank R that is computed from x.

    The map A is a product of three factors (conv and W are `spatial`, `temporal` and `channel`)::

        S[n, r, h, w] = sigmoid(conv(mean_c x))
        Tm[n, t, r] = sigmoid(W_T mean_hw x)
        Cm[n, c, r] = sigmoid(W_C mean_hw x)
        A[t, n, c, h, w] = scale sum_r S[n, r, h, w] Tm[n, t, r] Cm[n, c, r]

    The result is y = relu(A x), relu(A + x) or x + A x.

    Args:
        x: [T, N, C, H, W], float64, float32, bfloat16 or float16. Every sample x[t, n] is contiguous or
            channels-last, which the result keeps. A step that is expanded T times (stride 0) is read once.
        spatial: weight [R, T, k, k] and bias [R] of the convolution of the means over C; k is 1 or 3, R from
            1 to 64.
        temporal: weight [R, C] and bias [R] of the linear map of the means over (H, W), applied at every
            step.
        channel: weight [R, T] and bias [R] of the linear map of the same means, applied at every channel.
        scale: "mean" divides the sum over r by R; "sum" does not. With fresh weights A is about 1/8, or R/8.
        fusion: "multiply": relu(A x); "add": relu(A + x); "residual": x + A x.
        backend: "fused" (raises where there is no kernel), "reference", or "auto".

    Returns:
        A `PFAOutput` (out, scores). `out` has x's shape, type and layout. `scores` are S, Tm and Cm, without
        gradient, in float32 (float64 for float64).

    Raises:
        TypeError, ValueError: for input that does not fit; the message names the argument.
        RuntimeError: for backend "fused" without kernels.
        NotImplementedError: under `torch.jit.trace`. The kernels also raise it under `torch.func`,
            forward-mode AD and double backward.

    Source: Deng et al., 2024 (arXiv 2310.14576). The released code multiplies with the mean on event data,
    adds the sum on Fashion-MNIST, and multiplies with the sum in front of the VAE.
    """
    refuse_tracing("pfa")
    _check(x, spatial, temporal, channel, scale, fusion)
    if not use_fused(backend, x.device.type):
        found = reference.pfa(x, spatial, temporal, channel, scale=scale, fusion=fusion)
        tally.scored("PFA", found.scores)
        return found
    if not (_lies(x, last=False) or _lies(x, last=True)):
        raise ValueError(
            f"x must be contiguous or channels-last in every sample x[t, n], got strides {x.stride()}: call "
            f"x.contiguous() first"
        )
    refuse_beyond("pfa", x, *spatial, *temporal, *channel)
    state, rank = state_dtype(x), spatial[0].shape[0]
    weights = [as_read(p, state) for p in (*spatial, *temporal, *channel)]
    wanted = torch.compiler.is_exporting() or any(p.requires_grad for p in (x, *weights))
    keep = torch.is_grad_enabled() and wanted
    factor = 1 / rank if scale == "mean" else 1.0
    out, *scores, _ = torch.ops.attsnn.pfa_forward(x, *weights, factor, FUSIONS.index(fusion), keep)
    found = PFAOutput(out, PFAScores(*scores))
    tally.scored("PFA", found.scores)
    return found


def check_rules(scale: str, fusion: str) -> None:
    """Raises for an unknown scale or fusion."""
    for name, given, known in (("scale", scale, SCALES), ("fusion", fusion, FUSIONS)):
        if given not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {given!r}")


def _check(x: Tensor, spatial: Affine, temporal: Affine, channel: Affine, scale: str, fusion: str) -> None:
    check(x, None)
    check_rules(scale, fusion)
    if x.dim() != 5:
        raise ValueError(f"x must be maps [T, N, C, H, W], got shape {tuple(x.shape)}")
    if 0 in x.shape[2:]:
        raise ValueError(f"x must have channels and pixels, got shape {tuple(x.shape)}")
    pairs = {"spatial": spatial, "temporal": temporal, "channel": channel}
    for name, pair in pairs.items():
        if not (isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(p, Tensor) for p in pair)):
            raise TypeError(f"{name} must be a pair of tensors, weight and bias, got {type(pair).__name__}")
        for p in pair:
            if not p.is_floating_point():
                raise TypeError(f"{name} must be floating-point tensors, got {p.dtype}")
            if p.device != x.device:
                raise ValueError(f"{name} must be on x's device {x.device}, got {p.device}")
    weight = spatial[0]
    if weight.dim() != 4 or weight.shape[0] not in RANKS or tuple(weight.shape[2:]) not in ((1, 1), (3, 3)):
        raise ValueError(
            f"spatial: its weight must be [R, T, k, k] with R from 1 to {RANKS[-1]} and k 1 or 3, "
            f"got shape {tuple(weight.shape)}"
        )
    rank, steps = weight.shape[:2]
    if x.shape[0] != steps:
        raise ValueError(f"PFA was made for {steps} steps, got x with {x.shape[0]}")
    wanted = {"spatial": weight.shape, "temporal": (rank, x.shape[2]), "channel": (rank, steps)}
    for name, (w, b) in pairs.items():
        if w.shape != wanted[name] or b.shape != (rank,):
            raise ValueError(
                f"{name} must be a weight {tuple(wanted[name])} and a bias ({rank},) for x {tuple(x.shape)}, "
                f"got {tuple(w.shape)} and {tuple(b.shape)}"
            )


# ---- the dispatcher ops
# ------------------------------------------------------------------------------------------


def _lies(x: Tensor, *, last: bool) -> bool:
    """Whether every sample of x [T, N, C, H, W] is channels-last, or contiguous."""
    channels, height, width = x.shape[2:]
    strides = (1, width * channels, channels) if last else (height * width, width, 1)
    return all(n == 1 or a == b for n, a, b in zip(x.shape[2:], x.stride()[2:], strides, strict=True))


def _forward_shapes(
    x: Tensor,
    spatial: Tensor,
    spatial_bias: Tensor,
    temporal: Tensor,
    temporal_bias: Tensor,
    channel: Tensor,
    channel_bias: Tensor,
    scale: float,
    fusion: int,
    keep: bool,
) -> tuple[Tensor, ...]:
    (steps, samples, channels, height, width), state = x.shape, state_dtype(x)
    rank, pixels, last = spatial.shape[0], height * width, not _lies(x, last=False)
    kept = samples * steps * (channels + pixels) * state.itemsize if keep else 0
    if keep and FUSIONS[fusion] == "add":  # a bit a value, eight rows to a byte, as in csrc/core/pfa.h
        rows, columns = (pixels, channels) if last or pixels == 1 else (channels, pixels)
        kept += samples * ((steps * rows + 7) // 8) * columns
    sizes = (samples, rank, height, width), (samples, steps, rank), (samples, channels, rank)
    factors = [x.new_empty(size, dtype=state) for size in sizes]
    return maps_like(x, last=last), *factors, x.new_empty(kept, dtype=torch.uint8)


def _backward_shapes(
    grad_y: Tensor,
    x: Tensor | None,
    spatial: Tensor,
    temporal: Tensor,
    channel: Tensor,
    s: Tensor,
    tm: Tensor,
    cm: Tensor,
    kept: Tensor,
    scale: float,
    fusion: int,
    wants_x: bool,
) -> list[Tensor]:
    grad_x = maps_like(grad_y) if wants_x else grad_y.new_empty(0)
    weights = (spatial, temporal, channel)
    return [grad_x, *(w.new_empty(size) for w in weights for size in (w.shape, w.shape[:1]))]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Sequence[Tensor]) -> None:
    x, spatial, _, temporal, _, channel, _, ctx.scale, ctx.fusion, ctx.keep = inputs
    y, *small = output
    ctx.strides = y.stride()[1:]
    ctx.save_for_backward(None if FUSIONS[ctx.fusion] == "add" else x, spatial, temporal, channel, *small)
    ctx.mark_non_differentiable(*small)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_y: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad_y is None:
        return (None,) * 10
    refuse_batched("pfa", grad_y)
    refuse_recorded("pfa", "all" if ctx.keep else "nothing")
    op = torch.ops.attsnn.pfa_backward
    grad_y = like(grad_y, ctx.strides)
    wants_x, *wants = ctx.needs_input_grad[:7]
    grad_x, *grads = op(grad_y, *ctx.saved_tensors, ctx.scale, ctx.fusion, wants_x)
    grads = [grad if want else None for grad, want in zip(grads, wants, strict=True)]
    return grad_x if wants_x else None, *grads, None, None, None


if compiled() is not None:
    register_gradient(
        "pfa_forward",
        "pfa_backward",
        shapes=(_forward_shapes, _backward_shapes),
        setup_context=_setup_context,
        gradient=_backward,
        name="pfa",
    )
