"""A seam, what lies between two convolutions, as the published networks compose it: batch norm over
(T, N, H, W), average pool, attention gates and ReLU, shortcut, neuron; and the kernels' own form of the
same, to the bit.

z is [T, N, C, H, W], a sequence [T, N, C, L], or [T, N, F] where the layer is fully connected.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from .gates import channel_gate, spatial_gate, temporal_gate
from .neuron import lif, state_dtype


class Norm(NamedTuple):
    """A batch norm's tensors [C]. Without `mean` and `var` it takes the batch's own statistics, those of all
    processes of `group` where there is one. `repeats`: each value stands for so many equal ones, a static
    image for its T steps, which changes nothing but the unbiased variance that is handed back.
    """

    weight: Tensor | None = None
    bias: Tensor | None = None
    mean: Tensor | None = None
    var: Tensor | None = None
    eps: float = 1e-5
    group: "dist.ProcessGroup | None" = None
    repeats: int = 1


class Gates(NamedTuple):
    """The weights of the gates that are there: the two matrices of a shared MLP, the convolution."""

    temporal: tuple[Tensor, Tensor] | None = None  # [T/r, T], [T, T/r]
    channel: tuple[Tensor, Tensor] | None = None  # [C/r, C], [C, C/r]
    spatial: Tensor | None = None  # [1, 2, k, k]


class Scores(NamedTuple):
    """What the gates gave, without gradient; None where there is no such gate."""

    temporal: Tensor | None = None  # [T, N]
    channel: Tensor | None = None  # [N, C]
    spatial: Tensor | None = None  # [N, H, W]


class SeamOutput(NamedTuple):
    """out: what the neuron emits; membrane: the sum that it reads, where asked for; batch_mean, batch_var:
    the statistics [C] for the running buffers, the variance unbiased, where the norm took them; scores; v:
    the neuron's state after the last step, [N, ...], where wanted.
    """

    out: Tensor
    membrane: Tensor | None
    batch_mean: Tensor | None
    batch_var: Tensor | None
    scores: Scores
    v: Tensor | None = None


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: "dist.ProcessGroup | None") -> Tensor:
        ctx.group = group
        x = x.clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


def _batch_norm(flat: Tensor, *how: Any) -> Tensor:
    """`F.batch_norm`, whose gradients are wrong on the CPU (PyTorch 2.13) for maps of one sample that lie
    channels-last: it asks the stride of the sample, which means nothing, for the layout.
    """
    if flat.dim() == 4 and flat.shape[0] == 1:
        return F.batch_norm(flat.flatten(2), *how).view_as(flat)
    return F.batch_norm(flat, *how)


def _norm(flat: Tensor, norm: Norm) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """flat [T N, C, ...] normed, and the mean and unbiased variance of the batch where it took them."""
    state, eps, group, repeats = state_dtype(flat), *norm[4:]
    weight, bias, mean, var = (None if tensor is None else tensor.to(state) for tensor in norm[:4])
    if mean is not None:
        return _batch_norm(flat, mean, var, weight, bias, False, 0.0, eps), None, None
    if group is not None:
        return _norm_over_processes(flat, norm)
    mean, var = torch.zeros(2, flat.shape[1], dtype=state, device=flat.device)
    normed = _batch_norm(flat, mean, var, weight, bias, True, 1.0, eps)  # momentum 1: the batch's own
    if repeats > 1:
        count = flat.numel() // flat.shape[1]
        var = var * ((count - 1) * repeats / (count * repeats - 1))
    return normed, mean, var


def _norm_over_processes(flat: Tensor, norm: Norm) -> tuple[Tensor, Tensor, Tensor]:
    summed: Callable[..., Tensor] = _SumOverProcesses.apply
    wide, others = flat.double(), [d for d in range(flat.dim()) if d != 1]
    by_channel = (slice(None), *[None] * (flat.dim() - 2))
    count = torch.full((1,), flat.numel() // flat.shape[1], dtype=torch.float64, device=flat.device)
    total = summed(torch.cat([count, wide.sum(others)]), norm.group)
    count = total[:1].detach()
    mean = total[1:] / count
    centred = wide - mean[by_channel]
    var = summed(centred.square().sum(others), norm.group) / count
    normed = centred / (var[by_channel] + norm.eps).sqrt()
    if norm.weight is not None:
        normed = normed * norm.weight.double()[by_channel]
    if norm.bias is not None:
        normed = normed + norm.bias.double()[by_channel]
    count, state = count * norm.repeats, state_dtype(flat)
    unbiased = var.detach() * (count / (count - 1))
    return normed.to(flat.dtype), mean.detach().to(state), unbiased.to(state)


@torch.no_grad()
def update_running(
    mean: Tensor,
    var: Tensor,
    batches: Tensor,
    batch_mean: Tensor,
    batch_var: Tensor,
    momentum: float | None,
) -> None:
    """`attsnn.ops.update_running`."""
    batches.add_(1)
    for running, now in ((mean, batch_mean), (var, batch_var)):
        rate = (1 / batches.double()).to(running.dtype) if momentum is None else momentum
        running.lerp_(now.to(running.dtype), rate)


def average_pool(x: Tensor, pool: int) -> Tensor:
    """`attsnn.ops.average_pool`."""
    return torch.unflatten(F.avg_pool2d(x.flatten(0, 1), pool), 0, x.shape[:2])


def seam(
    z: Tensor,
    *,
    norm: Norm | None = None,
    pool: int = 1,
    gates: Gates | None = None,
    shortcut: Tensor | None = None,
    membrane: bool = False,
    v0: Tensor | None = None,
    final_state: bool = True,
    **neuron: Any,
) -> SeamOutput:
    """The plain composition; `attsnn.ops.seam` has the same arguments and documents them."""
    if z.dim() == 4:
        shortcut, v0 = (None if tensor is None else tensor.unsqueeze(-2) for tensor in (shortcut, v0))
        how: dict[str, Any] = {"norm": norm, "pool": pool, "gates": gates, "membrane": membrane}
        how |= {"shortcut": shortcut, "v0": v0, "final_state": final_state}
        return as_sequences(seam(z.unsqueeze(-2), **how, **neuron))
    x, mean, var = z, None, None
    if norm is not None:
        flat, mean, var = _norm(z.flatten(0, 1), norm)
        x = torch.unflatten(flat, 0, z.shape[:2])
    if pool > 1:
        x = average_pool(x, pool)
    gates = gates or Gates()
    scores = {}
    if gates.temporal is not None:
        gate = temporal_gate(x, *(w.to(x.dtype) for w in gates.temporal))
        x, scores["temporal"] = gate * x, gate.detach().flatten(1)
    if gates.channel is not None:
        gate = channel_gate(x, *(w.to(x.dtype) for w in gates.channel))
        x, scores["channel"] = gate * x, gate.detach()[0, :, :, 0, 0]
    if gates.spatial is not None:
        gate = spatial_gate(x, gates.spatial.to(x.dtype))
        x, scores["spatial"] = gate * x, gate.detach()[0, :, 0]
    if any(gate is not None for gate in gates):
        x = torch.relu(x)
    if shortcut is not None:
        x = x + shortcut
    out, v = lif(x, v0, final_state=final_state, **neuron)
    return SeamOutput(out, x if membrane else None, mean, var, Scores(**scores), v)


def as_sequences(found: SeamOutput) -> SeamOutput:
    """That of a sequence [T, N, C, L] from that of the same as maps of height 1."""
    membrane, v = (None if t is None else t.squeeze(-2) for t in (found.membrane, found.v))
    return found._replace(out=found.out.squeeze(-2), membrane=membrane, v=v)


def seam_apply(
    p: Tensor,
    affine: Tensor,
    spatial: Tensor | None,
    shortcut: Tensor | None,
    relu: bool,
    rounded: bool,
    **neuron: Any,
) -> tuple[Tensor, Tensor]:
    """(out, membrane) of the kernels' apply pass, from the same small tensors: affine [2, T or 1, N or 1, C],
    spatial [N, H, W] or None.
    """
    state = state_dtype(p)
    a, b = affine[..., None, None]
    x = a * p.to(state) + b
    if relu:
        x = torch.relu(x)
    if spatial is not None:
        x = spatial[None, :, None] * x
    if shortcut is not None:
        x = x + shortcut.to(state)
    x = x.to(p.dtype) if rounded else x
    out, _ = lif(x, final_state=False, **neuron)
    return out.to(p.dtype), x


def seam_gradient(
    up: Tensor,
    z: Tensor,
    p: Tensor | None,
    affine: Tensor,
    spatial: Tensor | None,
    spatial_place: Tensor | None,
    planes: Tensor | None,
    place: Tensor | None,
    channels: Tensor | None,
    pool: int,
    relu: bool,
) -> Tensor:
    """The gradient of z of the kernels' last pass, from the same small tensors (csrc/core/seam_call.h,
    GradCall): spatial [3, N, pixels], planes [2, T, N, C], channels [3, C].
    """
    state = state_dtype(z)
    p = z if p is None else p
    steps, samples, count, height, width = p.shape
    a, b = affine[..., None, None]
    grad = up.to(state)
    if relu:
        grad = torch.where(a * p.to(state) + b <= 0, 0, grad)
    at_maximum = torch.zeros_like(grad)
    if spatial is not None:
        assert spatial_place is not None  # of the maxima
        gate, level, point = spatial.view(3, 1, samples, 1, height, width)
        here = torch.arange(steps * count, device=z.device).view(steps, 1, count, 1, 1)
        where = spatial_place.view(1, samples, 1, height, width) == here
        grad, at_maximum = grad * gate + level, torch.where(where, point, 0)
    grad = a * grad + a * at_maximum
    if planes is not None:
        assert place is not None
        uniform, at_peak = planes[..., None, None]
        here = torch.arange(height * width, device=z.device).view(height, width)
        grad = (grad + uniform) + torch.where(place[..., None, None] == here, at_peak, 0)
    if pool > 1:
        wide = (grad * (1 / (pool * pool))).repeat_interleave(pool, 3).repeat_interleave(pool, 4)
        missing = (0, z.shape[4] - wide.shape[4], 0, z.shape[3] - wide.shape[3])
        grad = F.pad(wide, missing)
    if channels is not None:
        offset, slope, centre = channels[:, :, None, None]
        grad = (grad - offset) - slope * (z.to(state) - centre)
    return grad.to(z.dtype)
