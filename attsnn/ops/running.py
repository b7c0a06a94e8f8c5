"""`update_running`: the running statistics of a batch norm, one op instead of three."""

import torch
from torch import Tensor

from attsnn import reference
from attsnn._extension import Backend, compiled, use_fused

from .registration import register_shape


def update_running(
    mean: Tensor,
    var: Tensor,
    batches: Tensor,
    batch_mean: Tensor,
    batch_var: Tensor,
    momentum: float | None,
    *,
    backend: Backend = "auto",
) -> None:
    """A step of `nn.BatchNorm2d`'s running statistics, in place: each becomes (1 - momentum) times itself
    plus momentum times the batch's, and `batches` one more.

    Args:
        mean, var: running statistics [C]. They follow `batch_mean` and `batch_var` [C], of any type.
        batches: how many there were, one int64.
        momentum: the batch's weight; None: all batches' plain mean.
        backend: as in `ops.seam`. The kernel is for float32 or float64, the same of all four, and for a
            momentum; everything else takes the reference.

    Raises:
        RuntimeError: for sizes that do not fit, or backend "fused" without kernels.
        ValueError: for tensors of several devices.
    """
    for name, tensor in (
        ("var", var),
        ("batches", batches),
        ("batch_mean", batch_mean),
        ("batch_var", batch_var),
    ):
        if tensor.device != mean.device:
            raise ValueError(f"{name} must be on mean's device {mean.device}, got {tensor.device}")
    same = mean.dtype == var.dtype == batch_mean.dtype == batch_var.dtype
    served = same and momentum is not None and mean.dtype in (torch.float32, torch.float64)
    if served and use_fused(backend, mean.device.type):
        torch.ops.attsnn.update_running(mean, var, batches, batch_mean, batch_var, momentum)
    else:
        reference.update_running(mean, var, batches, batch_mean, batch_var, momentum)


if compiled() is not None:
    register_shape("update_running", lambda *_: None, "update_running")
