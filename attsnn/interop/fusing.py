"""A batch norm and the neuron after it as one op, while the network calls both as before."""

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attsnn import ops
from attsnn.attention import as_made
from attsnn.layers.normed import norm_of, update

from .finding import Link

if TYPE_CHECKING:
    from .exchange import Stateful


def _untouched(module: nn.Module) -> bool:
    """Whether a module has no hooks, and the forward of its class."""
    return as_made(module, type(module))


def reason_against(link: Link, modules: dict[str, nn.Module], neuron: Any) -> str | None:
    """Why a norm and the neuron that reads it stay two ops, in words; None if nothing on them forbids it."""
    norm = modules[link.norm]
    if not _untouched(norm):
        return f"{link.norm} has hooks or a forward of its own"
    if not _untouched(neuron):
        return "it has hooks"
    for name in link.crossed:
        if not _untouched(modules[name]):
            return f"{name or 'the network'}, between {link.norm} and it, has hooks or a forward of its own"
    if norm.training and not link.sequences:
        return f"it takes single steps, of each of which {link.norm} has statistics of its own in training"
    return None


def _in_backward() -> bool:
    """Whether a backward pass is running, determined as torch.utils.checkpoint does it."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() >= 0


class Chain:
    """A norm that passes its input on, and the neuron that normalises it.

    At each call the norm asks whether it may pass its input on, and the neuron asks whether it did. What the
    user changes meanwhile (hooks, another mode, another surrogate) makes both compute by themselves. `last`
    says whether the neuron reads channels last, [T, N, ..., C], instead of [T, N, C, ...]; `crossed` are the
    modules between the two.

    Checkpointing calls one of the two, or both, again in a backward pass. A norm that is called alone there
    passes its input to no neuron. A neuron that is called alone there reads what it read before, and leaves
    the running statistics as they are.

    A copy begins without norm and neuron, which join it where they are copied, too. So a norm that is copied
    without its neuron computes by itself.
    """

    norm: _BatchNorm | None = None  # or the peer's class of that name
    neuron: "Stateful | None" = None
    crossed: tuple[nn.Module, ...] = ()

    def __init__(self, names: tuple[str, str], last: bool):
        self.names, self.last = names, last
        self.modes: tuple[str | None, bool] | None = None
        self.handed = False  # what the neuron reads next
        self.before = False  # what it read in the last forward pass
        self.again = False  # whether it was passed on in a backward pass
        self.updates = True

    def __getstate__(self) -> dict[str, Any]:
        return {
            key: value for key, value in self.__dict__.items() if key not in ("norm", "neuron", "crossed")
        }

    def join(self, module: nn.Module) -> None:
        """Takes the norm, or the neuron, into the chain."""
        if isinstance(module, _BatchNorm):
            self.norm = module
        else:
            self.neuron = cast("Stateful", module)

    def _modes(self) -> tuple[str | None, bool]:
        assert self.neuron is not None
        return getattr(self.norm, "step_mode", None), self.neuron.takes_sequences()

    def close(self, *crossed: nn.Module) -> None:
        """Ends the making of a chain whose norm and neuron have joined."""
        self.crossed, self.modes = crossed, self._modes()

    def open(self, norm: nn.Module, x: Tensor) -> bool:
        """Whether the norm may now pass on x; if so, that is noted."""
        if self.handed and not self.again:
            self.handed = False
            raise RuntimeError(
                f"{self.names[1]} has not read what {self.names[0]} handed on to it when it was last called. "
                "If that call failed, call the network again. Otherwise it has changed since accelerate(): "
                "call the report's restore(), then accelerate() again."
            )
        neuron, self.again = self.neuron, _in_backward()
        self.handed = (
            norm is self.norm
            and neuron is not None
            and neuron._chain is self
            and self._modes() == self.modes
            and x.numel() > 0
            and not (norm.training and not neuron.takes_sequences())
            and all(map(_untouched, (norm, neuron, *self.crossed)))
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
        assert self.norm is not None  # it passed x on
        found = ops.seam(x, norm=norm_of(self.norm), v0=v0, **ours)
        if self.updates:
            update(self.norm, found, x, "auto")
        assert found.v is not None
        out, v = found.out, found.v
        if self.last:
            out, v = out.movedim(2, -1), v.movedim(1, -1)
        # Of other than maps, the state is a view, which SpikingJelly's `detach_net` refuses.
        return out, v if x.dim() == 5 and not self.last else v.clone()
