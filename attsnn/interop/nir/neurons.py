"""A neuron of the LIF family as a node of NIR, and back, by a forward Euler step of dt seconds.

    LIF: tau dv/dt = (v_leak - v) + r I        leak = 1 - dt / tau, gain = r dt / tau, bias = v_leak dt / tau
    IF: dv/dt = r I                            leak = 1, gain = r dt

A node spikes where v > v_threshold; then v = v_reset. A neuron that also fires at the threshold itself is
written with the next smaller number as its threshold, in the type of the network.
"""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from attsnn.neurons import LIF

DT = 1e-4  # seconds, as SpikingJelly and snnTorch write it


def need_nir() -> Any:
    try:
        import nir
    except ImportError as error:
        raise ImportError(f"NIR needs the package nir ({error}): pip install 'attsnn[nir]'") from None
    return nir


def check_dt(dt: Any, where: str = "") -> None:
    """Raises ValueError for what is no length of a step."""
    if not isinstance(dt, int | float | np.number) or not 0 < dt < np.inf:
        raise ValueError(f"{where}dt must be a number of seconds greater than 0, got {dt!r}")


class NotSaidError(ValueError):
    """Something that NIR, or this package, cannot express; the message names it."""


def node_of(neuron: LIF, shape: tuple[int, ...], dtype: torch.dtype, dt: float, scale: float) -> Any:
    """The node for a neuron whose steps have the shape [C, ...]; its input is multiplied by `scale`."""
    nir, kind = need_nir(), np.float64 if dtype == torch.float64 else np.float32
    constants = neuron.constants()
    _check(neuron, constants)

    def values(name: str) -> np.ndarray:
        value = constants[name]
        array = np.asarray(value.detach().cpu().double() if isinstance(value, Tensor) else value, kind)
        return np.broadcast_to(array.reshape(-1, *[1] * (len(shape) - 1)), shape).astype(np.float64)

    leak, gain, bias, threshold, reset = map(values, ("leak", "gain", "bias", "threshold", "v_reset"))
    if bias.any() and neuron.start == "zero":
        raise NotSaidError("its first step is without its bias")
    if neuron.start == "reset" and (leak * reset).any():
        raise NotSaidError("it starts at v_reset, and NIR at 0")
    if not neuron.strict:
        threshold = np.nextafter(threshold.astype(kind), kind(-np.inf))
    common = {"v_threshold": threshold.astype(kind), "v_reset": reset.astype(kind)}
    if (leak == 1).all():
        if bias.any():
            raise NotSaidError("it has a bias, and no leak that could bring it")
        return nir.IF(r=_quotient(scale * gain, dt), **common)
    if not ((leak >= 0) & (leak < 1)).all():
        raise NotSaidError(f"its leak is not between 0 and 1, or 1 in a part of its channels: {leak.max():g}")
    rest = 1 - leak
    return nir.LIF(tau=dt / rest, r=scale * gain / rest, v_leak=bias / rest, **common)


def _check(neuron: LIF, constants: Mapping[str, Any]) -> None:
    if neuron.emit != "spike":
        raise NotSaidError(f"it emits {neuron.emit}, and NIR's neurons emit spikes")
    if neuron.levels is not None:
        raise NotSaidError("its spikes are integers, and NIR's are 0 and 1")
    if constants["v_reset"] is None:
        raise NotSaidError("its reset is soft, and NIR's is hard")


def _quotient(product: np.ndarray, dt: float) -> np.ndarray:
    """r, of which r dt is the product to the bit, where there is such a number beside the quotient."""
    r = product / dt
    for other in (np.nextafter(r, np.inf), np.nextafter(r, -np.inf)):
        r = np.where((r * dt != product) & (other * dt == product), other, r)
    return r


def neuron_of(node: Any, dt: float, **how: Any) -> LIF:
    """The neuron for an IF or LIF node; its state starts at 0."""
    r = np.asarray(node.r, np.float64)
    if type(node).__name__ == "IF":
        leak, gain, bias = np.ones_like(r), r * dt, np.zeros_like(r)
    else:
        decay = dt / np.asarray(node.tau, np.float64)
        leak, gain, bias = 1 - decay, r * decay, decay * np.asarray(node.v_leak, np.float64)
    if bias.any() and np.any(node.v_reset):
        raise NotSaidError("it starts at 0, and has v_leak and v_reset other than 0; here none does so")
    values = {"leak": leak, "gain": gain, "bias": bias}
    values |= {"threshold": node.v_threshold, "v_reset": node.v_reset}
    constants = {name: _by_channel(np.asarray(value, np.float64), name) for name, value in values.items()}
    return LIF(**cast(dict[str, Any], constants), strict=True, start="reset" if bias.any() else "zero", **how)


def _by_channel(values: np.ndarray, name: str) -> float | Tensor:
    """One number, or one per channel."""
    if not np.isfinite(values).all():
        raise NotSaidError(f"its {name} is not finite")
    first = values.reshape(values.shape[0], -1)[:, :1] if values.ndim else values.reshape(1, 1)
    if values.size and (values.reshape(first.shape[0], -1) != first).any():
        raise NotSaidError(f"its {name} differs within a channel; here it is a number, or one a channel")
    if (first == first[0]).all():
        return float(first[0, 0])
    return torch.from_numpy(first[:, 0].copy())
