"""`average_pool`: an average pool outside a seam, with a kernel on the CPU.

The shortcuts of residual networks use it.
"""

from typing import Any

import torch
from torch import Tensor

from attsnn import reference
from attsnn._extension import Backend, compiled, use_fused

from .neuron import like
from .registration import beyond, register_gradient
from .seam_shapes import channels_last, laid_out, maps_like


def average_pool(x: Tensor, pool: int, *, backend: Backend = "auto") -> Tensor:
    """Average-pools the maps of every step: [T, N, C, H, W] -> [T, N, C, H/pool, W/pool].

    This is `torch.nn.AvgPool2d(pool)`, step by step: means of adjacent windows of pool x pool values. Rows
    and columns after the last whole window are left out.

    Args:
        x: maps [T, N, C, H, W].
        pool: side and stride of the windows; 1 returns x.
        backend: as in `lif`. The kernel is for the CPU, because PyTorch's goes value by value there. On CUDA
            PyTorch's runs.

    Raises:
        ValueError: if x has another shape, or a window does not fit.
        RuntimeError: for backend "fused" without kernels.
    """
    if x.dim() != 5 or not 1 <= pool <= min(x.shape[3:]):
        raise ValueError(f"x must be [T, N, C, H, W] with sides of at least {pool}, got {tuple(x.shape)}")
    if pool == 1:
        return x
    if not use_fused(backend, x.device.type) or x.device.type == "cuda" or beyond(x):
        return reference.average_pool(x, pool)
    pooled: Tensor = torch.ops.attsnn.average_pool(x if laid_out(x) else x.contiguous(), pool)
    return pooled


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.pool = inputs
    ctx.of_x = (*x.shape[3:], channels_last(x))
    ctx.strides = output.stride()[1:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    op = torch.ops.attsnn.average_pool_backward
    return op(like(grad, ctx.strides), ctx.pool, *ctx.of_x), None


def _backward_shape(grad: Tensor, pool: int, height: int, width: int, last: bool) -> Tensor:
    return maps_like(grad, (height, width), last)


if compiled() is not None:
    register_gradient(
        "average_pool",
        "average_pool_backward",
        shapes=(lambda x, pool: maps_like(x, (n // pool for n in x.shape[3:])), _backward_shape),
        setup_context=_setup_context,
        gradient=_backward,
        name="average_pool",
    )
