"""Neurons as modules: `LIF`, the whole family, and the presets that name their paper.

A module keeps no state between calls: the membrane comes in as `v0` and goes out of `run`, so there is
nothing to reset. Inputs are [T, N, C, H, W], [T, N, F] or [T, N].
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from . import ops
from ._extension import Backend
from .ops.neuron import check_levels, check_rules
from .ops.registration import NotScripted
from .reference import CONSTANTS, Surrogate, arctan, rectangular, triangle
from .reference.neuron import check_reset

__all__ = [
    "LIF",
    "PLIF",
    "PRESETS",
    "fsvae",
    "gac",
    "ilif",
    "integrate_and_fire",
    "leaky",
    "ma_snn",
    "ms_resnet",
]

Constant = float | Tensor
NAMES = *CONSTANTS, "subtract"  # of what a neuron can learn
RULES = ("surrogate", "strict", "detach_reset", "emit", "start", "levels", "normalize", "backend")


class LIF(NotScripted, nn.Module):
    """The LIF family: h = (leak v + bias) + gain x; fire at the threshold; reset. `ops.lif` documents the
    equation.

    Constants are numbers, or tensors [C], one value a channel (dimension 2 of the input). Those named in
    `learn` become parameters: scalars, or [channels] where `channels` is given; an `nn.Parameter` is one, and
    stays the one it is. `v_reset` is None for the soft reset and "threshold" for a reset to the threshold
    itself, learned or not; `subtract` is what the soft reset takes off, None for the threshold. `levels` and
    `normalize` are for integer spikes (`ilif`).

    A constant [C] follows dimension 2: of tokens [T, N, L, C] a neuron alone would take L for it. In a
    `SpikingLayer` behind a linear layer it follows the last.
    """

    def __init__(
        self,
        *,
        leak: Constant = 1.0,
        gain: Constant = 1.0,
        bias: Constant = 0.0,
        threshold: Constant = 1.0,
        v_reset: Constant | str | None = 0.0,
        subtract: Constant | None = None,
        learn: Iterable[str] = (),
        channels: int | None = None,
        surrogate: Surrogate = rectangular(),  # noqa: B008  (a NamedTuple: immutable)
        strict: bool = False,
        detach_reset: bool = False,
        emit: str = "spike",
        start: str = "zero",
        levels: int | None = None,
        normalize: bool = False,
        backend: Backend = "auto",
    ):
        super().__init__()
        check_rules(surrogate, emit, start)
        if isinstance(v_reset, str) and v_reset != "threshold":
            raise ValueError(f"v_reset must be a number, a tensor, None or 'threshold', got {v_reset!r}")
        if isinstance(subtract, str):
            raise ValueError(f"subtract must be a number, a tensor or None, the threshold, got {subtract!r}")
        check_reset(v_reset, subtract)
        self._constants = dict(zip(NAMES, (leak, gain, bias, threshold, v_reset, subtract), strict=True))
        learn = _names(learn)
        for name in learn:
            if not isinstance(self._constants.get(name), int | float | Tensor):
                raise ValueError(
                    f"learn: {name!r} is not a constant with a value; they are {', '.join(NAMES)}"
                )
        for name, value in self._constants.items():
            if isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            elif name in learn:
                value = torch.as_tensor(value, dtype=torch.get_default_dtype()).detach().clone()
                if channels is not None:
                    value = value.expand(channels).clone()
                self.register_parameter(name, nn.Parameter(value))
            elif isinstance(value, Tensor):
                if value.requires_grad:
                    raise ValueError(f"{name} wants a gradient: name it in `learn`, or give an nn.Parameter")
                self.register_buffer(name, value)
        for name in (*self._parameters, *self._buffers):
            del self._constants[name]
        self.surrogate, self.strict, self.detach_reset = surrogate, strict, detach_reset
        self.emit, self.start, self.backend = emit, start, backend
        self.levels, self.normalize = levels, normalize
        learned = self._parameters.get("threshold")
        threshold = threshold if learned is None else learned
        check_levels(levels, normalize, threshold, v_reset is not None, strict, emit, surrogate)

    def constants(self) -> dict[str, Constant | None]:
        """The constants of the equation, as they are now."""
        # By their names, whoever holds them: parametrisations and replicas keep them elsewhere.
        fixed = self._constants
        values: dict[str, Any] = {
            name: fixed[name] if name in fixed else getattr(self, name) for name in NAMES
        }
        if isinstance(values["v_reset"], str):
            values["v_reset"] = values["threshold"]
        return values

    def arguments(self) -> dict[str, Any]:
        """The keywords with which `ops.lif` and `ops.seam` compute this neuron."""
        return {**self.constants(), **{name: getattr(self, name) for name in RULES}}

    def forward(
        self,
        x: Tensor,
        v0: Tensor | None = None,
        *,
        steps: int | None = None,
        final_state: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The emitted tensor, of x's shape and type, from the state v0 [N, ...] or from rest; with
        `final_state`, as `run`. `steps`: how many, where x [1, N, ...] is the same at each.
        """
        out, v = ops.lif(x, v0, steps=steps, final_state=final_state, **self.arguments())
        return (out, v) if final_state else out

    def run(self, x: Tensor, v0: Tensor | None = None, *, steps: int | None = None) -> tuple[Tensor, Tensor]:
        """(emitted, v): v [N, ...] continues the sequence, so that T cut in two gives the same bits as
        whole.
        """
        return ops.lif(x, v0, steps=steps, **self.arguments())

    def extra_repr(self) -> str:
        fixed = dict(self._constants.items())
        if fixed.get("subtract", 0) is None:  # the threshold, or no soft reset
            del fixed["subtract"]
        rules = {k: getattr(self, k) for k in ("strict", "detach_reset", "emit", "start")}
        rules |= {} if self.levels is None else {"levels": self.levels, "normalize": self.normalize}
        return ", ".join(f"{k}={v}" for k, v in {**fixed, "surrogate": self.surrogate.kind, **rules}.items())


