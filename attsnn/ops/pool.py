"""`average_pool`: of maps that no seam pools, the shortcuts of residual networks; a kernel on the CPU."""

import torch
from torch import Tensor

from attsnn import reference
from attsnn._extension import Backend, compiled, use_fused

from .neuron import TWICE, VMAPPED, like, refuse
from .seam_shapes import channels_last, laid_out, maps_like


def average_pool(x: Tensor, pool: int, *, backend: Backend = "auto") -> Tensor:
    """Means of windows of pool x pool values, side by side: [T, N, C, H, W] -> [T, N, C, H/pool, W/pool].

    Rows and columns past the last whole window are left out, as in `torch.nn.AvgPool2d(pool)`, which this is,
    step by step. There is a kernel on the CPU, where PyTorch's walks value by value; on CUDA it is PyTorch's.

    Raises ValueError where x has no such shape or a window does not fit.
    """
    if x.dim() != 5 or not 1 <= pool <= min(x.shape[3:]):
        raise ValueError(f"x must be [T, N, C, H, W] with sides of at least {pool}, got {tuple(x.shape)}")
    if pool == 1:
        return x
    if not use_fused(backend, x.device.type) or x.device.type == "cuda":
        return reference.average_pool(x, pool)
    return torch.ops.attsnn.average_pool(x if laid_out(x) else x.contiguous(), pool)


def _setup_context(ctx, inputs, output) -> None:
    x, ctx.pool = inputs
    ctx.of_x = (*x.shape[3:], channels_last(x))
    ctx.strides = output.stride()[1:]


def _backward(ctx, grad):
    op = torch.ops.attsnn.average_pool_backward
    return op(like(grad, ctx.strides), ctx.pool, *ctx.of_x), None


def _backward_shape(grad, pool, height, width, last):
    return maps_like(grad, (height, width), last)


def _register() -> None:
    forward, backward = "attsnn::average_pool", "attsnn::average_pool_backward"
    torch.library.register_fake(forward, lambda x, pool: maps_like(x, (n // pool for n in x.shape[3:])))
    torch.library.register_fake(backward, _backward_shape)
    torch.library.register_autograd(forward, _backward, setup_context=_setup_context)
    torch.library.register_autograd(backward, refuse(TWICE.format("average_pool")))
    for op in (forward, backward):
        torch.library.register_vmap(op, refuse(VMAPPED.format("average_pool")))


if compiled() is not None:
    _register()
