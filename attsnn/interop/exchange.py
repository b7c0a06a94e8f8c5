"""Neurons of other packages that compute with our kernels. They stay the same objects; their class is
exchanged for a subclass of it that overrides only the steps.

So parameters, keys of the state dict, hooks, the state, `isinstance` and the functions that find modules by
it (`reset_net`, `set_step_mode`, snnTorch's `utils.reset`) work by construction. No package is imported:
classes are recognised by their exact names.
"""

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex

import torch
from torch import Tensor, nn

from attsnn import neurons, ops
from attsnn.reference import Surrogate, state_dtype

from .fusing import Chain
from .surrogates import surrogate_of

V2 = "spikingjelly.activation_based.neuron."  # 2.0: a file a neuron
V1 = "spikingjelly.activation_based.neuron"  # 0.0.0.0.13 and 14
V0 = "spikingjelly.clock_driven.neuron"  # 0.0.0.0.10 to 14
NUMBERS = "tau", "v_threshold", "v_reset"  # their names of the constants
FLAGS = "decay_input", "detach_reset"


class Kind(NamedTuple):
    """What is done with a class: the name shown for it, the function that computes its constants (the
    keywords of `ops.lif`), and its steps.
    """

    shown: str
    constants: Callable[[Any], dict[str, Any]]
    steps: "type[Exchanged]"

    def read(self, module: Any) -> dict[str, Any] | str:
        """The constants of a neuron as they are now; or in words why it computes by itself."""
        if getattr(module, "store_v_seq", False):
            return "it stores the membrane of every step (store_v_seq=True)"
        if getattr(module, "_neuron_precision", None) is not None:
            return "it computes in a precision of its own"
        if getattr(module, "backend", None) == "lava":
            return "lava computes it"
        for name in NUMBERS:
            value = getattr(module, name, None)
            if not isinstance(value, int | float | None):
                return f"its {name} is a {type(value).__name__}, not a number"
            if value is not None and not math.isfinite(value):
                return f"its {name} is {value}"
        w = getattr(module, "w", None)
        if isinstance(w, Tensor) and w.numel() != 1:
            return f"its w has {w.numel()} values, not one"
        try:
            return self.constants(module)
        except (TypeError, ValueError) as error:
            return str(error)
        except AttributeError as error:
            return f"it is of a version that is not served ({error})"


# ---- constants: the keywords of `ops.lif`
# ------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1024)
def _leaky(
    tau: float,
    v_threshold: float,
    v_reset: float | None,
    decay_input: bool,
    detach_reset: bool,
    surrogate: Surrogate,
) -> dict[str, Any]:
    rules: dict[str, Any] = {"detach_reset": detach_reset, "surrogate": surrogate}
    return neurons.leaky(tau, v_threshold, v_reset, decay_input=decay_input, **rules).arguments()


@functools.lru_cache(maxsize=1024)
def _integrating(
    v_threshold: float, v_reset: float | None, detach_reset: bool, surrogate: Surrogate
) -> dict[str, Any]:
    rules: dict[str, Any] = {"detach_reset": detach_reset, "surrogate": surrogate}
    return neurons.integrate_and_fire(v_threshold, v_reset, **rules).arguments()


def _kept(function: "functools._lru_cache_wrapper[dict[str, Any]]", *values: Any) -> dict[str, Any]:
    """function(*values), from its cache; torch.compile needs the function itself."""
    return function.__wrapped__(*values) if torch.compiler.is_compiling() else function(*values)


def leaky(m: Any) -> dict[str, Any]:
    values = [getattr(m, name) for name in (*NUMBERS, *FLAGS)]
    return _kept(_leaky, *values, surrogate_of(m.surrogate_function))


def integrating(m: Any) -> dict[str, Any]:
    return _kept(_integrating, m.v_threshold, m.v_reset, m.detach_reset, surrogate_of(m.surrogate_function))


def parametric(m: Any) -> dict[str, Any]:
    learned = neurons.parametric(m.w, m.v_reset)
    return {**integrating(m), **learned, **({} if m.decay_input else {"gain": 1.0})}


def comparing(m: Any) -> dict[str, Any]:
    """The constants of a neuron that fires if it is above the threshold."""
    return {"surrogate": surrogate_of(m.spike_grad)}


# ---- steps
# ------------------------------------------------------------------------------------------


if TYPE_CHECKING:

    class _Theirs(nn.Module):
        """What the classes that are exchanged have, taken together."""

        v: Any  # a number at rest
        v_threshold: float
        step_mode: str
        mem: Tensor
        threshold: Tensor
        _memories: dict[str, Any]

        def __getstate__(self) -> object: ...
        def __setstate__(self, state: Any) -> None: ...
        def forward(self, *args: Any) -> Tensor: ...
        def single_step_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor: ...
        def multi_step_forward(self, x_seq: Tensor, *args: Any, **kwargs: Any) -> Tensor: ...
        def mem_reset(self, mem: Tensor) -> Tensor: ...
        def functional_forward(self, *args: Any, **kwargs: Any) -> Any: ...

else:
    _Theirs = object


