"""Surrogate gradients: the slope that stands in for the derivative of a spike.

A spike is a step, whose derivative is zero almost everywhere. Training takes the slope of a soft step, the
*primitive*, instead (Neftci, Mostafa, Zenke, "Surrogate Gradient Learning in SNNs", 2019). `z` is the
distance of the membrane from the centre, which is the threshold unless the surrogate names another one.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Surrogate(NamedTuple):
    """One surrogate gradient, as plain numbers.

    kind: a key of `SURROGATES`; scale: its half-width or steepness; centre: the membrane potential at which
    the slope is centred, None for the threshold. With a centre of its own the threshold gets no surrogate
    gradient.
    """

    kind: str
    scale: float
    centre: float | None = None


class _Step(NamedTuple):
    slope: Callable[[Tensor, float], Tensor]  # (z, scale) -> d primitive / dz
    primitive: Callable[[Tensor, float], Tensor]


def _triangle_primitive(z: Tensor, a: float) -> Tensor:
    u = (1 - z.abs() / a).clamp(min=0)
    return torch.where(z < 0, 0.5 * u * u, 1 - 0.5 * u * u)


# The order is that of the kernels' enumeration (csrc/core/surrogate.h); a test compares the two.
SURROGATES: dict[str, _Step] = {
    "rectangular": _Step(
        lambda z, a: (z.abs() < a).to(z.dtype) * (1 / (2 * a)),
        lambda z, a: ((z + a) / (2 * a)).clamp(0, 1),
    ),
    "arctan": _Step(
        lambda z, k: (k / 2) / (1 + (math.pi / 2 * k * z) ** 2),
        lambda z, k: torch.atan(math.pi / 2 * k * z) / math.pi + 0.5,
    ),
    "sigmoid": _Step(
        lambda z, k: k * torch.sigmoid(k * z) * torch.sigmoid(-k * z),
        lambda z, k: torch.sigmoid(k * z),
    ),
    "triangle": _Step(lambda z, a: (1 - z.abs() / a).clamp(min=0) / a, _triangle_primitive),
    "fast_sigmoid": _Step(
        lambda z, k: 1 / (1 + k * z.abs()) ** 2,
        lambda z, k: z / (1 + k * z.abs()) + 0.5,
    ),
    "erf": _Step(
        lambda z, k: k / math.sqrt(math.pi) * torch.exp(-((k * z) ** 2)),
        lambda z, k: 0.5 * torch.erfc(-k * z),
    ),
}


def _surrogate(kind: str, scale: float, what: str, centre: float | None) -> Surrogate:
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"{kind}: {what} must be a positive finite number, got {scale!r}")
    if centre is not None and not math.isfinite(centre):
        raise ValueError(f"{kind}: centre must be a finite membrane potential or None, got {centre!r}")
    return Surrogate(kind, float(scale), None if centre is None else float(centre))


def rectangular(half_width: float = 0.5, centre: float | None = None) -> Surrogate:
    """Slope 1 / (2 half_width) where |z| < half_width, else 0 (Wu et al., STBP, 2018)."""
    return _surrogate("rectangular", half_width, "half_width", centre)


def arctan(alpha: float = 2.0, centre: float | None = None) -> Surrogate:
    """Slope (alpha/2) / (1 + (pi/2 alpha z)^2) (Fang et al., PLIF, 2021)."""
    return _surrogate("arctan", alpha, "alpha", centre)


def sigmoid(alpha: float = 4.0, centre: float | None = None) -> Surrogate:
    """Slope alpha sigmoid(alpha z) (1 - sigmoid(alpha z))."""
    return _surrogate("sigmoid", alpha, "alpha", centre)


def triangle(half_width: float = 1.0, centre: float | None = None) -> Surrogate:
    """Slope max(0, 1 - |z| / half_width) / half_width (Bellec et al., 2018)."""
    return _surrogate("triangle", half_width, "half_width", centre)


def fast_sigmoid(alpha: float = 25.0, centre: float | None = None) -> Surrogate:
    """Slope 1 / (1 + alpha |z|)^2 (Zenke and Ganguli, SuperSpike, 2018; snnTorch's `fast_sigmoid`)."""
    return _surrogate("fast_sigmoid", alpha, "alpha", centre)


def erf(alpha: float = 2.0, centre: float | None = None) -> Surrogate:
    """Slope alpha / sqrt(pi) exp(-(alpha z)^2), the Gaussian whose primitive is the error function."""
    return _surrogate("erf", alpha, "alpha", centre)
