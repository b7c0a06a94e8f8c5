"""A seam, what lies between two convolutions, in plain PyTorch.

`seam` composes it as the published networks do: batch norm over (T, N, H, W), average pool, attention gates
and ReLU, shortcut, neuron. `seam_apply` and `seam_gradient` are the kernels' own form of the same, to the
bit.

z is [T, N, C, H, W], a sequence [T, N, C, L], or [T, N, F] if the layer is fully connected.
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
    """The tensors [C] of a batch norm. Without `mean` and `var` it takes the batch's own statistics.

    Args:
        weight: factor on the normalised values; None: 1.
        bias: is added after the factor; None: 0.
        mean: given mean; None: the batch's.
        var: given variance; None, as `mean`: the batch's.
        eps: is added to the variance.
        group: the processes that share the batch's statistics; None: this process alone.
        repeats: how many equal values each value stands for, such as T for a static image. It changes only
            the unbiased variance that is returned.
    """

    weight: Tensor | None = None
    bias: Tensor | None = None
    mean: Tensor | None = None
    var: Tensor | None = None
    eps: float = 1e-5
    group: "dist.ProcessGroup | None" = None
    repeats: int = 1


class Gates(NamedTuple):
    """The weights of the attention gates; None for a gate that is not there.

    Args:
        temporal: the two matrices of TA's shared MLP, [T/r, T] and [T, T/r].
        channel: the two matrices of CA's shared MLP, [C/r, C] and [C, C/r].
        spatial: the weight of SA's convolution, [1, 2, k, k], k odd.
    """

    temporal: tuple[Tensor, Tensor] | None = None  # [T/r, T], [T, T/r]
    channel: tuple[Tensor, Tensor] | None = None  # [C/r, C], [C, C/r]
    spatial: Tensor | None = None  # [1, 2, k, k]


class Scores(NamedTuple):
    """The values of the gates, in (0, 1), without gradient; None for a gate that is not there.

    - `temporal`: [T, N].
    - `channel`: [N, C].
    - `spatial`: [N, H, W].
    """

    temporal: Tensor | None = None  # [T, N]
    channel: Tensor | None = None  # [N, C]
    spatial: Tensor | None = None  # [N, H, W]


class SeamOutput(NamedTuple):
    """The results of `seam`; None for one that was not asked for or does not exist.

    - `out`: what the neuron emits, [T, N, ...].
    - `membrane`: the sum that the neuron reads, of the shape of `out`.
    - `batch_mean`, `batch_var`: the batch's statistics [C] for the running buffers, if the norm took them.
      The variance is unbiased.
    - `scores`: the `Scores` of the gates.
    - `v`: the neuron's state after the last step, [N, ...].
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
    """`F.batch_norm`, with correct gradients for channels-last maps of one sample.

    Those of PyTorch 2.13 are wrong on the CPU: it infers the layout from the stride of the sample, which
    means nothing.
    """
    if flat.dim() == 4 and flat.shape[0] == 1:
        return F.batch_norm(flat.flatten(2), *how).view_as(flat)
    return F.batch_norm(flat, *how)


def _norm(flat: Tensor, norm: Norm) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Normalises flat [T N, C, ...]; also returns the batch's mean and unbiased variance, or None."""
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
    """`attsnn.ops.update_running` in plain PyTorch, without `backend`."""
    batches.add_(1)
    for running, now in ((mean, batch_mean), (var, batch_var)):
        rate = (1 / batches.double()).to(running.dtype) if momentum is None else momentum
        running.lerp_(now.to(running.dtype), rate)


def average_pool(x: Tensor, pool: int) -> Tensor:
    """`attsnn.ops.average_pool` in plain PyTorch, without `backend`."""
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
    """The plain composition of norm, pool, gates, shortcut and neuron.

    Arguments and results are those of `attsnn.ops.seam`, which documents them, without `backend`. `neuron`
    are the keywords of `lif`.
    """
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
    """Turns the result for maps of height 1 into that for a sequence [T, N, C, L]."""
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
    """The forward pass of the kernels over the maps: x = spatial relu(A p + B) + shortcut, then the neuron.

    Args:
        p: the maps after the pool, [T, N, C, H, W].
        affine: A and B, [2, T or 1, N or 1, C]: norm, TA and CA folded together.
        spatial: SA's gate [N, H, W], or None.
        shortcut: of p's shape, or None.
        relu: whether the ReLU is applied, as it is with any gate.
        rounded: round x to p's type before the neuron reads it.
        neuron: keywords of `lif`.

    Returns:
        A pair (out, membrane), which is what the neuron emits, of p's type, and x.
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
    """The last backward pass of the kernels: the gradient of z, of its shape and type.

    The small tensors are those of GradCall in csrc/core/seam_call.h; csrc/README.md derives them. None:
    there is no such part.

    Args:
        up: the gradient of what the neuron reads, [T, N, C, H, W] after the pool.
        z: the input of the seam.
        p: z after the pool; None: z.
        affine: A and B, as in `seam_apply`.
        spatial: SA's gate and two gradient terms, [3, N, pixels].
        spatial_place: where SA's maxima are, t * C + c, [N, pixels].
        planes: two gradient terms of each plane (a channel at a step), [2, T, N, C]: for all its pixels, and
            for its extremum.
        place: the pixel of the extremum, [T, N, C].
        channels: three terms of the batch statistics, [3, C]: offset, slope and centre.
        pool: side of the pool.
        relu: whether the ReLU is applied.
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
