"""The attention gates of MA-SNN in plain PyTorch (Attention SNN, TPAMI 2023, section 3; the released code).

A gate reduces the whole window to descriptors, the mean and the maximum, and turns them into weights in (0,
1). x is [T, N, C, H, W], or [T, N, F] for the temporal gate of a fully connected layer. Maxima are taken one
dimension after the other with `max(dim)`, which sends the gradient to the first maximum in logical order.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Linear = Tensor | Callable[[Tensor], Tensor]  # a weight, or a function to call instead


def _excite(mean: Tensor, peak: Tensor, reduce: Linear, expand: Linear) -> Tensor:
    """sigmoid(MLP(mean) + MLP(max)) with one shared MLP.

    The descriptors are [N, D], `reduce` is [D/r, D] and `expand` [D, D/r].
    """

    def linear(d: Tensor, by: Linear) -> Tensor:
        return F.linear(d, by) if isinstance(by, Tensor) else by(d)

    def mlp(d: Tensor) -> Tensor:
        return linear(F.relu(linear(d, reduce)), expand)

    return torch.sigmoid(mlp(mean) + mlp(peak))


def temporal_gate(x: Tensor, reduce: Linear, expand: Linear) -> Tensor:
    """TA: one weight per sample and step, from the step's mean and maximum over (C, H, W).

    Both descriptors go through one MLP; a sigmoid of the sum is the gate (Attention SNN, TPAMI 2023,
    section 3).

    Args:
        x: [T, N, C, H, W], or [T, N, F].
        reduce: the MLP's first weight [T/r, T], or a function to call instead.
        expand: the MLP's second weight [T, T/r], or a function to call instead.

    Returns:
        The gate [T, N, 1, ...], with as many dimensions as x, in (0, 1).
    """
    flat = x.flatten(2)
    gate = _excite(flat.mean(2).t(), flat.max(2).values.t(), reduce, expand)
    return gate.t()[(...,) + (None,) * (x.dim() - 2)]


def channel_gate(x: Tensor, reduce: Linear, expand: Linear) -> Tensor:
    """CA: one weight per sample and channel, for all steps, from the mean and maximum over (T, H, W).

    Both descriptors go through one MLP; a sigmoid of the sum is the gate (Attention SNN, TPAMI 2023,
    section 3).

    Args:
        x: [T, N, C, H, W].
        reduce: the MLP's first weight [C/r, C], or a function to call instead.
        expand: the MLP's second weight [C, C/r], or a function to call instead.

    Returns:
        The gate [1, N, C, 1, 1], in (0, 1).
    """
    flat = x.flatten(3)
    gate = _excite(flat.mean((0, 3)), flat.max(3).values.max(0).values, reduce, expand)
    return gate[None, :, :, None, None]


def spatial_gate(x: Tensor, kernel: Linear) -> Tensor:
    """SA: one weight per sample and pixel, for all steps and channels, from the mean and maximum over (T,
    C).

    A convolution reads both maps; its sigmoid is the gate (Attention SNN, TPAMI 2023, section 3).

    Args:
        x: [T, N, C, H, W].
        kernel: the weight [1, 2, k, k] of the convolution, k odd, or a function to call instead.

    Returns:
        The gate [1, N, 1, H, W], in (0, 1).
    """
    maps = torch.stack([x.mean((0, 2)), x.max(2).values.max(0).values], 1)
    if not isinstance(kernel, Tensor):
        return torch.sigmoid(kernel(maps))[None]
    return torch.sigmoid(F.conv2d(maps, kernel, padding=kernel.shape[-1] // 2))[None]
