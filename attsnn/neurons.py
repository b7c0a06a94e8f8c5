"""Neurons as modules: `LIF` is the whole family; the presets are its members from papers and libraries.

A module keeps no state between calls, so there is nothing to reset: the membrane comes in as `v0`, and `run`
returns it. Inputs are [T, N, C, H, W], [T, N, F] or [T, N].
"""

from collections.abc import Callable, Iterable
from numbers import Real
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
NAMES = *CONSTANTS, "subtract"  # the constants that a neuron can learn
RULES = ("surrogate", "strict", "detach_reset", "emit", "start", "levels", "normalize", "backend")


class LIF(NotScripted, nn.Module):
    """The LIF family: charge h = (leak v + bias) + gain x, fire at the threshold, reset.

    `attsnn.ops.lif` documents the equation.

    Args:
        leak: factor on v: a number, or a tensor [C] with one value per channel (dimension 2 of the input).
            An `nn.Parameter` is learned, and stays the same object.
        gain: factor on x, in the same forms as leak.
        bias: summand, in the same forms as leak.
        threshold: where the neuron fires, in the same forms as leak.
        v_reset: where the hard reset sets v, in the same forms as leak; "threshold": to the threshold
            itself, learned or not; None: the soft reset.
        subtract: what the soft reset takes off, in the same forms as leak; None: the threshold.
        learn: names of the constants that become parameters: scalars, or [channels] if `channels` is given.
        channels: C, for the constants in `learn`.
        surrogate, strict, detach_reset, emit, start, backend: as in `attsnn.ops.lif`.
        levels, normalize: for integer spikes (`ilif`), as in `attsnn.ops.lif`.

    Raises:
        TypeError, ValueError: for constants and rules that do not fit together; the message names the
            argument.

    A neuron alone takes dimension 2 for the channels, which is L in tokens [T, N, L, C]. In an
    `attsnn.layers.SpikingLayer` after a linear layer, constants [C] follow the last dimension.
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
        self._constants = dict(zip(NAMES, (leak, gain, bias, threshold, v_reset, subtract), strict=True))
        for name, value in self._constants.items():
            _check_constant(name, value)
        check_reset(v_reset, subtract)
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
        """The constants of the equation by name, as they are now."""
        # As attributes, because parametrisations and replicas keep them elsewhere.
        fixed = self._constants
        values: dict[str, Any] = {
            name: fixed[name] if name in fixed else getattr(self, name) for name in NAMES
        }
        if isinstance(values["v_reset"], str):
            values["v_reset"] = values["threshold"]
        return values

    def arguments(self) -> dict[str, Any]:
        """The keywords with which `attsnn.ops.lif` and `attsnn.ops.seam` compute this neuron."""
        return {**self.constants(), **{name: getattr(self, name) for name in RULES}}

    def forward(
        self,
        x: Tensor,
        v0: Tensor | None = None,
        *,
        steps: int | None = None,
        final_state: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Runs the neuron through all steps.

        Args:
            x: input current [T, N, ...], or [1, N, ...] with `steps`.
            v0: the state [N, ...] to start from; None: at rest.
            steps: T, if x [1, N, ...] is the same at every step.
            final_state: return (emitted, v), as `run` does.

        Returns:
            What is emitted, [T, N, ...] of x's type.
        """
        out, v = ops.lif(x, v0, steps=steps, final_state=final_state, **self.arguments())
        return (out, v) if final_state else out

    def run(self, x: Tensor, v0: Tensor | None = None, *, steps: int | None = None) -> tuple[Tensor, Tensor]:
        """Runs the neuron and returns (emitted, v).

        v [N, ...] continues the sequence as the next v0: a sequence in two parts has the same bits as the
        whole.
        """
        return ops.lif(x, v0, steps=steps, **self.arguments())

    def extra_repr(self) -> str:
        """For `repr`: the fixed constants and the rules."""
        fixed = dict(self._constants.items())
        if fixed.get("subtract", 0) is None:  # it is the threshold, or the reset is hard
            del fixed["subtract"]
        rules = {k: getattr(self, k) for k in ("strict", "detach_reset", "emit", "start")}
        rules |= {} if self.levels is None else {"levels": self.levels, "normalize": self.normalize}
        return ", ".join(f"{k}={v}" for k, v in {**fixed, "surrogate": self.surrogate.kind, **rules}.items())


