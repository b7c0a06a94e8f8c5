"""Networks that go on where they stopped: each neuron from the state that the chunk before left."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attsnn.attention import GATES, PFA, Attention, PrunedAttention, as_made
from attsnn.neurons import LIF

from .spiking import SpikingLayer

State = tuple[Tensor, ...]  # of every neuron layer, in the order in which they run


def plainly(layer: nn.Module, *inputs: Any, **how: Any) -> Any:
    """Calls a layer: what `Stream` stands in the place of."""
    return layer(*inputs, **how)


class Stream:
    """Calls layers, each neuron from the state that it left in the chunk before.

    A module of several layers takes part by `walk(call, *inputs)`, which calls each of them by `call`; its
    `forward` is `walk(plainly, *inputs)`. An `nn.Sequential` needs none.
    """

    def __init__(self, state: State | None):
        self.before = state
        self.after: list[Tensor] = []

    def __call__(self, layer: nn.Module, *inputs: Any, **how: Any) -> Any:
        own = "forward" in layer.__dict__  # which need not take a state
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
        """What the next chunk starts from."""
        if self.before is not None and len(self.before) != len(self.after):
            raise ValueError(
                f"state: has {len(self.before)} tensors, this network has {len(self.after)} layers of neurons"
            )
        return tuple(self.after)


WINDOWS = (Attention, PrunedAttention, PFA, *GATES)  # they weigh all steps of a window by all of them


def streamed(
    network: nn.Module, walk: Callable[..., Tensor], state: State | None, *inputs: Any, **how: Any
) -> tuple[Tensor, State]:
    """(walk(call, *inputs), the state behind it), for a network's `run`.

    Raises ValueError for a network in training mode, with gates, or with norms that have no running
    statistics: of those a chunk would not be a part of the whole.
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
