"""Other packages' surrogates as ours, recognised by their exact names."""

from collections.abc import Callable
from typing import Any

from attsnn.reference import (
    Surrogate,
    arctan,
    erf,
    fast_sigmoid,
    piecewise_exp,
    rectangular,
    sigmoid,
    triangle,
)

SPIKINGJELLY = ("spikingjelly.activation_based.surrogate", "spikingjelly.clock_driven.surrogate")
# Slopes at the threshold: SoftSign's is alpha / 2 (1 + alpha |x|)^-2, SuperSpike's alpha (1 + |x|)^-2.
CLASSES: dict[str, Callable[[Any], Surrogate]] = {
    "Sigmoid": lambda f: sigmoid(f.alpha),
    "ATan": lambda f: arctan(f.alpha),
    "Erf": lambda f: erf(f.alpha),
    "PiecewiseQuadratic": lambda f: triangle(1 / f.alpha),
    "PiecewiseExp": lambda f: piecewise_exp(f.alpha),
    "Rect": lambda f: rectangular(1 / (2 * f.alpha)),
    "SoftSign": lambda f: fast_sigmoid(f.alpha, height=f.alpha / 2),
    "SuperSpike": lambda f: fast_sigmoid(1.0, height=f.alpha),
    "PiecewiseLeakyReLU": lambda f: _flat(f),
}
# snnTorch's functions: (the name of the variable that each closes over, ours).
FUNCTIONS: dict[str, tuple[str, Callable[[float], Surrogate]]] = {
    "atan": ("alpha", arctan),
    "fast_sigmoid": ("slope", fast_sigmoid),
    "sigmoid": ("slope", sigmoid),
}


class NoneOfOursError(ValueError):
    """A neuron has something that attsnn does not have; the message names it."""


def _flat(f: Any) -> Surrogate:
    if f.c != 0:
        raise NoneOfOursError(
            f"its surrogate PiecewiseLeakyReLU leaks (c={f.c}); ours are 0 outside of a window"
        )
    # Before 2.0 its gradient is 1 / w, not the 1 / 2w of its documentation.
    return rectangular(f.w, height=1.0 if hasattr(f, "_sg_params") else 2.0)


def surrogate_of(function: Any) -> Surrogate:
    """Our equivalent of a SpikingJelly or snnTorch surrogate. Raises NoneOfOursError with the reason."""
    kind = type(function)
    where, name = kind.__module__, kind.__qualname__
    if where in SPIKINGJELLY:
        if not function.spiking:
            raise NoneOfOursError(f"its surrogate {name} is soft (spiking=False)")
        if name in CLASSES:
            return CLASSES[name](function)
    elif getattr(function, "__module__", None) == "snntorch.surrogate":
        name = function.__qualname__
        known = FUNCTIONS.get(name.removesuffix(".<locals>.inner"))
        closed = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        if known is not None and known[0] in closed:
            return known[1](float(closed[known[0]].cell_contents))
    raise NoneOfOursError(f"its surrogate {name} is not one that attsnn has")
