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
    """Updates the running statistics of a batch norm in place, as `nn.BatchNorm2d` does.

    Each becomes (1 - momentum) times itself plus momentum times the batch's. `batches` grows by one.

    Args:
        mean, var: the running statistics [C].
        batches: the number of batches so far, one int64.
        batch_mean, batch_var: the batch's statistics [C], of any type.
        momentum: the weight of the batch; None: the plain mean of all batches.
        backend: as in `seam`. The kernel needs a momentum, and all four statistics in float32 or all in
            float64. Everything else runs on the reference.

    Raises:
        RuntimeError: for sizes that do not fit, or backend "fused" without kernels.
        ValueError: for tensors on different devices.
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