class Exchanged(_Theirs):
    """What all exchanged classes have.

    `_theirs` is the class of the peer that a module had, whose steps are replaced by those of `_steps`;
    `_chain` is what it is fused with.
    """

    _theirs: type
    _steps: "type[Exchanged]"
    _chain: Chain | None = None

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        state = self.__getstate__() if hasattr(type(self), "__getstate__") else self.__dict__
        return _made_again, (self._theirs, self._steps), state

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        if self._chain is not None:
            self._chain.join(self)

    def give_back(self) -> None:
        """Gives the module its former class back, under a parametrisation's class too."""
        self.__dict__.pop("_chain", None)
        own, theirs = exchanged(self._theirs, self._steps), self._theirs
        if type(self) is own:
            self.__class__ = theirs
        else:
            kind = type(self)  # made for this module alone
            kind.__bases__ = tuple(theirs if base is own else base for base in kind.__bases__)

    def _ours(self, *given: Any) -> dict[str, Any] | None:
        """The neuron's constants as they are now; None if it has become a neuron that is kept, or is given
        something else than one tensor of floats.
        """
        if given and not (len(given) == 1 and given[0].is_floating_point()):
            return None
        constants = KINDS[names_of(self._theirs)].read(self)
        return None if isinstance(constants, str) else constants


def _made_again(theirs: type, steps: type[Exchanged]) -> Exchanged:
    """An object for a copy or a pickle, before it gets its state."""
    own = exchanged(theirs, steps)
    return own.__new__(own)


