"""Networks that stream: each neuron continues from the state that the chunk before left."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attsnn.attention import GATES, PFA, Attention, PrunedAttention, as_made
from attsnn.neurons import LIF

from .spiking import SpikingLayer

State = tuple[Tensor, ...]  # one for each layer of neurons, in the order in which they run


def plainly(layer: nn.Module, *inputs: Any, **how: Any) -> Any:
    """Calls a layer: `layer(*inputs, **how)`. A `Stream` takes its place in a network that streams."""
    return layer(*inputs, **how)


class Stream:
    """Calls layers, and lets each neuron continue from the state that it left in the chunk before.

    A module of several layers takes part by a method `walk(call, *inputs)` that calls each of them by
    `call`; its `forward` is `walk(plainly, *inputs)`. An `nn.Sequential` needs no `walk`. A call raises
    ValueError for any other module with neurons inside, for hooks on a module whose layers are called, and
    for a state of too few tensors.

    Args:
        state: what `state` was after the chunk before; None: at rest.
    """

    def __init__(self, state: State | None):
        self.before = state
        self.after: list[Tensor] = []

    def __call__(self, layer: nn.Module, *inputs: Any, **how: Any) -> Any:
        own = "forward" in layer.__dict__  # it may take no state
        if not own and type(layer).forward in (SpikingLayer.forward, LIF.forward):
            *out, v = layer(*inputs, v0=self._next(), final_state=True, **how)
            self.after.append(v)
            return out[0] if len(out) == 1 else tuple(out)
        walk: Callable[..., Any] | None = getattr(layer, "walk", None)
        kind = type(layer).__name__
        if (walk is not None or isinstance(layer, nn.Sequential)) and not as_made(layer, type(layer)):
            raise ValueError(
                f"run(): hooks of {kind} would not run, for its layers are called: hang them on those"
            )
        if walk is not None:
            return walk(self, *inputs, **how)
        if isinstance(layer, nn.Sequential) and type(layer).forward is nn.Sequential.forward:
            (x,) = inputs
            for part in layer:
                x = self(part, x)
            return x
        if any(isinstance(part, LIF) for part in layer.modules()):
            raise ValueError(
                f"run(): {kind} has neurons whose state it does not hand on: give it a walk(call, x)"
            )
        return layer(*inputs, **how)

    def _next(self) -> Tensor | None:
        if self.before is None:
            return None
        if len(self.after) == len(self.before):
            raise ValueError(
                f"state: has {len(self.before)} tensors, this network has more layers of neurons"
            )
        return self.before[len(self.after)]

    @property
    def state(self) -> State:
        """What the next chunk starts from. Raises ValueError if the state before had too many tensors."""
        if self.before is not None and len(self.before) != len(self.after):
            raise ValueError(
                f"state: has {len(self.before)} tensors, this network has {len(self.after)} layers of neurons"
            )
        return tuple(self.after)


WINDOWS = (Attention, PrunedAttention, PFA, *GATES)  # their weights follow from a whole window


def streamed(
    network: nn.Module, walk: Callable[..., Tensor], state: State | None, *inputs: Any, **how: Any
) -> tuple[Tensor, State]:
    """Runs one chunk of a sequence; a network's `run` calls it.

    Args:
        network: the network, in evaluation mode.
        walk: walk(call, inputs...) calls the network's layers by `call`.
        state: what the chunk before returned; None: at rest.
        inputs: further arguments of `walk`.
        how: keywords of `walk`.

    Returns:
        A pair (out, state), which is what `walk` returned, and the state after it.

    Raises:
        ValueError: for a network in training mode, with gates, or with norms that have no running
            statistics, because chunks of it would not add up to the whole. Also for a state with another
            number of tensors.
        TypeError: for a state that is no tuple of tensors.
    """
    for name, module in network.named_modules():
        if module.training:
            raise ValueError(
                f"run() wants evaluation mode ({name or 'the network'} is in training): call eval()"
            )
        if isinstance(module, WINDOWS):
            raise ValueError(
                f"run(): {name} ({type(module).__name__}) weighs steps, channels or pixels by a whole "
                "window, of which a chunk is a part: take attention=None, or whole windows"
            )
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise ValueError(f"run(): {name} has no running statistics, and would take those of the chunk")
    if state is not None and not (
        isinstance(state, tuple | list) and all(isinstance(v, Tensor) for v in state)
    ):
        raise TypeError(f"state must be what run() returned, a tuple of tensors, got {type(state).__name__}")
    stream = Stream(state)
    out = walk(stream, *inputs, **how)
    return out, stream.state
