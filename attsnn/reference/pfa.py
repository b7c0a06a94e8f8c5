"""Projected full attention (PFA) in plain PyTorch.

The source is Deng et al., 2024 (arXiv 2310.14576), sections 3.2 and 3.3, in the three forms of the released
code.

x [T, N, C, H, W] is projected onto three small tensors. Their product is an attention map of rank R at most,
with one value for every value of x:

    S[n, r, h, w] = sigmoid(conv(mean_c x)),    Tm[n, t, r] = sigmoid(W_T mean_hw x),
    Cm[n, c, r] = sigmoid(W_C mean_hw x),       A = scale sum_r S_r Tm_r Cm_r

The convolution mixes the steps (T channels in, R out), W_T mixes the channels, and W_C the steps.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .neuron import state_dtype

SCALES = ("mean", "sum")  # the sum over r times 1/R, or as it is
FUSIONS = ("multiply", "add", "residual")


class PFAScores(NamedTuple):
    """The factors of the attention map, in (0, 1), without gradient.

    - `spatial`: S, [N, R, H, W].
    - `temporal`: Tm, [N, T, R].
    - `channel`: Cm, [N, C, R].
    """

    spatial: Tensor  # [N, R, H, W]
    temporal: Tensor  # [N, T, R]
    channel: Tensor  # [N, C, R]


class PFAOutput(NamedTuple):
    """The result of `pfa`.

    - `out`: x weighed by the map, of x's shape and type.
    - `scores`: the factors of the map, a `PFAScores`.
    """

    out: Tensor
    scores: PFAScores


def pfa(
    x: Tensor,
    spatial: tuple[Tensor, Tensor],
    temporal: tuple[Tensor, Tensor],
    channel: tuple[Tensor, Tensor],
    *,
    scale: str = "mean",
    fusion: str = "multiply",
) -> PFAOutput:
    """Weighs x with a map of rank R, in plain PyTorch.

    Arguments and results are those of `attsnn.ops.pfa`, which documents them, without `backend`.
    """
    state = state_dtype(x)
    kernel, kernel_bias, temporal_weight, temporal_bias, channel_weight, channel_bias = (
        p.to(state) for p in (*spatial, *temporal, *channel)
    )
    wide = x.to(state)
    rank, _, side, _ = kernel.shape
    by_pixel, by_channel = wide.mean(2).transpose(0, 1), wide.mean((3, 4)).transpose(0, 1)  # [N, T, ...]
    s = torch.sigmoid(F.conv2d(by_pixel, kernel, kernel_bias, padding=side // 2))
    tm = torch.sigmoid(F.linear(by_channel, temporal_weight, temporal_bias))
    cm = torch.sigmoid(F.linear(by_channel.transpose(1, 2), channel_weight, channel_bias))
    factor = tm / rank if scale == "mean" else tm
    rows = factor.transpose(0, 1)[:, :, None] * cm  # [T, N, C, R]
    a = torch.matmul(rows, s.flatten(2)).view(x.shape)
    if fusion == "residual":
        out = wide + a * wide
    else:
        out = torch.relu(a * wide if fusion == "multiply" else a + wide)
    return PFAOutput(out.to(x.dtype), PFAScores(s.detach(), tm.detach(), cm.detach()))