class Stateful(Exchanged):
    """SpikingJelly's neurons, whose state is `v`."""

    def _stepped(self, x: Tensor, ours: dict[str, Any]) -> Tensor:
        """Steps x [T, N, ...] from the state, which continues, in the graph."""
        if not x.is_contiguous() and not _channels_last(x):
            x = x.contiguous()  # as what theirs returns is, of which users take views
        if self._chain is not None and self._chain.take(self):
            out, self.v = self._chain.seam(x, _state(self, x), ours)
        else:
            out, self.v = ops.lif(x, _state(self, x), **ours)
        return out

    def distances(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """The distances of the membrane to the threshold, for what the module takes. The state stays."""
        (x,) = (*args, *kwargs.values())
        ours = self._ours()
        assert ours is not None  # neurons that were chosen have constants
        sequence = x if self.takes_sequences() else x[None]
        sequence = sequence if x.is_floating_point() else sequence.double()
        how = {**ours, "emit": "membrane", "final_state": False}
        found: Tensor = ops.lif(sequence, _state(self, sequence), **how)[0] - self.v_threshold
        return found if self.takes_sequences() else found[0]

    def takes_sequences(self) -> bool:
        """Whether it takes [T, N, ...] rather than a single step."""
        return self.step_mode == "m"


class SpikingJellySteps(Stateful):
    """`single_step_forward` and `multi_step_forward`, by which modules of 0.0.0.0.13 and later step."""

    def single_step_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        ours = self._ours(x, *args, *kwargs.values())
        if ours is None:
            return super().single_step_forward(x, *args, **kwargs)
        return self._stepped(x[None], ours)[0]

    def multi_step_forward(self, x_seq: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        ours = self._ours(x_seq, *args, *kwargs.values())
        if ours is None:
            return super().multi_step_forward(x_seq, *args, **kwargs)
        return self._stepped(x_seq, ours)

    def functional_forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._chain is not None and self._chain.take(self):
            raise RuntimeError(
                f"{self._chain.names[1]}: functional_forward cannot read what {self._chain.names[0]} hands "
                "on: call the report's restore(), or accelerate(..., fuse=False)"
            )
        return super().functional_forward(*args, **kwargs)


class ClockSteps(Stateful):
    """A neuron of `clock_driven` that takes a step [N, ...]."""

    def forward(self, x: Tensor) -> Tensor:
        ours = self._ours(x)
        return super().forward(x) if ours is None else self._stepped(x[None], ours)[0]

    def takes_sequences(self) -> bool:
        return False


class ClockSequences(Stateful):
    """A neuron of `clock_driven` that takes a sequence [T, N, ...]."""

    def forward(self, x_seq: Tensor) -> Tensor:
        ours = self._ours(x_seq)
        return super().forward(x_seq) if ours is None else self._stepped(x_seq, ours)

    def takes_sequences(self) -> bool:
        return True

    @property
    def v_seq(self) -> Any:
        """The membrane of every step, which the original stores at each call, and ours does not."""
        if self._ours() is None:
            return self._memories["v_seq"]
        raise RuntimeError(  # of an AttributeError, nn.Module would look for the value of an earlier call
            "v_seq: a neuron after attsnn.accelerate() does not store the membrane of every step; call the "
            "report's restore()"
        )


def _channels_last(x: Tensor) -> bool:
    """Whether the steps of x are maps in the channels-last layout, which ours keep."""
    return x.dim() == 5 and x.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


def _state(m: Any, x: Tensor) -> Tensor | None:
    """The state `m.v` for input x; None at rest."""
    v, shape, dtype = m.v, x.shape[1:], state_dtype(x)
    rest = 0.0 if m.v_reset is None else m.v_reset
    if not isinstance(v, Tensor):
        return None if v == rest else torch.full(shape, v, dtype=dtype, device=x.device)
    if v.shape != shape and type(m)._theirs.__module__.startswith(V2):
        return None  # 2.0 starts from rest if the batch has another size
    return v.to(dtype=dtype, device=x.device).expand(shape)


class SnnTorchSteps(Exchanged):
    """`snntorch.Leaky`, whose step belongs to the user. Only its reset, which has no gradient, becomes a
    plain comparison. Firing by an op of one step was tried and is slower.
    """

    def mem_reset(self, mem: Tensor) -> Tensor:
        # The compiler fuses theirs, and cannot see through the surrogate.
        if torch.compiler.is_compiling() or self._ours() is None:
            return super().mem_reset(mem)
        return (mem.detach() > self.threshold.detach()).float()  # as theirs, whatever the membrane's type

    def distances(self, *args: Any, **kwargs: Any) -> Tensor:
        """The distances of the membrane to the threshold, for what the module takes. The state stays."""
        before = self.mem
        self.forward(*args, **kwargs)
        found, self.mem = self.mem - self.threshold, before
        return found


class HandsOn(Exchanged):
    """A batch norm that leaves its work to the neuron after it, where that neuron can do it."""

    def forward(self, x: Tensor) -> Tensor:
        if self._chain is not None and self._chain.open(self, x):
            return x
        return super().forward(x)


# ---- which
# ------------------------------------------------------------------------------------------

KINDS: dict[tuple[str, str], Kind] = {
    (f"{V2}integrate_and_fire", "IFNode"): Kind("IF", integrating, SpikingJellySteps),
    (f"{V2}lif", "LIFNode"): Kind("LIF", leaky, SpikingJellySteps),
    (f"{V2}plif", "ParametricLIFNode"): Kind("PLIF", parametric, SpikingJellySteps),
    (V1, "IFNode"): Kind("IF", integrating, SpikingJellySteps),
    (V1, "LIFNode"): Kind("LIF", leaky, SpikingJellySteps),
    (V1, "ParametricLIFNode"): Kind("PLIF", parametric, SpikingJellySteps),
    (V0, "IFNode"): Kind("IF", integrating, ClockSteps),
    (V0, "LIFNode"): Kind("LIF", leaky, ClockSteps),
    (V0, "ParametricLIFNode"): Kind("PLIF", parametric, ClockSteps),
    (V0, "MultiStepIFNode"): Kind("IF", integrating, ClockSequences),
    (V0, "MultiStepLIFNode"): Kind("LIF", leaky, ClockSequences),
    (V0, "MultiStepParametricLIFNode"): Kind("PLIF", parametric, ClockSequences),
    ("snntorch._neurons.leaky", "Leaky"): Kind("comparison for the reset", comparing, SnnTorchSteps),
}
NORMS = {  # norms whose statistics are those of their whole input
    ("torch.nn.modules.batchnorm", "BatchNorm1d"),
    ("torch.nn.modules.batchnorm", "BatchNorm2d"),
    ("spikingjelly.activation_based.layer.bn", "BatchNorm1d"),
    ("spikingjelly.activation_based.layer.bn", "BatchNorm2d"),
    ("spikingjelly.activation_based.layer", "BatchNorm1d"),
    ("spikingjelly.activation_based.layer", "BatchNorm2d"),
}
PEERS = ("spikingjelly", "snntorch", "norse")


def name_of(kind: type) -> str:
    return f"{kind.__module__.split('.')[0]}'s {kind.__qualname__}"


def kind_of(module: nn.Module) -> Kind | None:
    """What a module is by its exact class."""
    return KINDS.get(names_of(type(module)))


def names_of(kind: type) -> tuple[str, str]:
    """The names by which a class is recognised."""
    return kind.__module__, kind.__qualname__


def reason_to_keep(module: Any, kind: Kind) -> str | None:
    """Why a neuron of the table is not exchanged, in words; None if it can be."""
    if "forward" in module.__dict__:
        return "it has a forward of its own"
    found = kind.read(module)
    if isinstance(found, str):
        return found
    return _reason_of_leaky(module) if hasattr(module, "spike_grad") else None


def _reason_of_leaky(m: Any) -> str | None:
    """The same of snnTorch's neuron, whose steps stay as they are."""
    if m.surrogate_disable:
        return "it has no surrogate (surrogate_disable=True)"
    if m.inhibition:
        return "its neurons inhibit each other"
    if m.state_quant:
        return "its state is quantised"
    if m.graded_spikes_factor.requires_grad or bool((m.graded_spikes_factor != 1).any()):
        return "its spikes are graded"
    return None


def _exchanged(theirs: type, steps: type) -> type[Exchanged]:
    """The subclass of a class that takes its steps in our way."""
    own = {"__module__": __name__, "__doc__": theirs.__doc__, "_theirs": theirs, "_steps": steps}
    return type(theirs.__name__, (steps, theirs), own)


# Not a decorator, with which mypy would not take a class for something that can be hashed.
exchanged: Callable[[type, type], type[Exchanged]] = functools.cache(_exchanged)
