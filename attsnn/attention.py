"""Attention over time, channels and space (Attention SNN, TPAMI 2023), composed by the papers' names.

The released code's form: descriptors of the whole window, a shared MLP, a sigmoid, gates applied in the order
T, C, S, each computed on what the one before it gated, and a closing ReLU.
"""

import torch
from torch import Tensor, nn

from . import ops

NAMES = ("TA", "CA", "SA", "TCA", "TSA", "CSA", "TCSA")


class _Excitation(nn.Module):
    """The shared MLP's two weights, size -> size // ratio -> size, without bias."""

    def __init__(self, size: int, ratio: int, dimension: str, knob: str):
        super().__init__()
        if not 1 <= ratio <= size:
            raise ValueError(
                f"{knob}={ratio} leaves no hidden unit for {size} {dimension}: "
                f"take {knob} from 1 to {size}, or more {dimension}"
            )
        self.reduce = nn.Linear(size, size // ratio, bias=False)
        self.expand = nn.Linear(size // ratio, size, bias=False)
        self.size = size

    def extra_repr(self) -> str:
        return f"size={self.size}"


class TemporalAttention(_Excitation):
    """TA: weighs the steps. x [T, N, C, H, W] or [T, N, F]; fixes T to `steps`; `steps // ratio` hidden
    units.
    """

    def __init__(self, steps: int, ratio: int = 16):
        super().__init__(steps, ratio, "steps", "temporal_ratio")

    def check(self, x: Tensor) -> None:
        if x.shape[0] != self.size:
            raise ValueError(f"temporal attention was made for {self.size} steps, got x with {x.shape[0]}")

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        return ops.temporal_gate(x, self.reduce.weight, self.expand.weight) * x


class ChannelAttention(_Excitation):
    """CA: weighs the channels, one vector a sample for all steps. x [T, N, C, H, W]."""

    def __init__(self, channels: int, ratio: int = 16):
        super().__init__(channels, ratio, "channels", "channel_ratio")

    def forward(self, x: Tensor) -> Tensor:
        return ops.channel_gate(x, self.reduce.weight, self.expand.weight) * x


class SpatialAttention(nn.Module):
    """SA: weighs the pixels, one map a sample for all steps and channels. x [T, N, C, H, W]."""

    def __init__(self, kernel_size: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return ops.spatial_gate(x, self.conv.weight) * x


class Attention(nn.Sequential):
    """The gates of one name in their order, then ReLU. Children: those of `temporal`, `channel`, `spatial`
    present.
    """

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(super().forward(x))

    def gates(self, x: Tensor) -> ops.Gates:
        """The weights, for the op that applies them to x."""
        parts = dict(self.named_children())
        if "temporal" in parts:
            parts["temporal"].check(x)
        pairs = {
            k: (parts[k].reduce.weight, parts[k].expand.weight) for k in ("temporal", "channel") if k in parts
        }
        return ops.Gates(**pairs, spatial=parts["spatial"].conv.weight if "spatial" in parts else None)


def attention(
    name: str | None,
    *,
    channels: int | None = None,
    steps: int | None = None,
    channel_ratio: int = 16,
    temporal_ratio: int = 16,
) -> nn.Module:
    """The attention of that name for [T, N, C, H, W] inputs; None is the identity, without ReLU.

    With `channels=None`, the form for fully connected layers, [T, N, F]: it knows the temporal gate only,
    alone, for every name that has a T, and is the identity for the others (as published).
    """
    if name is not None and name not in NAMES:
        raise ValueError(f"attention must be None or one of {', '.join(NAMES)}, got {name!r}")
    letters = (name or "").removesuffix("A")
    gates = Attention()
    if "T" in letters:
        if steps is None:
            raise ValueError(f"attention {name} weighs the steps: give steps, the number T of time steps")
        gates.add_module("temporal", TemporalAttention(steps, temporal_ratio))
    if "C" in letters and channels is not None:
        gates.add_module("channel", ChannelAttention(channels, channel_ratio))
    if "S" in letters and channels is not None:
        gates.add_module("spatial", SpatialAttention())
    return gates if len(gates) else nn.Identity()