class PLIF(LIF):
    """Parametric LIF (Fang et al., 2021): h = v + sigmoid(w) (x - (v - v_reset)), w learned, 1/tau =
    sigmoid(w).

    w is a scalar, or [channels]; `threshold` and `v_reset` may be tensors or learned as in LIF. Differs from
    the published text by the order of rounding only.
    """

    def __init__(
        self,
        tau: float = 2.0,
        threshold: Constant = 1.0,
        v_reset: Constant | str | None = 0.0,
        *,
        learn: Iterable[str] = (),
        channels: int | None = None,
        surrogate: Surrogate = arctan(),  # noqa: B008
        **kwargs: Any,
    ):
        _check_tau(tau)
        learn = _names(learn)
        fixed = set(learn) & {"leak", "gain", "bias"}
        if fixed:
            raise ValueError(
                f"learn: {', '.join(sorted(fixed))} of PLIF follow from w, which is learned anyway"
            )
        super().__init__(
            threshold=threshold,
            v_reset=v_reset,
            learn=learn,
            channels=channels,
            surrogate=surrogate,
            start="reset",
            **kwargs,
        )
        w = -torch.log(torch.tensor(tau - 1.0))  # sigmoid(w) = 1 / tau
        self.w = nn.Parameter(w if channels is None else w.expand(channels).clone())
        bias = 0.0 if v_reset is None else "v_reset sigmoid(w)"
        self._constants |= {"leak": "1 - sigmoid(w)", "gain": "sigmoid(w)", "bias": bias}  # as they are shown

    def constants(self) -> dict[str, Constant | None]:
        values = super().constants()
        return {**values, **parametric(self.w, values["v_reset"])}


def parametric(w: Tensor, v_reset: Constant | None) -> dict[str, Constant]:
    """leak, gain and bias of a neuron whose 1/tau is sigmoid(w)."""
    gain = torch.sigmoid(w)
    return {"leak": 1 - gain, "gain": gain, "bias": 0.0 if v_reset is None else v_reset * gain}


def _names(learn: Iterable[str]) -> tuple[str, ...]:
    """Of one name itself, not of its letters."""
    return (learn,) if isinstance(learn, str) else tuple(learn)


def _check_tau(tau: float) -> None:
    if isinstance(tau, Tensor) and tau.requires_grad:
        raise TypeError(
            'tau must be a number: a neuron that learns its time constant is PLIF(tau), or LIF(learn="leak")'
        )
    if not tau > 1:
        raise ValueError(f"tau must be greater than 1 step, got {tau!r}")


def integrate_and_fire(threshold: Constant = 1.0, v_reset: Constant | None = 0.0, **kwargs: Any) -> LIF:
    """IF: no leak; starts at v_reset (0 for the soft reset, None). SpikingJelly's `IFNode`."""
    return LIF(threshold=threshold, v_reset=v_reset, start="reset", **{"surrogate": arctan(), **kwargs})


