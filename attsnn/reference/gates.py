"""The attention gates of MA-SNN (Attention SNN, TPAMI 2023, section 3; spec of the released code), in plain
PyTorch.

A gate squeezes the whole window to descriptors, the mean and the maximum, and excites them to weights in (0,
1). x is [T, N, C, H, W], or [T, N, F] for the temporal gate of a fully connected layer. Maxima are taken one
dimension after the other with `max(dim)`, which sends the gradient to the first maximum in logical order.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Linear = Tensor | Callable[[Tensor], Tensor]  # a weight, or what is called


def _excite(mean: Tensor, peak: Tensor, reduce: Linear, expand: Linear) -> Tensor:
    """sigmoid(MLP(mean) + MLP(max)) with one shared MLP; descriptors [N, D], reduce [D/r, D], expand [D,
    D/r].
    """

    def linear(d: Tensor, by: Linear) -> Tensor:
        return F.linear(d, by) if isinstance(by, Tensor) else by(d)

    def mlp(d: Tensor) -> Tensor:
        return linear(F.relu(linear(d, reduce)), expand)

    return torch.sigmoid(mlp(mean) + mlp(peak))


def temporal_gate(x: Tensor, reduce: Linear, expand: Linear) -> Tensor:
    """TA: one weight a step, from its mean and maximum over (C, H, W); returns [T, N, 1, ...]."""
    flat = x.flatten(2)
    gate = _excite(flat.mean(2).t(), flat.max(2).values.t(), reduce, expand)
    return gate.t()[(...,) + (None,) * (x.dim() - 2)]


def channel_gate(x: Tensor, reduce: Linear, expand: Linear) -> Tensor:
    """CA: one weight a channel, shared by all steps, from mean and maximum over (T, H, W); returns [1, N, C,
    1, 1].
    """
    flat = x.flatten(3)
    gate = _excite(flat.mean((0, 3)), flat.max(3).values.max(0).values, reduce, expand)
    return gate[None, :, :, None, None]


def spatial_gate(x: Tensor, kernel: Linear) -> Tensor:
    """SA: one weight a pixel, shared by steps and channels: a convolution, kernel [1, 2, k, k], over the maps
    of mean and maximum over (T, C); returns [1, N, 1, H, W]."""
    maps = torch.stack([x.mean((0, 2)), x.max(2).values.max(0).values], 1)
    if not isinstance(kernel, Tensor):
        return torch.sigmoid(kernel(maps))[None]
    return torch.sigmoid(F.conv2d(maps, kernel, padding=kernel.shape[-1] // 2))[None]
