"""Projected full attention as PyTorch composes it: as released, and cleaned in two ways; and ours."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.peers import OURS, Column

if TYPE_CHECKING:  # also the trees of commits that have none are measured
    from attsnn.attention import PFA

Weighing = Callable[[Tensor], Tensor]  # [T, N, C, H, W] -> the same
MEASURED = ("multiply", "add")  # the fusions of the released networks


def _factors(pfa: "PFA", x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """S [N, R, H W], Tm [T, N, R], Cm [N, C, R]."""
    pixels, planes = x.mean(2).transpose(0, 1), x.mean((3, 4))
    spatial = torch.conv2d(pixels, pfa.spatial_weight, pfa.spatial_bias, padding=pfa.kernel // 2)
    temporal = torch.nn.functional.linear(planes, pfa.temporal_weight, pfa.temporal_bias)
    channel = torch.nn.functional.linear(planes.permute(1, 2, 0), pfa.channel_weight, pfa.channel_bias)
    return torch.sigmoid(spatial).flatten(2), torch.sigmoid(temporal), torch.sigmoid(channel)


def _fused(pfa: "PFA", a: Tensor, x: Tensor) -> Tensor:
    return (a * x if pfa.fusion == "multiply" else a + x).relu_()


def published(pfa: "PFA", x: Tensor) -> Weighing:
    """The released loop over the ranks: an outer product of x's size for each, permuted, scaled, added. The
    rank weights, which stay 1/R, are a tensor as there.
    """
    weights = torch.full((pfa.rank,), 1 / pfa.rank, device=x.device, dtype=x.dtype)

    def weigh(x: Tensor) -> Tensor:
        (steps, samples, channels, height, width), (s, tm, cm) = x.shape, _factors(pfa, x)
        tm = tm.transpose(0, 1)
        result = torch.zeros_like(x)
        for r in range(pfa.rank):
            by_step = torch.bmm(s[:, r, :, None], tm[:, None, :, r])  # [N, H W, T]
            full = torch.bmm(by_step.reshape(samples, -1, 1), cm[:, None, :, r])
            full = full.view(samples, height, width, steps, channels).permute(3, 0, 4, 1, 2)
            result += full * weights[r] if pfa.scale == "mean" else full
        return torch.relu(result * x if pfa.fusion == "multiply" else result + x)

    return weigh


def composed(pfa: "PFA", x: Tensor) -> Weighing:
    """One product of matrices a sample: [T C, R] x [R, H W]."""

    def weigh(x: Tensor) -> Tensor:
        (steps, samples, channels, *_), (s, tm, cm) = x.shape, _factors(pfa, x)
        cm = cm / pfa.rank if pfa.scale == "mean" else cm
        rows = tm.transpose(0, 1).contiguous()[:, :, None] * cm[:, None]
        a = torch.bmm(rows.reshape(samples, steps * channels, pfa.rank), s)
        return _fused(pfa, a.view(samples, steps, channels, *x.shape[3:]).transpose(0, 1), x)

    return weigh


def composed_by_step(pfa: "PFA", x: Tensor) -> Weighing:
    """One product of matrices a sample and step, in x's order: [C, R] x [R, H W]."""

    def weigh(x: Tensor) -> Tensor:
        s, tm, cm = _factors(pfa, x)
        cm = cm / pfa.rank if pfa.scale == "mean" else cm
        return _fused(pfa, torch.matmul(tm[:, :, None] * cm[None], s[None]).view(x.shape), x)

    return weigh


def _compiled(pfa: "PFA", x: Tensor) -> Weighing:
    torch._dynamo.reset()
    return torch.compile(composed(pfa, x), dynamic=False)


PFA_COLUMNS = {
    column.name: column
    for column in (
        Column(OURS, lambda pfa, x: pfa, serves=MEASURED),
        Column("published", published, serves=MEASURED, note="the released loop over the ranks"),
        Column("composed", composed, serves=MEASURED),
        Column("composed by step", composed_by_step, serves=MEASURED),
        Column("torch.compile", _compiled, serves=MEASURED, counts=False),
    )
}
CLEANED = ("composed", "composed by step")  # of which the faster is the one to beat
