"""Attention over time, channels and space (Attention SNN, TPAMI 2023), composed by the papers' names.

A gate is a tensor of weights in (0, 1) that multiplies its input. As in the released code, it is computed
from descriptors of the whole window by a shared MLP (SA: a convolution) and a sigmoid. Gates apply in the
order T, C, S, each computed on what the one before it gated. A ReLU follows the last one.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from . import ops
from ._extension import Backend
from .ops import tally
from .ops.pfa import RANKS, check_rules
from .ops.registration import NotScripted

__all__ = [
    "GATES",
    "NAMES",
    "PFA",
    "PRUNING",
    "Attention",
    "ChannelAttention",
    "PrunedAttention",
    "SpatialAttention",
    "TemporalAttention",
    "attention",
    "winner_take_all",
]

NAMES = ("TA", "CA", "SA", "TCA", "TSA", "CSA", "TCSA")
PRUNING = ("TA", "CA", "TCA")  # those whose scores may choose what is kept


def check_counts(**counts: int) -> None:
    """Raises for a count that is not an integer of at least 1."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {count!r}")


# ---- children: read, or called
# ------------------------------------------------------------------------------------------


def as_made(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a layer may read the module's tensors instead of calling it.

    It may if the module's forward is that of one of the kinds, and no hook is on it. Old weight_norm,
    spectral_norm and pruning are hooks; a parametrisation is computed when the tensor is read. Hooks for all
    modules at once (`register_module_forward_hook`) only see modules that are called.
    """
    if module._forward_pre_hooks or module._forward_hooks or "forward" in module.__dict__:
        return False
    if module._backward_hooks or module._backward_pre_hooks:
        return False
    forward = type(module).forward
    return any(forward is kind.forward for kind in kinds)


def _weight_of(
    module: nn.Linear | nn.Conv2d, kind: type[nn.Module], dtype: torch.dtype
) -> Tensor | Callable[[Tensor], Tensor]:
    """The module's weight in that type, if it may be read; else a function that calls the module.

    The function calls it in its own type.
    """
    if as_made(module, kind):
        return module.weight.to(dtype)
    weight = getattr(module, "weight", None)  # in a quantised layer it is a method
    own = weight.dtype if isinstance(weight, Tensor) else torch.float32
    return lambda x: module(x.to(own)).to(dtype)


# ---- gates
# ------------------------------------------------------------------------------------------


class _Excitation(NotScripted, nn.Module):
    """The two weights of the shared MLP, size -> size // ratio -> size, without bias."""

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

    def weights(self, dtype: torch.dtype) -> list[Tensor | Callable[[Tensor], Tensor]]:
        """The weights of `reduce` and `expand`, or functions that call these layers."""
        return [_weight_of(part, nn.Linear, dtype) for part in (self.reduce, self.expand)]

    def read(self) -> bool:
        """Whether a seam may apply the weights instead of calling this module."""
        return all(as_made(part, nn.Linear) for part in (self.reduce, self.expand))

    def extra_repr(self) -> str:
        return f"size={self.size}"


class TemporalAttention(_Excitation):
    """TA: weighs the steps of x [T, N, C, H, W] or [T, N, F].

    Args:
        steps: T, which x must have.
        ratio: the MLP has steps // ratio hidden units.

    Raises:
        ValueError: unless ratio is from 1 to steps; on a call, if x has another T.
    """

    def __init__(self, steps: int, ratio: int = 16):
        super().__init__(steps, ratio, "steps", "temporal_ratio")

    def check(self, x: Tensor) -> None:
        """Raises ValueError if x has another T."""
        if x.shape[0] != self.size:
            raise ValueError(f"temporal attention was made for {self.size} steps, got x with {x.shape[0]}")

    def gate(self, x: Tensor) -> Tensor:
        """The gate [T, N, 1, ...] of x."""
        self.check(x)
        gate = ops.temporal_gate(x, *self.weights(x.dtype))
        tally.scored("TA", gate.detach().flatten(1))
        return gate

    def forward(self, x: Tensor) -> Tensor:
        """The gate times x."""
        return self.gate(x) * x


class ChannelAttention(_Excitation):
    """CA: weighs the channels of x [T, N, C, H, W], with one vector per sample for all steps.

    Args:
        channels: C, the number of channels.
        ratio: the MLP has channels // ratio hidden units.

    Raises:
        ValueError: unless ratio is from 1 to channels.
    """

    def __init__(self, channels: int, ratio: int = 16):
        super().__init__(channels, ratio, "channels", "channel_ratio")

    def gate(self, x: Tensor) -> Tensor:
        """The gate [1, N, C, 1, 1] of x."""
        gate = ops.channel_gate(x, *self.weights(x.dtype))
        tally.scored("CA", gate.detach()[0].flatten(1))
        return gate

    def forward(self, x: Tensor) -> Tensor:
        """The gate times x."""
        return self.gate(x) * x


class SpatialAttention(NotScripted, nn.Module):
    """SA: weighs the pixels of x [T, N, C, H, W], with one map per sample for all steps and channels.

    Args:
        kernel_size: side of the convolution, odd.
    """

    def __init__(self, kernel_size: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def read(self) -> bool:
        """Whether a seam may apply the weight instead of calling this module."""
        return as_made(self.conv, nn.Conv2d)

    def forward(self, x: Tensor) -> Tensor:
        """The gate times x."""
        gate = ops.spatial_gate(x, _weight_of(self.conv, nn.Conv2d, x.dtype))
        tally.scored("SA", gate.detach()[0, :, 0])
        return gate * x


GATES = TemporalAttention, ChannelAttention, SpatialAttention


class Attention(nn.Sequential):
    """The gates of one name in their order, then a ReLU. `attention` makes it.

    x is [T, N, C, H, W] or [T, N, F], and the result has its shape. The children are those of `temporal`,
    `channel` and `spatial` that the name has.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The gated x, after the ReLU."""
        return torch.relu(super().forward(x))  # type: ignore[no-untyped-call]

    def read(self) -> bool:
        """Whether a seam may apply the weights (`gates`) instead of calling this module and its parts."""
        parts: dict[str, Any] = self._modules
        return as_made(self, Attention) and all(
            as_made(part, *GATES) and part.read() for part in parts.values()
        )

    def gates(self, x: Tensor) -> ops.Gates:
        """The weights, for the op that applies them to x. Raises ValueError if TA is for another T."""
        parts: dict[str, Any] = self._modules
        temporal, channel, spatial = map(parts.get, ("temporal", "channel", "spatial"))
        if temporal is not None:
            temporal.check(x)
        of_steps, of_channels = (
            None if g is None else (g.reduce.weight, g.expand.weight) for g in (temporal, channel)
        )
        return ops.Gates(of_steps, of_channels, None if spatial is None else spatial.conv.weight)


def winner_take_all(score: Tensor, keep: float, dim: int) -> Tensor:
    """A mask of the largest scores along `dim`: 1 for the ceil(keep n) largest of n scores, else 0.

    Args:
        score: a tensor. The mask has its shape and type, and no gradient.
        keep: the share of scores that win, above 0 and at most 1. Of equal scores the first win.
        dim: the dimension of the n scores.
    """
    count = math.ceil(round(keep * score.shape[dim], 9))  # 0.07 * 100 is a rounding error above 7
    winners = score.detach().argsort(dim=dim, descending=True, stable=True).narrow(dim, 0, count)
    return torch.zeros_like(score).scatter(dim, winners, 1.0)


class PrunedAttention(nn.Sequential):
    """TA, CA or TCA whose scores also choose which steps and channels of a sample pass; there is no ReLU.

    Each gate reads what the one before it weighted. The result is x times the masks of the winners and, with
    `reserve_coefficient`, times their scores. The children are named as in `Attention`. No kernel fuses it.
    This is feature boosting and suppression (Attention SNN, released code).

    Args:
        keep_steps: the share of the steps that pass, above 0 and at most 1.
        keep_channels: the share of the channels that pass, above 0 and at most 1.
        reserve_coefficient: whether the scores multiply what passes.

    Raises:
        ValueError: on a call, for a gate with hooks or a forward of its own.
    """

    def __init__(self, keep_steps: float, keep_channels: float, reserve_coefficient: bool):
        super().__init__()
        self.keep_steps, self.keep_channels = keep_steps, keep_channels
        self.reserve_coefficient = reserve_coefficient

    def forward(self, x: Tensor) -> Tensor:
        """What passes of x."""
        parts: Iterable[tuple[str, Any]] = self.named_children()
        weighted = x
        factor: float | Tensor = 1.0
        for name, part in parts:
            if not as_made(part, *GATES):
                raise ValueError(
                    f"{name} has hooks or a forward of its own, which would not run, for its scores are "
                    "read: put them on the PrunedAttention, or on the layers inside"
                )
            dim, keep = (0, self.keep_steps) if name == "temporal" else (2, self.keep_channels)
            score = part.gate(weighted)
            weighted = score * weighted
            mask = winner_take_all(score, keep, dim)
            factor = factor * (score * mask if self.reserve_coefficient else mask)
        return factor * x

    def extra_repr(self) -> str:
        """For `repr`: the shares, and whether the scores multiply."""
        knobs = ("keep_steps", "keep_channels", "reserve_coefficient")
        return ", ".join(f"{knob}={getattr(self, knob)}" for knob in knobs)


def _check_pruning(name: str | None, keep: dict[str, float | None]) -> None:
    if name not in PRUNING:
        raise ValueError(f"pruning ({', '.join(keep)}) needs attention {', '.join(PRUNING)}, got {name!r}")
    for (knob, ratio), letter in zip(keep.items(), "TC", strict=True):
        if ratio is not None and letter not in name.removesuffix("A"):
            raise ValueError(f"{knob}: attention {name} does not score the {knob.removeprefix('keep_')}")
        if ratio is not None and not 0 < ratio <= 1:
            raise ValueError(f"{knob} must be a share above 0 and at most 1, got {ratio!r}")


def attention(
    name: str | None,
    *,
    channels: int | None = None,
    steps: int | None = None,
    maps: bool = True,
    channel_ratio: int = 16,
    temporal_ratio: int = 16,
    keep_steps: float | None = None,
    keep_channels: float | None = None,
    reserve_coefficient: bool = True,
) -> Attention | PrunedAttention | nn.Identity:
    """Builds the attention of a name for inputs [T, N, C, H, W].

    Args:
        name: one of `NAMES`; None: the identity, without a ReLU.
        channels: C, which CA and SA need.
        steps: T, which TA needs.
        maps: False: for fully connected layers, [T, N, F]. They know the temporal gate alone: every name
            with a T gives it, and any other name is the identity (as published).
        channel_ratio: the MLP of CA has channels // channel_ratio hidden units.
        temporal_ratio: the MLP of TA has steps // temporal_ratio hidden units.
        keep_steps: the share of a sample's steps that pass, by winner-take-all on the scores of TA or TCA.
            The result is then a `PrunedAttention`.
        keep_channels: the share of a sample's channels that pass, in the same way for CA or TCA.
        reserve_coefficient: as in `PrunedAttention`.

    Returns:
        An `Attention`, a `PrunedAttention` or an `nn.Identity`.

    Raises:
        ValueError: for an unknown name, a missing size, or arguments that do not go together.
    """
    if name is not None and name not in NAMES:
        raise ValueError(f"attention must be None or one of {', '.join(NAMES)}, got {name!r}")
    letters = (name or "").removesuffix("A")
    gates: Attention | PrunedAttention = Attention()
    keep = {"keep_steps": keep_steps, "keep_channels": keep_channels}
    if any(ratio is not None for ratio in keep.values()):
        _check_pruning(name, keep)
        if keep_channels is not None and channels is None:
            raise ValueError("keep_channels: give channels, whose scores choose; [T, N, F] has none")
        of_steps, of_channels = (1.0 if ratio is None else ratio for ratio in keep.values())
        gates = PrunedAttention(of_steps, of_channels, reserve_coefficient)
    if maps and channels is None and set(letters) & set("CS"):
        raise ValueError(
            f"attention {name} weighs maps: give channels, their number C; or maps=False, for [T, N, F], of "
            "which it weighs the steps at most"
        )
    if not maps and channels is not None:
        raise ValueError(f"maps=False is for [T, N, F], which has no channels, got channels={channels}")
    if "T" in letters:
        if steps is None:
            raise ValueError(f"attention {name} weighs the steps: give steps, the number T of time steps")
        gates.add_module("temporal", TemporalAttention(steps, temporal_ratio))
    if "C" in letters and channels is not None:
        gates.add_module("channel", ChannelAttention(channels, channel_ratio))
    if "S" in letters and channels is not None:
        gates.add_module("spatial", SpatialAttention())
    return gates if len(gates) else nn.Identity()


class PFA(NotScripted, nn.Module):
    """Projected full attention (Deng et al., 2024): weighs every value of x with a map of rank `rank`.

    x is [T, N, C, H, W]; H and W are free. `attsnn.ops.pfa` documents the equation. There are
    `rank * (steps * (kernel^2 + 1) + channels + 3)` parameters, initialised as in `nn.Conv2d` and
    `nn.Linear`.

    Args:
        steps: T, the number of steps.
        channels: C, the number of channels.
        rank: R, from 1 to 64.
        kernel: side of the spatial convolution, 1 or 3.
        scale: "mean" (the released code on event data) or "sum" (on images).
        fusion: "multiply": relu(A x); "add": relu(A + x), the released code on Fashion-MNIST; "residual":
            x + A x.
        backend: "fused", "reference" or "auto".

    Raises:
        ValueError: for arguments out of these ranges; on a call, for x of another shape.

    A published state dict may also have a `weight` [R], which was never trained and stands for the 1/R of
    `scale="mean"`. Loading accepts and drops it.
    """

    def __init__(
        self,
        steps: int,
        channels: int,
        rank: int,
        *,
        kernel: int = 3,
        scale: str = "mean",
        fusion: str = "multiply",
        backend: Backend = "auto",
    ):
        super().__init__()
        check_counts(steps=steps, channels=channels, rank=rank)
        if rank not in RANKS:
            raise ValueError(f"rank must be from 1 to {RANKS[-1]}, got {rank}")
        if kernel not in (1, 3):
            raise ValueError(f"kernel must be 1 or 3, got {kernel!r}")
        check_rules(scale, fusion)
        # In the published order, so that a seed draws the same weights.
        self.spatial_weight, self.spatial_bias = nn.Conv2d(steps, rank, kernel).parameters()
        self.temporal_weight, self.temporal_bias = nn.Linear(channels, rank).parameters()
        self.channel_weight, self.channel_bias = nn.Linear(steps, rank).parameters()
        self.steps, self.channels, self.rank, self.kernel = steps, channels, rank, kernel
        self.scale, self.fusion, self.backend = scale, fusion, backend

    def run(self, x: Tensor) -> ops.PFAOutput:
        """Returns (out, scores): the result, and the factors of the map, which cost nothing extra."""
        return ops.pfa(
            x,
            (self.spatial_weight, self.spatial_bias),
            (self.temporal_weight, self.temporal_bias),
            (self.channel_weight, self.channel_bias),
            scale=self.scale,
            fusion=self.fusion,
            backend=self.backend,
        )

    def forward(self, x: Tensor) -> Tensor:
        """The weighed x, of its shape, type and layout."""
        return self.run(x).out

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(prefix + "weight", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """For `repr`: sizes, scale and fusion."""
        knobs = ("steps", "channels", "rank", "kernel", "scale", "fusion")
        return ", ".join(f"{knob}={getattr(self, knob)}" for knob in knobs)