def leaky(
    tau: float = 2.0,
    threshold: Constant = 1.0,
    v_reset: Constant | None = 0.0,
    *,
    decay_input: bool = True,
    **kwargs: Any,
) -> LIF:
    """LIF with time constant tau, SpikingJelly's `LIFNode`: h = v + (x - (v - v_reset)) / tau, or with
    `decay_input=False` h = v - (v - v_reset) / tau + x. Rest is v_reset (0 for the soft reset, None)."""
    _check_tau(tau)
    if isinstance(v_reset, str) or "v_reset" in _names(kwargs.get("learn", ())):
        raise ValueError(
            "v_reset of leaky is its rest too, a fixed number or tensor: use LIF for another reset"
        )
    return LIF(
        leak=1 - 1 / tau,
        gain=1 / tau if decay_input else 1.0,
        bias=0.0 if v_reset is None else v_reset / tau,
        threshold=threshold,
        v_reset=v_reset,
        start="reset",
        **{"surrogate": arctan(), **kwargs},
    )


MA_SNN_CONSTANTS = {"alpha": "leak", "beta": "bias", "threshold": "threshold"}  # its words for ours


def ma_snn(
    alpha: float = 0.3,
    beta: float = 0.0,
    threshold: float = 0.3,
    *,
    half_width: float = 0.25,
    learn: Iterable[str] = (),
    **kwargs: Any,
) -> LIF:
    """MA-SNN (Attention SNN, TPAMI 2023, released code): resets to the threshold, then decays by alpha, plus
    beta.

    The reset stays in the graph. `learn` takes "alpha", "beta", "threshold"; with `channels`, one a channel.
    """
    learn = _names(learn)
    unknown = set(learn) - set(MA_SNN_CONSTANTS)
    if unknown:
        names = ", ".join(MA_SNN_CONSTANTS)
        raise ValueError(f"learn: {', '.join(sorted(unknown))} unknown; MA-SNN learns {names}")
    return LIF(
        leak=alpha,
        bias=beta,
        threshold=threshold,
        v_reset="threshold",
        learn=[MA_SNN_CONSTANTS[name] for name in learn],
        **{"surrogate": rectangular(half_width), **kwargs},
    )


def ms_resnet(decay: float = 0.25, threshold: float = 0.5, **kwargs: Any) -> LIF:
    """MS-ResNet and Att-Res-SNN (`mem_update`): strict >, reset to 0 detached from the graph."""
    rules = {"strict": True, "detach_reset": True, "surrogate": rectangular(0.5)}
    return LIF(leak=decay, threshold=threshold, **{**rules, **kwargs})


def fsvae(decay: float = 0.25, threshold: float = 0.2, **kwargs: Any) -> LIF:
    """Fully spiking VAE: strict >, reset kept in the graph, window centred on 0, not on the threshold."""
    rules = {"strict": True, "surrogate": rectangular(0.5, centre=0.0)}
    return LIF(leak=decay, threshold=threshold, **{**rules, **kwargs})


def gac(decay: float = 0.5, threshold: float = 1.0, **kwargs: Any) -> LIF:
    """Gated attention coding (Qiu et al., 2024): strict >, reset to 0 kept in the graph, a triangle of
    half-width 1.
    """
    return LIF(leak=decay, threshold=threshold, **{"strict": True, "surrogate": triangle(1.0), **kwargs})


def ilif(leak: float = 0.25, levels: int = 4, threshold: Constant = 1.0, **kwargs: Any) -> LIF:
    """I-LIF (Luo et al., SpikeYOLO, 2024; Yao et al., Spike-driven Transformer V3, 2025): fires integers from
    0 to `levels`, soft reset detached. `normalize=True` emits them divided by the levels.

    In inference an integer n is n spikes one after another; what such a step costs is counted so.
    """
    rules = {"v_reset": None, "detach_reset": True, **kwargs}
    return LIF(leak=leak, threshold=threshold, levels=levels, **rules)


# Those that fire or do not: of these every constant can be learned and every value emitted, not so of `ilif`.
PRESETS: dict[str, Callable[..., LIF]] = {
    "integrate_and_fire": integrate_and_fire,
    "leaky": leaky,
    "plif": PLIF,
    "ma_snn": ma_snn,
    "ms_resnet": ms_resnet,
    "fsvae": fsvae,
    "gac": gac,
}
