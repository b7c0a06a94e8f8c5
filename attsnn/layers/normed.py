"""Layers without neurons: time folded into the batch, norms as the seams compute them, pools."""

from collections.abc import Callable, Container
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules import conv
from torch.nn.modules.batchnorm import _BatchNorm

from attsnn import ops
from attsnn._extension import Backend
from attsnn.attention import as_made
from attsnn.ops import tally
from attsnn.ops.registration import NotScripted


def over_time(layer: nn.Module, x: Tensor) -> Tensor:
    """Applies a layer that knows no time to every step of x [T, N, ...].

    The layer is called once, on [T N, ...]. The result is [T, N, ...].
    """
    y: Tensor = layer(x.flatten(0, 1))
    return y.view(*x.shape[:2], *y.shape[1:])  # `unflatten` takes twice the Python


# What a layer takes: the number of dimensions, and the shape in words.
SHAPES: dict[type[nn.Module], tuple[Container[int], str]] = {
    nn.Conv2d: ((5,), "[T, N, C, H, W]"),
    nn.Conv1d: ((4,), "[T, N, C, L]"),
    nn.Linear: ((3, 4), "[T, N, F] or tokens [T, N, L, F]"),
}


def check_input(current: nn.Module | None, x: Tensor) -> None:
    """Raises, in clear words, for input that a convolution or linear layer would reject."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor with time first, [T, N, ...], got {type(x).__name__}")
    kind = next((kind for kind in SHAPES if isinstance(current, kind)), None)
    dims, want = (range(3, 6), "[T, N, ...]") if kind is None else SHAPES[kind]
    if x.dim() not in dims:
        raise ValueError(
            f"x must be {want}, steps before samples, got shape {tuple(x.shape)}: x[None] adds the steps, "
            "x[:, None] the samples"
        )
    if current is None or kind is None:
        return
    weight = current._parameters.get("weight")
    if weight is None or weight.dtype == x.dtype:  # None if it is computed
        return
    asked = f"x must be {weight.dtype}, as the layer's weights are, got {x.dtype}"
    if not x.is_floating_point():
        raise TypeError(f"{asked}: x.float()")
    device = x.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        raise TypeError(f"{asked}: convert either")


def ends_in_linear(layer: nn.Module | None) -> bool:
    """Whether the last convolution or linear layer inside is linear, and so returns features or tokens."""
    inside = () if layer is None else layer.modules()
    kinds = [part for part in inside if isinstance(part, nn.Linear | conv._ConvNd)]
    return bool(kinds) and isinstance(kinds[-1], nn.Linear)


MaybeT = TypeVar("MaybeT", Tensor, Tensor | None)


def transposed(tensor: MaybeT) -> MaybeT:
    """Views tokens [..., L, C] as a channels-last sequence [..., C, L], and back."""
    return None if tensor is None else tensor.transpose(-1, -2)


NORMS = nn.BatchNorm1d, nn.SyncBatchNorm  # a seam may replace their forward, which BatchNorm2d shares


class AveragePool(NotScripted, nn.Module):
    """`nn.AvgPool2d(pool)` at every step: [T, N, C, H, W] -> [T, N, C, H/pool, W/pool].

    The arguments are those of `attsnn.ops.average_pool`.
    """

    def __init__(self, pool: int, *, backend: Backend = "auto"):
        super().__init__()
        self.pool, self.backend = pool, backend

    def forward(self, x: Tensor) -> Tensor:
        """Pools x [T, N, C, H, W]."""
        return ops.average_pool(x, self.pool, backend=self.backend)

    def extra_repr(self) -> str:
        """For `repr`: the side of the pool."""
        return str(self.pool)


class NormedLayer(NotScripted, nn.Module):
    """A convolution or linear layer and its batch norm, without a neuron: [T, N, ...] -> [T, N, ...].

    The norm is that of the seams: over (T, N, H, W), and over all processes if it is synchronised.

    Args:
        current: the convolution or linear layer.
        norm: its batch norm, or None.
        membrane_dtype: the least type of norm and result; None: the type of `current`.
        backend: "fused", "reference" or "auto".
        tokens: as in `SpikingLayer`.
    """

    def __init__(
        self,
        current: nn.Module,
        norm: _BatchNorm | None,
        *,
        membrane_dtype: torch.dtype | None = None,
        backend: Backend = "auto",
        tokens: bool | None = None,
    ):
        super().__init__()
        check_norm(norm)
        self.current, self.norm, self.membrane_dtype, self.backend = current, norm, membrane_dtype, backend
        self.tokens = ends_in_linear(current) if tokens is None else tokens

    def forward(self, x: Tensor, repeats: int = 1) -> Tensor:
        """Applies layer and norm to x [T, N, ...].

        `repeats` is the number of equal inputs that x stands for: T if a static image is given once. They
        count in the running variance.
        """
        check_input(self.current, x)
        z = widened(over_time(self.current, x), self.membrane_dtype)
        if z.dim() == 4 and self.tokens:
            return transposed(normed(transposed(z), self.norm, self.backend, repeats=repeats))
        return normed(z, self.norm, self.backend, repeats=repeats)


class Rate(nn.Module):
    """Read-out: the mean over T, [T, N, K] -> [N, K]. For spikes it is the firing rate per step."""

    def forward(self, x: Tensor) -> Tensor:
        """The mean of x over T."""
        return x.mean(0)


# ---- norms
# ------------------------------------------------------------------------------------------


def check_norm(norm: _BatchNorm | None) -> None:
    if not isinstance(norm, _BatchNorm | None):
        raise TypeError(f"norm must be a batch norm of torch.nn, or None, got {type(norm).__name__}")


def widened(z: Tensor, dtype: torch.dtype | None) -> Tensor:
    return z if dtype is None else z.to(torch.promote_types(z.dtype, dtype))


def normed(
    z: Tensor,
    norm: _BatchNorm | None,
    backend: Backend,
    *,
    pool: int = 1,
    repeats: int = 1,
    scale: float = 1.0,
    given: bool = False,
) -> Tensor:
    """Norm and pool alone.

    They run as a seam of one step, T folded into N, which emits its neuron's first charge: that is what the
    neuron reads. `given`: use the running statistics in training too.
    """
    if norm is not None and not as_made(norm, *NORMS):
        z, norm = called(z, norm, repeats, scale, given), None
    if norm is None and pool == 1:
        return z
    asked = None if norm is None else norm_of(norm, scale, given)._replace(repeats=repeats)
    how: dict[str, Any] = {"emit": "membrane", "final_state": False, "backend": backend}
    with tally.pausing() if tally.asked() else nullcontext():
        result = ops.seam(z.flatten(0, 1)[None], norm=asked, pool=pool, **how)
    update(norm, result, z, backend, repeats)
    return torch.unflatten(result.out.squeeze(0), 0, z.shape[:2])


def called(z: Tensor, norm: _BatchNorm, repeats: int, scale: float, given: bool) -> Tensor:
    """Calls a norm that is not as PyTorch made it."""
    what = f"{type(norm).__name__} has hooks or a forward of its own, so that it is called, and"
    if given and norm.training:
        raise ValueError(f"{what} takes the batch's statistics in training; step() wants the running ones")
    if getattr(norm, "over_processes", False) and dist.is_initialized() and norm.training:
        raise ValueError(f"{what} knows its own process alone: its statistics cannot be those of all")
    if scale != 1 and not any(type(norm).forward is kind.forward for kind in NORMS):
        raise ValueError(f"{what} norm_scale has no weight to multiply: let its forward do so")
    normed = over_time(norm, z if repeats == 1 else z.expand(repeats, *z.shape[1:]))
    if scale == 1:
        return normed
    bias = 0.0 if norm.bias is None else norm.bias.view(-1, *[1] * (normed.dim() - 3))
    return (normed - bias) * scale + bias


def norm_of(norm: _BatchNorm, scale: float = 1.0, given: bool = False) -> ops.Norm:
    given = (given or not norm.training) and norm.running_mean is not None
    mean, var = (norm.running_mean, norm.running_var) if given else (None, None)
    group = group_of(norm) if norm.training and not given else None
    return ops.Norm(weight_of(norm, scale), norm.bias, mean, var, norm.eps, group)


def weight_of(norm: _BatchNorm, scale: float) -> Tensor | None:
    """What a norm multiplies by: its weight times `scale`. Without a weight: `scale`, or None for 1."""
    if scale == 1:
        return norm.weight
    if norm.weight is not None:
        return norm.weight * scale
    if norm.running_mean is None:
        raise ValueError("norm_scale has no weight to multiply: give the norm weights, or running statistics")
    return torch.full_like(norm.running_mean, scale)


def group_of(norm: _BatchNorm) -> "dist.ProcessGroup | None":
    """The processes that share the norm's statistics; None if this process has its own."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    if not (isinstance(norm, nn.SyncBatchNorm) or getattr(norm, "over_processes", False)):
        return None
    group = getattr(norm, "process_group", None) or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def update(
    norm: _BatchNorm | None, found: ops.SeamOutput, z: Tensor, backend: Backend, repeats: int = 1
) -> None:
    """Updates the running statistics as PyTorch's batch norm does, if `found` has statistics of the batch."""
    mean, var = found.batch_mean, found.batch_var
    if mean is None or var is None or norm is None or not norm.training:
        return
    if norm.running_mean is None or not norm.track_running_stats:
        return
    if norm in settling:
        settling[norm](mean, var, repeats * z.numel() // z.shape[2])
        return
    running: tuple[Any, Any, Any] = norm.running_mean, norm.running_var, norm.num_batches_tracked
    ops.update_running(*running, mean, var, norm.momentum, backend=backend)


# In `settle`, a norm's statistics go here instead: mean, unbiased variance, number of values.
settling: dict[_BatchNorm, Callable[[Tensor, Tensor, int], None]] = {}
