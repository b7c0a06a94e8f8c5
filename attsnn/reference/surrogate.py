"""Surrogate gradients: the slope that stands in for the derivative of a spike.

A spike is a step, whose derivative is zero almost everywhere. Training uses the slope of a soft step, the
*primitive*, instead (Neftci, Mostafa, Zenke, "Surrogate Gradient Learning in SNNs", 2019). `z` is the
distance of the membrane from the centre of the slope. The centre is the threshold unless the surrogate has
its own.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Surrogate(NamedTuple):
    """One surrogate gradient, as plain numbers.

    It is a slope at z = h - centre, the distance of the membrane potential h from the centre. `rectangular`,
    `arctan` and the others make one. They raise ValueError unless scale and height are positive and finite,
    and centre is finite or None.

    Args:
        kind: a key of `SURROGATES`, or "custom".
        scale: half-width or steepness of the slope.
        centre: membrane potential at which the slope is centred; None: the threshold. If it is given, the
            threshold gets no surrogate gradient.
        height: factor on the slope.
        function: the slope itself, for `custom` only.
    """

    kind: str
    scale: float
    centre: float | None = None
    height: float = 1.0
    function: Callable[[Tensor], Tensor] | None = None

    def slope(self, z: Tensor) -> Tensor:
        """The slope at each z, of z's shape."""
        if self.function is None:
            slope = SURROGATES[self.kind].slope(z, self.scale)
        else:
            slope = _checked(self.function(z), z)
        return slope if self.height == 1 else slope * self.height

    def primitive(self, z: Tensor) -> Tensor:
        """The soft spike at each z, whose derivative is the slope. Raises ValueError for a `custom` slope."""
        if self.function is not None:
            raise ValueError("soft: a custom slope has no primitive, and so no soft spike")
        primitive = SURROGATES[self.kind].primitive(z, self.scale)
        return primitive if self.height == 1 else primitive * self.height


def _checked(slope: Tensor, z: Tensor) -> Tensor:
    if not isinstance(slope, Tensor) or slope.shape != z.shape or not slope.is_floating_point():
        got = f"{slope.dtype} {tuple(slope.shape)}" if isinstance(slope, Tensor) else type(slope).__name__
        raise ValueError(
            f"surrogate: slope(z) must be a real tensor of z's shape {tuple(z.shape)}, got {got}"
        )
    return slope.to(z.dtype)


class _Step(NamedTuple):
    slope: Callable[[Tensor, float], Tensor]  # (z, scale) -> d primitive / dz
    primitive: Callable[[Tensor, float], Tensor]


def _triangle_primitive(z: Tensor, a: float) -> Tensor:
    u = (1 - z.abs() / a).clamp(min=0)
    return torch.where(z < 0, 0.5 * u * u, 1 - 0.5 * u * u)


def _piecewise_exp_primitive(z: Tensor, k: float) -> Tensor:
    half = 0.5 * torch.exp(-k * z.abs())
    return torch.where(z < 0, half, 1 - half)


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
    "piecewise_exp": _Step(lambda z, k: k / 2 * torch.exp(-k * z.abs()), _piecewise_exp_primitive),
}


def _surrogate(kind: str, scale: float, what: str, centre: float | None, height: float) -> Surrogate:
    for name, value in ((what, scale), ("height", height)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{kind}: {name} must be a positive finite number, got {value!r}")
    if centre is not None and not math.isfinite(centre):
        raise ValueError(f"{kind}: centre must be a finite membrane potential or None, got {centre!r}")
    return Surrogate(kind, float(scale), None if centre is None else float(centre), float(height))


def rectangular(half_width: float = 0.5, centre: float | None = None, height: float = 1.0) -> Surrogate:
    """Slope 1 / (2 half_width) where |z| < half_width, else 0 (Wu et al., STBP, 2018).

    z, `centre` and `height` are those of `Surrogate`.
    """
    return _surrogate("rectangular", half_width, "half_width", centre, height)


def arctan(alpha: float = 2.0, centre: float | None = None, height: float = 1.0) -> Surrogate:
    """Slope (alpha/2) / (1 + (pi/2 alpha z)^2) (Fang et al., PLIF, 2021).

    z, `centre` and `height` are those of `Surrogate`.
    """
    return _surrogate("arctan", alpha, "alpha", centre, height)


def sigmoid(alpha: float = 4.0, centre: float | None = None, height: float = 1.0) -> Surrogate:
    """Slope alpha sigmoid(alpha z) (1 - sigmoid(alpha z)).

    z, `centre` and `height` are those of `Surrogate`.
    """
    return _surrogate("sigmoid", alpha, "alpha", centre, height)


def triangle(half_width: float = 1.0, centre: float | None = None, height: float = 1.0) -> Surrogate:
    """Slope max(0, 1 - |z| / half_width) / half_width (Bellec et al., 2018).

    z, `centre` and `height` are those of `Surrogate`.
    """
    return _surrogate("triangle", half_width, "half_width", centre, height)


def fast_sigmoid(alpha: float = 25.0, centre: float | None = None, height: float = 1.0) -> Surrogate:
    """Slope 1 / (1 + alpha |z|)^2 (Zenke and Ganguli, SuperSpike, 2018; snnTorch's `fast_sigmoid`).

    z, `centre` and `height` are those of `Surrogate`. SpikingJelly's `SoftSign(alpha)` is
    `fast_sigmoid(alpha, height=alpha / 2)`, and its `SuperSpike(alpha)` is `fast_sigmoid(1, height=alpha)`.
    """
    return _surrogate("fast_sigmoid", alpha, "alpha", centre, height)


def erf(alpha: float = 2.0, centre: float | None = None, height: float = 1.0) -> Surrogate:
    """Slope alpha / sqrt(pi) exp(-(alpha z)^2), the Gaussian whose primitive is the error function.

    z, `centre` and `height` are those of `Surrogate`.
    """
    return _surrogate("erf", alpha, "alpha", centre, height)


def piecewise_exp(alpha: float = 1.0, centre: float | None = None, height: float = 1.0) -> Surrogate:
    """Slope (alpha/2) exp(-alpha |z|) (SpikingJelly's `PiecewiseExp`).

    z, `centre` and `height` are those of `Surrogate`.
    """
    return _surrogate("piecewise_exp", alpha, "alpha", centre, height)


def custom(slope: Callable[[Tensor], Tensor], centre: float | None = None, height: float = 1.0) -> Surrogate:
    """A surrogate with a slope of your own.

    Without gradients the fused kernels run; with gradients the reference runs, in plain PyTorch. There is no
    soft spike. A neuron with such a slope can be pickled if the function can: one defined in a module, not a
    lambda.

    Args:
        slope: slope(z) returns a tensor of z's shape, where z = h - centre.
        centre: as in `Surrogate`; None: the threshold.
        height: factor on the slope.

    Raises:
        TypeError: if `slope` is not callable.
        ValueError: for centre and height as in `Surrogate`; in use, if slope(z) is no real tensor of z's
            shape.
    """
    if not callable(slope):
        raise TypeError(f"custom: slope must be a function of z, got {slope!r}")
    return _surrogate("custom", 1.0, "scale", centre, height)._replace(function=slope)