class PLIF(LIF):
    """Parametric LIF (Fang et al., 2021): h = v + sigmoid(w) (x - (v - v_reset)), where w is learned.

    1/tau is sigmoid(w), and w is a scalar or [channels]. It differs from the published text only in the
    order of rounding.

    Args:
        tau: the time constant at the start, in steps, greater than 1.
        threshold, v_reset: as in `LIF`.
        learn: as in `LIF`, but not leak, gain and bias, which follow from w.
        channels, surrogate: as in `LIF`.
        kwargs: other keywords of `LIF`.

    Raises:
        TypeError, ValueError: for a tau that is learned or not greater than 1, and as `LIF`.
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
        self._constants |= {"leak": "1 - sigmoid(w)", "gain": "sigmoid(w)", "bias": bias}  # for extra_repr

    def constants(self) -> dict[str, Constant | None]:
        values = super().constants()
        return {**values, **parametric(self.w, values["v_reset"])}


def parametric(w: Tensor, v_reset: Constant | None) -> dict[str, Constant]:
    """leak, gain and bias of a neuron whose 1/tau is sigmoid(w)."""
    gain = torch.sigmoid(w)
    return {"leak": 1 - gain, "gain": gain, "bias": 0.0 if v_reset is None else v_reset * gain}


def _names(learn: Iterable[str]) -> tuple[str, ...]:
    """The names as a tuple. A string is one name, not its letters."""
    return (learn,) if isinstance(learn, str) else tuple(learn)


OTHERWISE = {"v_reset": (None, "threshold"), "subtract": (None,)}  # what else a constant can be


def _check_constant(name: str, value: Any) -> None:
    """Raises for a constant that is neither a number nor a tensor, nor what else it can be."""
    other = OTHERWISE.get(name, ())
    if not isinstance(value, Real | Tensor) and not (isinstance(value, str | None) and value in other):
        *most, last = "a number", "a tensor", *map(repr, other)
        raise ValueError(f"{name} must be {', '.join(most)} or {last}, got {value!r}")


def _check_tau(tau: float) -> None:
    _check_constant("tau", tau)
    if isinstance(tau, Tensor) and tau.requires_grad:
        raise TypeError(
            'tau must be a number: a neuron that learns its time constant is PLIF(tau), or LIF(learn="leak")'
        )
    if not tau > 1:
        raise ValueError(f"tau must be greater than 1 step, got {tau!r}")


def integrate_and_fire(threshold: Constant = 1.0, v_reset: Constant | None = 0.0, **kwargs: Any) -> LIF:
    """IF: no leak. It starts at v_reset, or at 0 with the soft reset (None). SpikingJelly's `IFNode`.

    `kwargs` are keywords of `LIF`.
    """
    return LIF(threshold=threshold, v_reset=v_reset, start="reset", **{"surrogate": arctan(), **kwargs})


def leaky(
    tau: float = 2.0,
    threshold: Constant = 1.0,
    v_reset: Constant | None = 0.0,
    *,
    decay_input: bool = True,
    **kwargs: Any,
) -> LIF:
    """LIF with the time constant tau, in steps, greater than 1. SpikingJelly's `LIFNode`.

    h = v + (x - (v - v_reset)) / tau, or with `decay_input=False` h = v - (v - v_reset) / tau + x. It starts
    and rests at v_reset, or at 0 with the soft reset (None). `kwargs` are keywords of `LIF`.

    Raises:
        ValueError: for tau <= 1, and for a v_reset that is learned or "threshold".
        TypeError: for a tau that is learned.
    """
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


MA_SNN_CONSTANTS = {"alpha": "leak", "beta": "bias", "threshold": "threshold"}  # its names: ours


def ma_snn(
    alpha: float = 0.3,
    beta: float = 0.0,
    threshold: float = 0.3,
    *,
    half_width: float = 0.25,
    learn: Iterable[str] = (),
    **kwargs: Any,
) -> LIF:
    """MA-SNN (Attention SNN, TPAMI 2023, released code): resets to the threshold, then decays.

    h = (alpha v + beta) + x, and v is the threshold after a spike. The reset stays in the graph.

    Args:
        alpha: the leak.
        beta: the bias.
        threshold: where the neuron fires, and what v is reset to.
        half_width: of the rectangular surrogate.
        learn: any of "alpha", "beta" and "threshold"; with `channels`, one value per channel.
        kwargs: keywords of `LIF`.

    Raises:
        ValueError: for other names in `learn`.
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
    """MS-ResNet (Hu et al., 2021) and Att-Res-SNN (`mem_update`): leak `decay`, strict >, reset to 0.

    The reset is detached from the graph. `kwargs` are keywords of `LIF`.
    """
    rules = {"strict": True, "detach_reset": True, "surrogate": rectangular(0.5)}
    return LIF(leak=decay, threshold=threshold, **{**rules, **kwargs})


def fsvae(decay: float = 0.25, threshold: float = 0.2, **kwargs: Any) -> LIF:
    """Fully spiking VAE (Kamata et al., AAAI 2022): leak `decay`, strict >, reset to 0.

    The reset stays in the graph. The surrogate's window is centred on 0, not on the threshold. `kwargs` are
    keywords of `LIF`.
    """
    rules = {"strict": True, "surrogate": rectangular(0.5, centre=0.0)}
    return LIF(leak=decay, threshold=threshold, **{**rules, **kwargs})


def gac(decay: float = 0.5, threshold: float = 1.0, **kwargs: Any) -> LIF:
    """Gated attention coding (Qiu et al., 2024): leak `decay`, strict >, reset to 0.

    The reset stays in the graph. The surrogate is a triangle of half-width 1. `kwargs` are keywords of
    `LIF`.
    """
    return LIF(leak=decay, threshold=threshold, **{"strict": True, "surrogate": triangle(1.0), **kwargs})


def ilif(leak: float = 0.25, levels: int = 4, threshold: Constant = 1.0, **kwargs: Any) -> LIF:
    """I-LIF: fires integers from 0 to `levels`, with a soft reset that is detached from the graph.

    With `normalize=True` it emits them divided by `levels`. In inference an integer n stands for n spikes
    one after another, and costs are counted that way. `kwargs` are keywords of `LIF`.

    Sources: Luo et al., SpikeYOLO, 2024; Yao et al., Spike-driven Transformer V3, 2025.
    """
    rules = {"v_reset": None, "detach_reset": True, **kwargs}
    return LIF(leak=leak, threshold=threshold, levels=levels, **rules)


# The presets of binary spikes: every constant can be learned and every `emit` works, unlike in `ilif`.
PRESETS: dict[str, Callable[..., LIF]] = {
    "integrate_and_fire": integrate_and_fire,
    "leaky": leaky,
    "plif": PLIF,
    "ma_snn": ma_snn,
    "ms_resnet": ms_resnet,
    "fsvae": fsvae,
    "gac": gac,
}
