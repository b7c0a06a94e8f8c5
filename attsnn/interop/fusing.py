"""A batch norm and the neuron after it as one op, while the network calls both as before."""

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attsnn import ops
from attsnn.attention import as_made
from attsnn.layers.normed import norm_of, update

if TYPE_CHECKING:
    from .exchange import Stateful


def reason_against(name: str, norm: nn.Module, neuron: Any) -> str | None:
    """Why a norm and the neuron that reads it stay two ops, in words; None if one op can do it."""
    if not as_made(norm, type(norm)):
        return f"{name} has hooks or a forward of its own"
    if not as_made(neuron, type(neuron)):
        return "it has hooks"
    return None


def _in_backward() -> bool:
    """Whether a backward pass is running, determined as torch.utils.checkpoint does it."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() >= 0


class Chain:
    """A norm that passes its input on, and the neuron that normalises it.

    At each call the norm asks whether it may pass its input on, and the neuron asks whether it did. What the
    user changes meanwhile (hooks, another mode, another surrogate, a copy of one of the two) makes both
    compute by themselves. `last` says whether the neuron reads channels last, [T, N, ..., C], instead of
    [T, N, C, ...].

    Checkpointing calls one of the two, or both, again in a backward pass. A norm that is called alone there
    passes its input to no neuron. A neuron that is called alone there reads what it read before, and leaves
    the running statistics as they are.
    """

    def __init__(self, names: tuple[str, str], norm: nn.Module, neuron: "Stateful", last: bool):
        self.names, self.neuron, self.last = names, neuron, last
        self.norm = cast(_BatchNorm, norm)  # or the peer's class of that name
        self.modes = self._modes()
        self.handed = False  # what the neuron reads next
        self.before = False  # what it read in the last forward pass
        self.again = False  # whether it was passed on in a backward pass
        self.updates = True

    def _modes(self) -> tuple[str | None, bool]:
        return getattr(self.norm, "step_mode", None), self.neuron.takes_sequences()

    def open(self, norm: nn.Module) -> bool:
        """Whether the norm may now pass on its input; if so, that is noted."""
        if self.handed and not self.again:
            self.handed = False
            raise RuntimeError(
                f"{self.names[1]} has not read what {self.names[0]} handed on to it when it was last called: "
                "the network has changed since accelerate(), or that call failed. Call the report's "
                "restore(), then accelerate() again."
            )
        neuron, self.again = self.neuron, _in_backward()
        self.handed = (
            norm is self.norm
            and neuron._chain is self
            and not (norm.training and not self.modes[1])
            and self._modes() == self.modes
            and as_made(norm, type(norm))
            and as_made(neuron, type(neuron))
            and neuron._ours() is not None
        )
        return self.handed

    def take(self, neuron: nn.Module) -> bool:
        """Whether what the neuron reads was passed on by the norm."""
        if neuron is not self.neuron:
            return False
        alone = not self.handed and _in_backward()
        handed, self.handed = self.before if alone else self.handed, False
        self.before, self.updates = handed, not alone
        return handed

    def seam(self, x: Tensor, v0: Tensor | None, ours: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """(Spikes, state) of x [T, N, ...], which is not normalised yet, for a
        neuron with these constants.
        """
        if self.last:
            x, v0 = x.movedim(-1, 2), None if v0 is None else v0.movedim(-1, 1)
        found = ops.seam(x, norm=norm_of(self.norm), v0=v0, **ours)
        if self.updates:
            update(self.norm, found, x, "auto")
        assert found.v is not None
        if self.last:
            return found.out.movedim(2, -1), found.v.movedim(1, -1)
        return found.out, found.v
